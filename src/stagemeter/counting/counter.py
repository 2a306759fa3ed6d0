"""The counter: a dispatch mode that applies the formulas to a running model, and keeps the costs per module.

It sees every operator that torch dispatches, on any device. It catches ``linear`` and ``scaled_dot_product_attention``
one level higher, as called in Python, since the operators below depend on device, strides and data type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.jit._fuser import optimized_execution
from torch.utils._python_dispatch import TorchDispatchMode

from stagemeter.core.cost import ZERO, Cost
from stagemeter.core.module_attributes import COUNTED_APART
from stagemeter.counting import higher_order
from stagemeter.counting.attention import booked_attention, nested_operands_are_tensors, run_attention
from stagemeter.counting.attention_nodes import AttentionNodes, needed_gradients, next_number, nodes_of, nodes_since
from stagemeter.counting.attribution import Attribution
from stagemeter.counting.call_cost import CallCosts, Operands
from stagemeter.counting.complex_numbers import CONVOLUTIONS, ComplexConvolutions, has_complex
from stagemeter.counting.eager_attention import MASKING, EagerAttention
from stagemeter.counting.events import Counts, Event
from stagemeter.counting.known_values import KnownValues, onlookers
from stagemeter.counting.layouts import NESTED_RULES, is_by_sequence, is_jagged
from stagemeter.counting.modes import (
    DispatchMode,
    FunctionMode,
    is_traced,
    is_transformed,
    no_autocast_on_meta,
    sizes_are_numbers,
)
from stagemeter.counting.own_backward import OwnBackward
from stagemeter.counting.registry import Rule, rule_of
from stagemeter.counting.repeats import RepeatedLayers
from stagemeter.counting.results import CAUGHT_FUNCTIONS, by_position, result_of_function, result_on_meta
from stagemeter.counting.unseen import UNSEEN_KERNEL, UnseenKernels, is_script, unseen_products
from stagemeter.counting.visible_pairs import Share, hides_pairs, is_stacked_product
from stagemeter.counting.zero_cost import is_zero_cost

aten = torch.ops.aten

#: Operators whose result is the same kind of tensor: a moved or converted weight is still a weight.
_SAME_THING = frozenset({aten._to_copy, aten.clone})


class CostCounter:
    """Count the operators that run inside of a ``with`` block.

    Parameters
    ----------
    model : torch.nn.Module, optional
        The model whose modules get their own numbers. Without one, all costs have the empty name.
    walk_every_layer : bool
        Whether to run every layer. By default, layers on the meta device that are alike and are called alike run once,
        and their costs count for the others (see `stagemeter.counting.repeats`).
    rules : mapping, optional
        Rules of some operators for this counter, which override the registered ones; see `rule_for`.
    forgiving : bool
        Whether an error in counting lists the operator as one without a formula, with a remark. Otherwise it is raised.

    Examples
    --------
    >>> model = torch.nn.Linear(3, 4, device="meta")
    >>> with torch.no_grad(), CostCounter(model) as counter:
    ...     _ = model(torch.empty(2, 3, device="meta"))
    >>> counter.counts().of("").macs
    24

    Notes
    -----
    The model is left as it was found, after an error too. The operators of a backward pass inside of the block belong
    to the module whose forward pass made them necessary. Work that activation checkpointing repeats belongs to the
    module that runs again.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        walk_every_layer: bool = False,
        rules: Mapping[Any, Rule] | None = None,
        forgiving: bool = False,
    ) -> None:
        self._remarks: dict[str, str] = {}
        self._forgiving = forgiving
        self._attribution = Attribution(model)
        names = self._attribution.names.items()
        self._apart = {name for module, name in names if getattr(module, COUNTED_APART, False)}
        self._rules = dict(rules or {})
        self._complex_convolutions = ComplexConvolutions()
        self._unseen = UnseenKernels()
        #: The operator that torch dispatched last: after an error, the one that failed.
        self.last_operator: Any = None
        self._repeats = None if walk_every_layer or model is None else RepeatedLayers(model)
        self._events: list[Event] = []
        self._operands = Operands(model)
        self._call_costs = CallCosts(self._operands, self._complex_convolutions, self._remarks)
        self._attention_nodes = AttentionNodes()
        self._own_backward = OwnBackward()
        self._eager = EagerAttention(self._events, self._call_costs.visible_pairs, self._attention_nodes)
        self._silent = 0
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._attribution.followed(self._entered))
            if self._repeats is not None:
                stack.enter_context(self._repeats.shared(self._events, self._attribution.names))
            stack.enter_context(booked_attention(self))
            # The dispatcher does not see kernels that TorchScript fuses while it runs.
            stack.enter_context(optimized_execution(False))
            stack.enter_context(nested_operands_are_tensors())
            stack.enter_context(no_autocast_on_meta())
            stack.enter_context(FunctionMode(self.run_function))
            stack.enter_context(DispatchMode(self.run_operator))
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.__exit__(kind, error, trace)

    def counts(self) -> Counts:
        """Return the costs per module since the block was entered or `restart` was called."""
        counts = Counts.added_up(self._events, self._attribution.names.values(), self._apart)
        counts.remarks.update(self._remarks)
        return counts

    def restart(self) -> None:
        """Forget the costs so far, but remember which layers are alike."""
        self._events.clear()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing until the block is left, and run every layer."""
        repeats = nullcontext() if self._repeats is None else self._repeats.paused()
        before = len(self._events)
        self._silent += 1
        try:
            with repeats:
                yield
        finally:
            self._silent -= 1
            del self._events[before:]

    def known_values(self) -> KnownValues:
        """Keep values of tensors on the meta device until the block is left."""
        return KnownValues()

    def run_operator(self, mode: TorchDispatchMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run and count an operator that torch dispatched."""
        self.last_operator = func
        if func is aten._is_all_true.default and args[0].device.type == "meta":
            # Models assert conditions on values (torch._check_tensor_all), which do not exist here. Count the run in
            # which they hold.
            return torch.ones((), dtype=torch.bool)
        if self._silent or is_traced():
            return func(*args, **kwargs)
        if higher_order.is_higher_order(func):
            return self._run_higher_order(mode, func, args, kwargs)
        packet = func._overloadpacket
        rule = self._rule_of(packet)
        nested = any(isinstance(value, torch.Tensor) and value.is_nested for value in args)
        if nested:
            rule = NESTED_RULES.get(packet, rule)
            if any(map(is_jagged, args)) and (rule is None or not is_by_sequence(packet)):
                # Jagged tensors are a Python class, whose own operators come back here.
                return NotImplemented
        if rule is not None:
            out = result_on_meta(func, args, kwargs)
            if out is None:
                out = func(*args, **kwargs)
            self._saw(func, args, kwargs, out)
            self._count(rule, func, args, kwargs, out)
            return out
        if is_zero_cost(func):
            out = None if onlookers() > 0 else result_on_meta(func, args, kwargs)
            if out is None:
                out = func(*args, **kwargs)
            self._saw(func, args, kwargs, out)
            if packet in MASKING and self._attribution.is_attention():
                self._eager.masked(func, self._attribution.module(), args, out)
            if packet in _SAME_THING:
                self._operands.follow(args[0], out)
                self._own_backward.follow(args[0], out)
            elif func is aten.copy_.default and self._operands.is_state(args[0]):
                self._book("kv_cache_update", Cost(kv_writes=args[0].numel()))
            return out
        if not nested:
            with mode:
                # A composite operator counts as the operators that it is made of.
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        self._book(str(packet), None)
        out = func(*args, **kwargs)
        self._saw(func, args, kwargs, out)
        return out

    def run_function(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run a Python function of torch, and count the few that are counted as called."""
        if higher_order.is_higher_order(func) and not is_transformed():
            return higher_order.run_plainly(func, args, kwargs)
        if func in CONVOLUTIONS and has_complex((args, kwargs)):
            with self._complex_convolutions.running():
                return func(*args, **kwargs)
        packet, names = CAUGHT_FUNCTIONS.get(func, (None, ()))
        rule = None if packet is None or self._silent else self._rule_of(packet)
        if rule is None:
            return func(*args, **kwargs)
        if is_transformed():
            if hides_pairs(packet.default, args, kwargs):
                self._list_untold(rule, "inside of a transform, products do not tell whether they belong to attention")
            return func(*args, **kwargs)
        args, kwargs = by_position(names, args, kwargs)
        if not all(isinstance(arg, torch.Tensor) for arg in args[: 3 if rule.attention else 2]):
            return func(*args, **kwargs)  # Stand-ins for tensors, from a symbolic trace or a class of the user's.
        self._read((args, kwargs))
        first = next_number()
        out = result_of_function(rule.attention, args)
        if out is None:
            self._silent += 1
            try:
                out = run_attention(self._remarks, args, kwargs) if rule.attention else func(*args, **kwargs)
            finally:
                self._silent -= 1
        self._count(rule, packet.default, args, kwargs, out, first)
        return out

    def record_cache_update(self, key: torch.Tensor, value: torch.Tensor, added: int) -> None:
        """Record an update of a key-value cache.

        Parameters
        ----------
        key, value : torch.Tensor
            The cached keys and values that attention reads from now on, new ones included.
        added : int
            Number of elements appended to both together.
        """
        self._operands.mark_cache(key)
        self._operands.mark_cache(value)
        self._book("kv_cache_update", Cost(kv_writes=added))

    def record_state(self, state: torch.Tensor, added: int) -> None:
        """Record that a cache keeps a state in place of keys and values; copies into it count as writes to the cache.

        Parameters
        ----------
        state : torch.Tensor
            The state.
        added : int
            Number of its elements that were just written.
        """
        self._operands.mark_state(state)
        if added:
            self._book("kv_cache_update", Cost(kv_writes=added))

    def attention_ran(self, args: Sequence[Any], kwargs: Mapping[str, Any], out: torch.Tensor) -> None:
        """Record attention on the meta device, unless it was counted as called."""
        rule = None if self._silent else self._rule_of(aten.scaled_dot_product_attention)
        if rule is not None:
            self._count(rule, aten.scaled_dot_product_attention.default, args, kwargs, out)

    def attention_backward_ran(self, operands: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> None:
        """Record the backward pass of attention on the meta device."""
        operator = aten._scaled_dot_product_fused_attention_overrideable_backward
        rule = self._rule_of(operator)
        if rule is not None:
            self._count(rule, operator.default, operands, {}, tuple(gradients))

    def _entered(self, module: nn.Module) -> None:
        """Record a call of a module, and its unseen kernels if it is TorchScript."""
        name = self._attribution.name_of(module)
        if is_script(module) and not self._silent:
            home = self._attribution.module() if name is None else name
            self._events += [Event(home, kernel, None) for kernel in unseen_products(module).elements()]
        if name is not None:
            self._events.append(Event(name, "", None))

    def _saw(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        with sizes_are_numbers():
            self._list_unseen(self._unseen.saw(func, args, kwargs, out))

    def _read(self, arguments: Any) -> None:
        with sizes_are_numbers():
            self._list_unseen(self._unseen.read(arguments))

    def _list_unseen(self, kernels: int) -> None:
        for _ in range(kernels):
            self._book(UNSEEN_KERNEL, None)

    def _rule_of(self, packet: Any) -> Rule | None:
        return self._rules.get(packet) or rule_of(packet)

    def _run_higher_order(self, mode: TorchDispatchMode, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        seen, has_functions = higher_order.seen_through(mode, args)
        rule = higher_order.RULES.get(func.name())
        if rule is not None:
            out = func(*seen, **kwargs)
            self._count(rule, higher_order.like(func), *higher_order.operands(func, args), out)
            return out
        if func.name() == "cond" and higher_order.is_out_of_sight(args[0]):
            return self._run_either(func, args, seen)
        if not higher_order.is_free(func) and (not has_functions or higher_order.has_stand_ins(args, kwargs)):
            self._book(higher_order.name_of(func), None)
            return func(*args, **kwargs)
        return func(*seen, **kwargs)

    def _run_either(self, func: Any, args: tuple[Any, ...], seen: tuple[Any, ...]) -> Any:
        """Run ``cond`` where the predicate has no value: counted if both branches cost the same."""
        _, first, second, operands = seen
        start = len(self._events)
        out = first(*operands)
        taken = self._events[start:]
        second(*operands)
        other = self._events[start + len(taken) :]
        alike = _costs(taken) == _costs(other)
        del self._events[start + len(taken) * alike :]
        if alike:
            return out
        if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
            self._book(higher_order.name_of(func), None)
        # Torch raises its own error where it has to decide without a value.
        return func(*args)

    def _book(self, operator: str, cost: Cost | None) -> None:
        """Record an operator of the running module; without a cost, it is listed as one without a formula."""
        self._events.append(Event(self._attribution.module(), operator, cost))

    def _count(
        self,
        rule: Rule,
        operator: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        out: Any,
        first: int | None = None,
    ) -> None:
        """Record a call; `first` is the number of the first node that it made, by default that of an operator."""
        again = self._attribution.runs_again()
        # The node whose backward pass this is.
        node = None if again else torch._C._current_autograd_node()
        causal = node is None and self._attribution.is_causal()
        again = self._own_backward.runs_again(node, rule.name, args) or again
        try:
            with sizes_are_numbers():
                call = self._call_costs.of(rule, operator, args, kwargs, out, causal, needed_gradients(node))
        except LookupError as error:
            # A formula or a layout reports that the count depends on something unknown.
            self._list_failure(operator, str(error))
            return
        except Exception as error:
            if not self._forgiving:
                raise
            self._list_failure(operator, f"{type(error).__name__}: {error}")
            return
        share: Share | None = call.share
        if node is not None:
            share = self._attention_nodes.share_of(node, rule, operator, call.share)
        if share is None:
            self._list_untold(rule, "a backward pass does not tell which of its products belong to attention")
            share = call.share
        module = self._attribution.module()
        nodes = nodes_of(args) if first is None else nodes_since(first)
        product = node is None and self._attribution.is_attention() and is_stacked_product(rule)
        masked = self._eager.share_of(rule, module, args) if product else None
        if masked is not None:
            share = Share(*masked.of(share.whole), share.whole)
        if node is None or torch.is_grad_enabled():
            self._attention_nodes.note(nodes, share)
        cost, spare = call.split(share)
        self._events.append(Event(module, rule.name, cost, cost if again else spare))
        if product:
            self._eager.ran(self._events[-1], nodes, out)

    def _list_untold(self, rule: Rule, reason: str) -> None:
        """Record that the visible pairs of the running module are not known."""
        self._remarks.setdefault("flops_causal", reason)
        self._events.append(Event(self._attribution.module(), rule.name, ZERO, untold=True))

    def _list_failure(self, operator: Any, reason: str) -> None:
        name = str(operator._overloadpacket)
        self._remarks.setdefault(name, reason)
        self._book(name, None)


def _costs(events: Sequence[Event]) -> Counter[Event]:
    """Return the operators that ran and how often."""
    return Counter(event for event in events if event.operator)
