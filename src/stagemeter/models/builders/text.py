"""Families of language models that read text alone, and the parts that most of them share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from types import MappingProxyType
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.build import build_from_settings
from stagemeter.models.decoder.attention import GroupedQueryAttention, LatentAttention
from stagemeter.models.decoder.decoder import ENDLESS, Decoder, Layer, decoder_from_sizes
from stagemeter.models.decoder.feed_forward import Experts, GatedFeedForward
from stagemeter.models.decoder.quantized import quantized_decoder
from stagemeter.models.decoder.stages import DecoderModules, decoder_stages, whole_pass
from stagemeter.models.family import CacheRecorder, Family
from stagemeter.models.settings import Settings

#: Kinds of layers, as transformers' configurations name them.
FULL, SLIDING = "full_attention", "sliding_attention"
#: Kinds of feed-forward networks, named likewise.
DENSE, SPARSE = "dense", "sparse"
_MODULES = DecoderModules()


def text_family(
    name: str,
    title: str,
    model_types: Sequence[str],
    read: Callable[[Settings], Decoder],
    shipped: Mapping[str, str],
    notes: Sequence[str] = (),
    prefill_variables: Mapping[str, str] = MappingProxyType({}),
    modules: DecoderModules = _MODULES,
    adapters: bool = True,
) -> Family[Decoder]:
    """Make a family of language models that read text alone.

    Parameters
    ----------
    name, title : str
        Name of the family, and what it is in a few words.
    model_types : sequence of str
        ``model_type`` of the configurations that it takes.
    read : callable
        Reads the decoder's sizes from a configuration.
    shipped : mapping
        Files in ``models/configs`` by the names that their models are asked for by.
    notes : sequence of str
        What one should know about how its numbers come about.
    prefill_variables
        See `stagemeter.models.decoder.stages.decoder_stages`.
    modules : DecoderModules
        Where its models have the decoder.
    adapters : bool
        Whether low-rank adapters beside its layers are known.
    """
    configs = resources.files("stagemeter.models") / "configs"
    stages = decoder_stages(lambda decoder: decoder, modules, prefill_variables=prefill_variables)
    return Family(
        name=name,
        title=title,
        takes=lambda config: config.get("model_type") in model_types,
        architecture_from_config=lambda config, source: read(Settings(config, source)),
        build=lambda architecture, config: build_from_settings(config),
        shipped={model: configs / file for model, file in shipped.items()},
        decoder=lambda decoder: decoder,
        stages=stages if adapters else tuple(replace(stage, adapter=None) for stage in stages),
        other_parameters=lambda decoder: {},
        architecture_from_sizes=decoder_from_sizes,
        whole_passes={"forward": _run_forward, "decode": _run_decode},
        notes=tuple(notes),
        quantized=quantized_decoder,
    )


def _run_forward(model: Any, decoder: Decoder, workload: Workload, recorder: CacheRecorder) -> None:
    """One pass of the whole model over the prompt, as ``generate`` makes it first."""
    whole_pass(model, decoder, workload, workload.prompt_tokens, 0, recorder)


def _run_decode(model: Any, decoder: Decoder, workload: Workload, recorder: CacheRecorder) -> None:
    """One pass of the whole model over one new token."""
    whole_pass(model, decoder, workload, 1, workload.decode_context - 1, recorder)


def decoder(settings: Settings, layers: Sequence[Layer], tied: bool = False) -> Decoder:
    """Put a decoder together.

    Parameters
    ----------
    settings : Settings
        Configuration with ``hidden_size``, ``vocab_size``, ``max_position_embeddings`` and ``tie_word_embeddings``.
    layers : sequence of Layer
        One per layer, or one per kind; those that are equal are put together.
    tied : bool
        Whether the output head's weights are the embedding's where the configuration does not say.
    """
    times: Counter[Layer] = Counter()
    for layer in layers:
        times[replace(layer, times=1)] += layer.times
    return Decoder(
        hidden=settings.whole("hidden_size"),
        vocabulary=settings.whole("vocab_size"),
        max_positions=settings.whole("max_position_embeddings", most=ENDLESS),
        layers=tuple(replace(layer, times=count) for layer, count in times.items()),
        tied=settings.flag("tie_word_embeddings", tied),
    )


def grouped_query_attention(settings: Settings, **changes: Any) -> GroupedQueryAttention:
    """Attention as most configurations describe it.

    Parameters
    ----------
    settings : Settings
        Configuration with ``num_attention_heads``, and ``num_key_value_heads`` and ``head_dim`` where they are neither
        missing nor null, which means what follows from the others.
    **changes
        What the family does otherwise, see `GroupedQueryAttention`; its window, where the model's own class knows one.

    Raises
    ------
    StagemeterError
        If the sizes contradict one another.
    """
    heads = settings.whole("num_attention_heads")
    key_value_heads = settings.whole("num_key_value_heads", heads)
    if heads % key_value_heads:
        raise StagemeterError(
            f"{settings.source}: num_attention_heads {heads} cannot be split into num_key_value_heads {key_value_heads}"
        )
    # What is left of the division is no head's, as in transformers.
    head_width = settings.whole("head_dim", settings.whole("hidden_size") // heads)
    changes.setdefault("window", cached_window(settings))
    return GroupedQueryAttention(heads, key_value_heads, head_width, **changes)


def cached_window(settings: Settings) -> int:
    """Window of every layer of a model whose own class knows none; 0 where the configuration has none.

    transformers' cache keeps as many tokens as a ``sliding_window`` says all the same, of any model whose
    configuration has no ``layer_types``. A decode step attends to what is kept, a prefill to everything.
    Source: transformers, ``cache_utils.py``, ``get_layer_types_and_kwargs``.
    """
    return 0 if settings.values.get("layer_types") is not None else settings.whole("sliding_window", 0)


def refuse_window(settings: Settings) -> None:
    """Refuse a window of layers of a kind whose cache is not counted with one, see `cached_window`.

    Raises
    ------
    StagemeterError
        If the configuration has one.
    """
    if cached_window(settings):
        raise StagemeterError(
            f"{settings.source}: sliding_window is {settings.values['sliding_window']}, and the cache of its layers is "
            "not counted with one. Leave it out"
        )


def gated(settings: Settings, key: str = "intermediate_size") -> GatedFeedForward:
    """Gated feed-forward network of the width that a setting gives."""
    return GatedFeedForward(settings.whole(key))


def experts(settings: Settings, number: str, intermediate: str, **changes: Any) -> Experts:
    """Mixture of experts of the sizes that settings give.

    Parameters
    ----------
    settings : Settings
        Configuration with ``num_experts_per_tok``.
    number, intermediate : str
        Settings that hold how many experts there are, and the width of one.
    **changes
        What the family does otherwise, see `Experts`.

    Raises
    ------
    StagemeterError
        If a token would use more experts than there are.
    """
    known, used = settings.whole(number), settings.whole("num_experts_per_tok")
    if used > known:
        raise StagemeterError(f"{settings.source}: num_experts_per_tok is {used}, but {number} is {known}")
    return Experts(known, used, settings.whole(intermediate), **changes)


def dense_then_experts(settings: Settings, attention: GroupedQueryAttention | LatentAttention) -> list[Layer]:
    """Layers of which the first are dense and the others route tokens to experts, as DeepSeek's do.

    Parameters
    ----------
    settings : Settings
        Configuration with ``n_routed_experts``, ``moe_intermediate_size``, ``n_shared_experts`` and either
        ``mlp_layer_types`` or ``first_k_dense_replace``.
    attention : GroupedQueryAttention or LatentAttention
        What each layer begins with.
    """
    layers = settings.whole("num_hidden_layers")
    if settings.values.get("mlp_layer_types") is None:
        first = min(settings.whole("first_k_dense_replace", least=0), layers)
    else:
        first = settings.kinds("mlp_layer_types", (DENSE, SPARSE)).count(DENSE)
    routed = experts(
        settings,
        "n_routed_experts",
        "moe_intermediate_size",
        shared_intermediate=settings.whole("n_shared_experts") * settings.whole("moe_intermediate_size"),
        choice_bias=True,
    )
    kinds = [Layer(attention, gated(settings), first), Layer(attention, routed, layers - first)]
    return [layer for layer in kinds if layer.times]


def windows_by_layer(settings: Settings) -> list[int]:
    """Window of each layer, 0 for one that attends to everything.

    Parameters
    ----------
    settings : Settings
        Configuration with ``num_hidden_layers``, ``sliding_window`` and ``layer_types``.

    Raises
    ------
    StagemeterError
        If there are not as many kinds as layers, or there are windows of no length.
    """
    kinds = settings.kinds("layer_types", (FULL, SLIDING))
    return [settings.whole("sliding_window") if kind == SLIDING else 0 for kind in kinds]
