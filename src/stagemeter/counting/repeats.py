"""Layers that are alike run once, and their costs count for each.

On the meta device the cost of a layer follows from its structure and the shapes of its inputs alone. So of the layers
of one ``nn.ModuleList`` with equal structure and inputs, the first runs. Its events are recorded again for the others.

Two layers are alike when their modules, in order, have the same types, names, parameter and buffer shapes, and equal
plain attributes. Every other attribute must be the same object, such as the shared configuration. Only ``layer_idx``
may differ, which is the layer's slot in the key-value cache; the slot's content is compared instead.

A layer runs if an argument is neither a tensor nor a plain value nor a cache, or while another dispatch mode is active.
Lengths and indices on the CPU, which decide what runs, are compared by their values in layers of transformers alone:
other code may write to them, or return what it reads from them.
A layer that does not run leaves its part of the cache empty, but the counts include the cost of filling it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from stagemeter.counting.known_values import comparable_value, is_small_index, onlookers
from stagemeter.counting.layouts import is_plain
from stagemeter.counting.modes import is_transformed, replaced
from stagemeter.counting.visible_pairs import noted_pairs

if TYPE_CHECKING:
    from stagemeter.counting.events import Event

#: Attribute that identifies a layer of a transformer, and does not change its cost.
_LAYER_INDEX = "layer_idx"
#: Attributes that every module has, such as parameters and hooks: compared separately, or without a cost.
_MODULE_INTERNALS = frozenset(name for name in vars(nn.Module()) if name.startswith("_"))
_PLAIN_TYPES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


class RepeatedLayers:
    """The layers in a model's ``nn.ModuleList``s, and the events of those that ran."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = [
            layer
            for module in model.modules()
            if isinstance(module, nn.ModuleList) and len(module) > 1
            for layer in module
        ]
        self._structures = {layer: _structure(layer) for layer in self._layers}
        self._walked: dict[Any, tuple[str, list[Event], Any]] = {}
        # References keep caches alive, which are compared by identity.
        self._kept: list[Any] = []
        self._paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run every layer until the block is left."""
        with replaced(self, "_paused", True):
            yield

    @contextmanager
    def shared(self, events: list[Event], names: dict[nn.Module, str]) -> Iterator[None]:
        """Replace the layers' forward methods until the block is left.

        Each layer adds the events of the one like it that ran to `events`, under its own name from `names`.
        """
        with ExitStack() as stack:
            for layer in self._layers:
                if "forward" in vars(layer):
                    continue  # Other code replaced it already: let the layer run.
                forward = partial(self._forward, layer, layer.forward, events, names)
                layer.forward = forward
                stack.callback(vars(layer).pop, "forward")
            yield

    def _forward(
        self,
        layer: nn.Module,
        forward: Any,
        events: list[Event],
        names: dict[nn.Module, str],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        signature = self._call_signature(layer, args, kwargs)
        if signature is None:
            return forward(*args, **kwargs)
        name = names[layer]
        if signature not in self._walked:
            start, version = len(events), _versions((args, kwargs))
            out = forward(*args, **kwargs)
            # Values that a layer writes exist only where it runs.
            if _versions((args, kwargs)) == version and not _versions(out):
                self._walked[signature] = (name, events[start:], out)
                self._kept.append((args, kwargs))
            return out
        walked_name, walked_events, out = self._walked[signature]
        events.extend(_moved(event, walked_name, name) for event in walked_events)
        flat, structure = tree_flatten(out)
        fresh = [torch.empty_like(x) if isinstance(x, torch.Tensor) else x for x in flat]
        return tree_unflatten(fresh, structure)

    def _call_signature(self, layer: nn.Module, args: Any, kwargs: Any) -> Any:
        """Return a key that is equal for calls of equal cost; None if this call must run."""
        if self._paused:
            return None
        if torch.is_grad_enabled():
            return None  # Backward passes need the graph that a run builds.
        if onlookers() > 1:
            return None  # Another mode would miss the layer.
        if is_transformed():
            return None  # Shapes do not show the batch that a layer is mapped over.
        parts: list[Any] = [self._structures[layer]]
        compares = _compares_values(layer)
        flat, structure = tree_flatten((args, kwargs))
        for value in flat:
            if isinstance(value, torch.Tensor):
                known = value.device.type == "meta" or (compares and is_small_index(value))
                if not (known and is_plain(value)):
                    return None  # Values may decide what runs.
                parts.append((value.shape, value.dtype, value.stride(), value.device, comparable_value(value)))
                # Masks of equal shape may show other pairs.
                parts.append(noted_pairs(value))
            elif isinstance(value, _PLAIN_TYPES):
                parts.append((type(value), value))
            else:
                slot = _cache_slot(value, _layer_index(layer))
                if slot is None:
                    return None  # It may have changed since the last call.
                parts.append((id(value), slot))
        return (*parts, str(structure))


def _compares_values(layer: nn.Module) -> bool:
    """Whether small arguments on the CPU tell calls apart: the layer is transformers' own, and without weights."""
    tensors = (tensor for module in layer.modules() for tensor in (*module.parameters(False), *module.buffers(False)))
    return type(layer).__module__.startswith("transformers.") and all(each.device.type == "meta" for each in tensors)


