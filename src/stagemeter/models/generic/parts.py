"""The parts of a model without a family, by the names that transformers gives them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError
from stagemeter.models.generic import AS_MODULE

if TYPE_CHECKING:
    from torch import nn

#: Arguments of decoders for states that they attend to besides those of tokens.
_ATTENDED = ("cross_attention_states", "image_hidden_states", "perceiver_embeddings")
_STATES = "encoder_hidden_states"
#: Method of transformers that turns pictures into embeddings of the language model's width.
_IMAGE_FEATURES = "get_image_features"


@dataclass(frozen=True, slots=True)
class Parts:
    """Module names of the parts of a model; none is inside another, except a head.

    Attributes
    ----------
    language, encoder, vision : str
        The decoder with its embedding, an encoder-decoder's encoder, and the vision tower; empty if absent.
    rest : tuple of str
        The other modules with parameters.
    takes_more : bool
        Whether the decoder also attends to outputs of other parts, besides token embeddings.
    head : tuple of str
        Modules that make logits of the last layer's output; inside the decoder if the decoder calls them.
    tail : tuple of str
        Modules after the decoder in order, up to the head; without the head if it is inside the decoder.
    writer : str
        The inner model with a head that continues a text after the page is read; empty if the whole model does.
    """

    language: str
    encoder: str
    vision: str
    rest: tuple[str, ...]
    takes_more: bool
    head: tuple[str, ...]
    tail: tuple[str, ...]
    writer: str


def find_parts(model: Any) -> Parts:
    """Find the parts of a transformers model, or raise StagemeterError if decoder or head cannot be found."""
    kind = type(model).__name__
    names = {id(module): name for name, module in model.named_modules()}
    output = model.get_output_embeddings() or _widest(model)
    if output is None:
        raise StagemeterError(f"model: {kind} has no module that makes logits. {AS_MODULE}")
    encoder = _encoder(model, names)
    outside = [output, *([model.get_submodule(encoder)] if encoder else [])]
    language = _decoder(model, names, outside, kind)
    inside = _is_inside(names[id(output)], language)
    head = names[id(output)] if inside else _topmost_without(names[id(output)], [language, encoder])
    vision = _vision(model, names)
    # A module of that name that also holds the decoder is no tower.
    vision = "" if vision == encoder or _is_inside(language, vision) else vision
    decoder_takes = parameters_of(model.get_submodule(language))
    # If embeddings do not include a page, the decoder attends to the tower's output.
    attends = any(name in decoder_takes for name in _ATTENDED)
    crosses = getattr(model.config.get_text_config(decoder=True), "add_cross_attention", True)
    attends = attends or (bool(vision) and image_features(model) is None and _STATES in decoder_takes and crosses)
    if vision and _is_inside(vision, language):
        raise StagemeterError(
            f"model: {kind} has its vision tower {vision} inside of its language model {language}. {AS_MODULE}"
        )
    named = [part for part in (language, head, encoder, vision) if part]
    head_modules = _called(model, head)
    owned = {parameter for part in named for parameter in model.get_submodule(part).parameters()}
    return Parts(
        language=language,
        encoder=encoder,
        vision=vision,
        rest=tuple(part for name in _rest(model, "", named, owned) for part in _called(model, name)),
        takes_more=bool(encoder) or attends,
        head=head_modules,
        tail=() if inside else head_modules,
        writer=_writer(model, language, head),
    )


def image_features(model: Any) -> Any:
    """Return the method that makes embeddings of pictures, if there is one."""
    # The inner one first: an outer one may only pass its arguments on, without names.
    for holder in (getattr(model, "model", None), model):
        method = getattr(holder, _IMAGE_FEATURES, None)
        if method is not None:
            return method
    return None


def sees_pages(module: Any) -> bool:
    """Return whether a module makes embeddings of pictures."""
    return hasattr(module, _IMAGE_FEATURES)


def _writer(model: Any, language: str, head: str) -> str:
    """Return the part that generates text for a model with its own ``generate``."""
    from transformers import GenerationMixin, PreTrainedModel

    if type(model).generate is GenerationMixin.generate:
        return ""
    for name, child in model.named_children():
        holds = _is_inside(language, name) and _is_inside(head, name)
        if holds and isinstance(child, PreTrainedModel) and child.can_generate():
            return str(name)
    return ""


def parameters_of(module: Any) -> Mapping[str, Any]:
    """Return the parameters of a module's ``forward`` by name."""
    return inspect.signature(module.forward).parameters


def _encoder(model: Any, names: dict[int, str]) -> str:
    if not model.config.is_encoder_decoder:
        return ""
    encoder = model.get_encoder()
    return names[id(encoder)]


def _decoder(model: Any, names: dict[int, str], outside: list[nn.Module], kind: str) -> str:
    module = model.get_decoder()
    # Descend into the language model until head and encoder are outside of it.
    while any(part in set(module.modules()) for part in outside) and hasattr(module, "get_decoder"):
        inner = module.get_decoder()
        if inner is module:
            break
        module = inner
    if names.get(id(module)) and not any(part in set(module.modules()) for part in outside):
        return names[id(module)]
    # Otherwise the outermost module around the embedding of tokens.
    embedding = names[id(model.get_input_embeddings())]
    path = embedding.split(".")
    for depth in range(1, len(path)):
        around = model.get_submodule(".".join(path[:depth]))
        if not any(part in set(around.modules()) for part in outside):
            return ".".join(path[:depth])
    # Otherwise a decoder that makes its own logits.
    whole = model.get_decoder()
    if names.get(id(whole)) and not any(part in set(whole.modules()) for part in outside[1:]):
        return names[id(whole)]
    raise StagemeterError(f"model: {kind} does not say which of its modules is its decoder. {AS_MODULE}")


def _vision(model: Any, names: dict[int, str]) -> str:
    tower = model.get_encoder(modality="image")
    return names.get(id(tower), "") if tower is not None else ""


def _widest(model: Any) -> nn.Module | None:
    """Return the last linear layer that is as wide as the vocabulary."""
    from torch import nn

    width = getattr(model.config.get_text_config(decoder=True), "vocab_size", None)
    found = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == width]
    return found[-1] if found else None


def _topmost_without(name: str, others: list[str]) -> str:
    """Return the outermost module around one that holds none of the others."""
    path = name.split(".")
    for depth in range(1, len(path)):
        around = ".".join(path[:depth])
        if not any(_is_inside(other, around) for other in others if other):
            return around
    return name


def _is_inside(name: str, around: str) -> bool:
    return name == around or name.startswith(f"{around}.")


def _called(model: nn.Module, name: str) -> tuple[str, ...]:
    """Return a module, or the modules of a list, which is itself never called."""
    from torch import nn

    module = model.get_submodule(name)
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return (name,)
    return tuple(part for child, _ in module.named_children() for part in _called(model, f"{name}.{child}"))


def _rest(module: nn.Module, name: str, parts: list[str], owned: set[nn.Parameter]) -> Iterator[str]:
    """Yield the outermost modules that hold no part but have parameters outside of all parts."""
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if path in parts or owned.issuperset(child.parameters()):
            continue
        if any(_is_inside(part, path) for part in parts):
            yield from _rest(child, path, parts, owned)
        else:
            yield path
