"""Storage of a checkpoint's quantized weights, as its configuration says.

Sources, of the settings and of what they mean: transformers 5.23, ``utils/quantization_config.py``,
``quantizers/quantizers_utils.py`` (``should_convert_module``), ``integrations/finegrained_fp8.py`` (``FP8Linear``,
``FP8Experts``) and ``integrations/mxfp4.py``; compressed-tensors, ``quantization/quant_args.py`` and
``utils/match.py``; the tensors that AutoAWQ (``qweight``, ``qzeros``, ``scales``) and AutoGPTQ (the same) write;
GPTQModel, ``quantization/config.py`` (``dynamic_get``); vLLM, ``quantization/fp8.py`` (``ignored_layers``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.patterns import matches_beginning
from stagemeter.core.weight_storage import QuantizedMatrix
from stagemeter.models.settings import Settings

_FLOAT32, _FLOAT16, _FLOAT8 = 32, 16, 8
#: Routers: transformers never quantizes them, whatever a configuration says.
_ROUTERS = re.compile(r"\.(gate|router|router\.proj)$")
#: Prefixes of decoders in checkpoints, older and newer; names are matched under each.
_PREFIXES = ("", "model.", "backbone.", "language_model.", "language_model.model.", "model.language_model.")
_EXPERTS = re.compile(r"\.experts(\.|$)")
_HEAD = "lm_head"
#: The weights of heads in DeepSeek-V3.2's indexer (``modeling_deepseek_v32.py``, ``_keep_in_fp32_modules``).
_INDEXER_WEIGHTS = "indexer.weights_proj"
_WHERE = "quantization_config"
#: Class names, and the class of linear layers.
_CLASS, _LINEAR = re.compile(r"[A-Z]\w*"), "Linear"
#: Formats of compressed-tensors that are supported here (``config/format.py``).
_FORMATS = (
    *("pack-quantized", "int-quantized", "float-quantized", "naive-quantized"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized", "mixed-precision"),
)
#: Rows or columns: tensor sizes are 64-bit numbers, and so is their product.
_MOST_VALUES = 2**31 - 1
#: Group size that means all inputs of an output.
_ALL = -1
#: Rows and columns.
_SIDES = 2
#: Bits of a value in GPTQ. Source: transformers, ``GPTQConfig.post_init``.
_GPTQ_BITS = (2, 3, 4, 8)
#: Name of a layer's experts in transformers, and of a matrix of one in checkpoints.
_AN_EXPERT = (".experts", ".experts.0.gate_proj")


class UnknownStorageError(StagemeterError):
    """An unknown way of storing weights."""


class QuantizationSettings(Settings):
    """The content of a ``quantization_config``, or a part of it."""

    __slots__ = ()

    def bits(self, key: str, default: int | None = None) -> int:
        """Return a number of bits: 1 to 32."""
        return self.whole(key, default, most=_FLOAT32)

    def gptq_bits(self, key: str, default: int | None = None) -> int:
        """Return a number of bits that GPTQ has."""
        value = self.whole(key, default)
        if value not in _GPTQ_BITS:
            raise self.wrong(key, "2, 3, 4 or 8")
        return value

    def group(self, key: str, default: int | None = None) -> int:
        """Return how many inputs share a scale; 0 for all of them, which configurations write as -1."""
        if self.values.get(key) == _ALL and not isinstance(self.values[key], float):
            return 0
        return self.whole(key, default, most=_MOST_VALUES)

    def block(self, key: str, needed: bool = False) -> tuple[int, ...]:
        """Return rows and columns of the blocks that share a scale; empty without blocks, unless `needed`."""
        if self.values.get(key) is None and not needed:
            return ()
        if len(self.listed(key)) != _SIDES:
            raise self.wrong(key, "a list of two whole numbers: rows and columns of a block")
        return self.wholes(key, most=_MOST_VALUES)

    def texts(self, key: str, needed: bool = False) -> tuple[str, ...]:
        """Return a list of texts; empty if it is missing, unless it is `needed`."""
        if self.values.get(key) is None and not needed:
            return ()
        value = self.listed(key)
        if not all(isinstance(text, str) for text in value):
            raise self.wrong(key, "a list of texts")
        return tuple(value)

    def nested_texts(self, key: str) -> tuple[str, ...]:
        """Return the texts of a list of lists; empty if it is missing."""
        lists = [] if self.values.get(key) is None else self.listed(key)
        if not all(isinstance(inner, list) and all(isinstance(text, str) for text in inner) for inner in lists):
            raise self.wrong(key, "a list of lists of texts")
        return tuple(text for inner in lists for text in inner)


@dataclass(frozen=True, slots=True)
class _Rule:
    """Some modules by name, and how they are quantized; None if they are not."""

    quantized: QuantizedMatrix | None
    of: tuple[str, ...] | None = None
    experts_only: bool = False


@dataclass(frozen=True, slots=True)
class Quantization:
    """A checkpoint's storage of the matrices of its language model.

    The first of `rules` that takes a module decides. `left_out` are modules that are not quantized: regular expressions
    for names, or their beginnings or ends.
    """

    method: str
    rules: tuple[_Rule, ...]
    left_out: tuple[str, ...]

    def storage_of(self, module: str, name: str | None = None) -> QuantizedMatrix | None:
        """Return how the matrix of a linear layer or of experts is quantized; None if it is not.

        `module` is its name inside the decoder, such as ``layers.3.mlp.gate_proj`` or ``lm_head``. `name` is that in
        the whole model, if known.
        """
        if _ROUTERS.search(module):
            return None
        inner = [module, module.replace(*_AN_EXPERT)] if module.endswith(_AN_EXPERT[0]) else [module]
        names = [*(prefix + inside for prefix in _PREFIXES for inside in inner), *([name] if name else [])]
        if any(_matches(pattern, known) for pattern in self.left_out for known in names):
            return None
        for rule in self.rules:
            if rule.experts_only and not _EXPERTS.search(module):
                continue
            if rule.of is None or any(_matches(pattern, known) for pattern in rule.of for known in names):
                return rule.quantized
        return None

    def storage_of_part(self, layers: int, *modules: str) -> QuantizedMatrix | None:
        """Return how the same modules of every layer are quantized, None if not; refuse layers that differ."""
        found = {self.storage_of(f"layers.{index}.{module}") for index in range(layers) for module in modules}
        if len(found) > 1:
            raise UnknownStorageError(f"{' and '.join(modules)} are not stored alike in all layers")
        return found.pop()


def read_quantization(config: Mapping[str, Any], source: str = "the configuration") -> Quantization | None:
    """Read how a checkpoint stores its weights from its ``config.json``; None if it does not quantize them.

    Raise UnknownStorageError for an unknown method or setting of it, and StagemeterError for a missing or invalid
    setting.
    """
    settings = quantization_settings(config, source)
    if settings is None:
        return None
    method = settings.word("quant_method")
    readers = {
        "fp8": _fp8,
        "mxfp4": _mxfp4,
        "awq": _awq,
        "gptq": _gptq,
        "compressed-tensors": _compressed_tensors,
    }
    if method not in readers:
        raise UnknownStorageError(f"how {method or 'a method that it does not name'} stores weights is not known here")
    return readers[method](settings)


def quantization_settings(config: Mapping[str, Any], source: str) -> QuantizationSettings | None:
    """Return the quantization settings of the whole model or of its language model, if there are any."""
    text = config.get("text_config")
    for holder in (config, text if isinstance(text, Mapping) else {}):
        if holder.get("quantization_config") is not None:
            return QuantizationSettings(holder, source).part("quantization_config")
    return None


def _fp8(settings: QuantizationSettings) -> Quantization:
    # Scales are in float32 unless they are powers of two; without blocks there is one per matrix.
    scale = _FLOAT8 if settings.word("scale_fmt") == "ue8m0" else _FLOAT32
    quantized = QuantizedMatrix(8, scale, *settings.block("weight_block_size"))
    # Left as they are: the modules of a list, without one the output head, and always modules in float32.
    left_out = settings.texts("modules_to_not_convert") or settings.texts("ignored_layers") or (_HEAD,)
    return Quantization("fp8", (_Rule(quantized),), (*left_out, _INDEXER_WEIGHTS))


def _mxfp4(settings: QuantizationSettings) -> Quantization:
    # OCP Microscaling Formats 1.0: four bits each, and eight bits for 32 of them.
    rule = _Rule(QuantizedMatrix(4, 8, 1, 32), experts_only=True)
    return Quantization("mxfp4", (rule,), settings.texts("modules_to_not_convert"))


def _awq(settings: QuantizationSettings) -> Quantization:
    bits = settings.bits("bits", settings.bits("w_bit", 4))
    zero = bits if settings.flag("zero_point", True) else 0
    group = settings.group("group_size", settings.group("q_group_size", 128))
    # AutoAWQ leaves out modules with a text anywhere in their names (exclude_layers_to_not_quantize).
    left_out = tuple(f"re:.*{re.escape(text)}" for text in settings.texts("modules_to_not_convert"))
    return Quantization("awq", (_Rule(QuantizedMatrix(bits, _FLOAT16 + zero, 1, group)),), (*left_out, _HEAD))


def _gptq(settings: QuantizationSettings) -> Quantization:
    # Zero points are stored, symmetric or not. Each input's group is stored, too, but kernels read it only if inputs
    # were reordered; it is not counted.
    quantized = _with_zero_points(settings.gptq_bits("bits"), settings.group("group_size", 128))
    of = settings.nested_texts("modules_in_block_to_quantize") or None
    rules = (*_dynamic(settings), _Rule(quantized, of))
    return Quantization("gptq", rules, () if settings.flag("lm_head", False) else (_HEAD,))


def _with_zero_points(bits: int, group: int) -> QuantizedMatrix:
    return QuantizedMatrix(bits, _FLOAT16 + bits, 1, group)


def _dynamic(settings: QuantizationSettings) -> list[_Rule]:
    """Return the rules of GPTQModel for single modules: ``-:`` before a pattern leaves them as they are."""
    if settings.values.get("dynamic") is None:
        return []
    named = settings.part("dynamic")
    rules = []
    for pattern in named.values:
        own = named.part(pattern)
        quantized = _with_zero_points(
            own.gptq_bits("bits", settings.gptq_bits("bits")),
            own.group("group_size", settings.group("group_size", 128) or -1),
        )
        of = (f"re:{pattern.removeprefix('-:').removeprefix('+:')}",)
        rules.append(_Rule(None if pattern.startswith("-:") else quantized, of))
    return rules


def _compressed_tensors(settings: QuantizationSettings) -> Quantization:
    form = settings.word("format") or ""
    if settings.values.get("sparsity_config"):
        sparsity = settings.part("sparsity_config").word("format")
        if sparsity not in (None, "dense"):
            raise UnknownStorageError(f"what the sparsity format {sparsity} stores is not known here")
    groups = settings.part("config_groups")
    rules = [rule for name in groups.values for rule in _rules(groups, name, form)]
    # A module's name wins over a pattern, and a pattern over its class (utils/match.py, match_targets).
    rules.sort(key=lambda rule: 2 if rule.of is None else rule.of[0].startswith("re:"))
    return Quantization("compressed-tensors", tuple(rules), settings.texts("ignore"))


def _rules(groups: QuantizationSettings, name: str, form: str) -> list[_Rule]:
    if isinstance(groups.values[name], list):
        raise UnknownStorageError(f"what the preset {name} stores is not known here")
    group = groups.part(name)
    targets = group.texts("targets", needed=True)
    whole = None if group.values.get("weights") is None else group.part("weights")
    quantized = None if whole is None else _compressed(whole, group.word("format") or form)
    other = next((target for target in targets if _CLASS.fullmatch(target) and target != _LINEAR), None)
    if other is not None:
        raise UnknownStorageError(f"which modules are of the class {other} is not known here")
    return [_Rule(quantized, None if target == _LINEAR else (target,)) for target in targets]


def _compressed(weights: QuantizationSettings, form: str) -> QuantizedMatrix:
    bits = weights.bits("num_bits")
    if form and form not in _FORMATS:
        raise UnknownStorageError(f"what the format {form} stores is not known here")
    strategy = weights.word("strategy")
    symmetric = weights.flag("symmetric", True)
    if form.startswith("nvfp4"):
        # Sixteen values share a scale of eight bits; a matrix has one of 32 bits.
        return QuantizedMatrix(bits, _FLOAT8, 1, weights.group("group_size", 16), _FLOAT32)
    if form.startswith("mxfp"):
        return QuantizedMatrix(bits, 8, 1, weights.group("group_size", 32))
    # Scales have the model's original data type, which has 16 bits.
    scale = _FLOAT16 + (0 if symmetric else bits)
    if strategy == "tensor":
        return QuantizedMatrix(bits, scale)
    if strategy == "channel":
        return QuantizedMatrix(bits, scale, 1)
    if strategy == "group":
        return QuantizedMatrix(bits, scale, 1, weights.group("group_size"))
    if strategy == "block":
        return QuantizedMatrix(bits, scale, *weights.block("block_structure", needed=True))
    raise UnknownStorageError(f"the strategy {strategy!r} is not known here")


def _matches(pattern: str, name: str) -> bool:
    """Return whether a pattern takes a module: by its name, its parent's name, or the end of its name."""
    expression = pattern.removeprefix("re:")
    if pattern.startswith("re:"):
        return matches_beginning(expression, name, _WHERE)
    boundary = r"(?:(?<=\.)|(?=\.|$))"
    return matches_beginning(rf"(?:{expression}){boundary}", name, _WHERE) or name.endswith(expression)