def _versions(arguments: Any) -> list[int]:
    """Return the versions of the tensors outside of the meta device: each write makes a new one."""
    tensors = (value for value in tree_flatten(arguments)[0] if isinstance(value, torch.Tensor))
    # Tensors of torch's inference mode have none.
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors if tensor.device.type != "meta"]


def _moved(event: Event, old: str, new: str) -> Event:
    inside = event.module == old or event.module.startswith(f"{old}.")
    return replace(event, module=new + event.module.removeprefix(old)) if inside else event


def _structure(layer: nn.Module) -> tuple[Any, ...]:
    return tuple(
        # The layer's own hooks run in any case; those further in run only with it.
        (name, type(module), _tensors(module), _attributes(module), _hooks(module) if name else ())
        for name, module in layer.named_modules()
    )


def _tensors(module: nn.Module) -> tuple[Any, ...]:
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return tuple((name, t.shape, t.dtype, t.device.type, t.requires_grad) for name, t in own)


def _hooks(module: nn.Module) -> tuple[int, ...]:
    return tuple(id(hook) for hooks in (module._forward_pre_hooks, module._forward_hooks) for hook in hooks.values())


def _attributes(module: nn.Module) -> tuple[Any, ...]:
    return tuple(
        (name, _plain_or_identity(value))
        for name, value in sorted(vars(module).items())
        if name != _LAYER_INDEX and name not in _MODULE_INTERNALS
    )


def _plain_or_identity(value: Any) -> Any:
    if isinstance(value, _PLAIN_TYPES):
        return (type(value), value)
    if isinstance(value, (tuple, list)):
        return (type(value), tuple(_plain_or_identity(item) for item in value))
    if type(value) is partial:
        # Each layer has its own partial function, such as an activation.
        return (partial, *map(_plain_or_identity, (value.func, value.args, [*value.keywords.items()])))
    return id(value)


def _layer_index(layer: nn.Module) -> int | None:
    for module in layer.modules():
        index = getattr(module, _LAYER_INDEX, None)
        if isinstance(index, int):
            return index
    return None


def _cache_slot(value: Any, index: int | None) -> Any:
    """Return the content of a key-value cache for a layer: attributes, with tensors by their shapes."""
    layers = getattr(value, "layers", None)
    if index is None or not isinstance(layers, list):
        return None
    if index >= len(layers):
        return "empty"
    slot = layers[index]
    return type(slot), _held(vars(slot))


def _held(item: Any) -> Any:
    """Return content of a cache, with tensors by their shapes; layers with several states keep collections of them."""
    if isinstance(item, torch.Tensor):
        return item.shape, item.dtype
    if isinstance(item, Mapping):
        return tuple((name, _held(value)) for name, value in sorted(item.items()))
    if isinstance(item, (tuple, list)) and not isinstance(item, torch.Size):
        return (type(item), tuple(map(_held, item)))
    return _plain_or_identity(item)
