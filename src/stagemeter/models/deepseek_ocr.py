"""DeepSeek-OCR: configuration, stages, closed forms and inputs.

The model is built from transformers' ``unlimited_ocr``, which is the same architecture; transformers has no
``deepseek_ocr`` of its own. The one difference is a patch embedding of CLIP's that the checkpoint holds and nothing
uses: its parameters are counted here and marked unused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.cost import Cost
from stagemeter.errors import StagemeterError
from stagemeter.models.blocks import linear
from stagemeter.models.family import CacheRecorder, Family, Stage, StageParameters, Variables
from stagemeter.models.language import (
    DecoderArchitecture,
    decode_cost,
    decoder_parameters,
    embedding_parameters,
    prefill_cost,
)
from stagemeter.models.vision import (
    ClipArchitecture,
    SamArchitecture,
    ViewGroup,
    clip_cost,
    clip_parameters,
    sam_cost,
    sam_parameters,
)
from stagemeter.workload import Workload, stable_hash

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

#: Name by which the published model is asked for.
NAME = "deepseek-ocr"
#: Sizes that the authors' code fixes and the published configuration does not name (deepencoder.py of the
#: checkpoint: ``build_sam_vit_b``, ``build_clip_l``).
_SAM_PATCH_SIZE = 16
_SAM_WINDOW_SIZE = 14
_SAM_NECK = 256
_FEED_FORWARD_RATIO = 4

_SAM = "model.vision_tower.sam_encoder"
_CLIP = "model.vision_tower.vision_encoder"
_PROJECTOR = "model.multi_modal_projector"
_DECODER = "model.language_model"
_HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class DeepseekOCRArchitecture:
    """Sizes of a model of this family.

    Attributes
    ----------
    sam : SamArchitecture
        The first encoder.
    clip : ClipArchitecture
        The second encoder.
    decoder : DecoderArchitecture
        The language model.
    """

    sam: SamArchitecture
    clip: ClipArchitecture
    decoder: DecoderArchitecture

    @property
    def projector_inputs(self) -> int:
        """Width of what the projector takes: CLIP's features beside SAM's."""
        return self.clip.hidden + self.sam.downsample_channels[-1]

    @property
    def downsample_ratio(self) -> int:
        """Patches per side that become one token: two convolutions of stride two."""
        return 4

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that are equal for equal sizes."""
        return stable_hash(asdict(self))


@cache
def published_architecture() -> DeepseekOCRArchitecture:
    """Sizes of the published DeepSeek-OCR, from the configuration that the package ships."""
    text = resources.files("stagemeter.models").joinpath("configs/deepseek_ocr.json").read_text(encoding="utf-8")
    return architecture_from_config(json.loads(text), "the shipped configuration")


def load_architecture(model: str) -> DeepseekOCRArchitecture:
    """Find the sizes of a model by name or folder.

    Parameters
    ----------
    model : str
        ``deepseek-ocr``, or a folder with a ``config.json``; weights are not needed.

    Raises
    ------
    StagemeterError
        If there is no such model or its configuration cannot be used.
    """
    if model == NAME:
        return published_architecture()
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise StagemeterError(f"unknown model {model!r}: give {NAME!r}, or a folder that holds a config.json")
    return architecture_from_config(read_config(folder), str(folder / "config.json"))


def read_config(folder: Path) -> dict[str, Any]:
    """Read the ``config.json`` of a checkpoint's folder.

    Raises
    ------
    StagemeterError
        If it is missing or is not a JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StagemeterError(f"{folder} holds no config.json: give the folder of a checkpoint") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StagemeterError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise StagemeterError(f"{path} holds a {type(config).__name__}, not an object of settings")
    return config


def architecture_from_config(config: Mapping[str, Any], source: str) -> DeepseekOCRArchitecture:
    """Read sizes from a configuration, in the layout of the official checkpoint or in that of transformers.

    Parameters
    ----------
    config : mapping
        What ``config.json`` holds.
    source : str
        Where it is from, for error messages.

    Raises
    ------
    StagemeterError
        If it describes another architecture, lacks a key, or contradicts itself.
    """
    names = config.get("architectures") or []
    try:
        if "DeepseekOCRForCausalLM" in names:
            architecture = _from_official(config)
        elif "UnlimitedOcrForConditionalGeneration" in names:
            architecture = _from_transformers(config, source)
        else:
            raise StagemeterError(
                f"{source} describes {', '.join(map(str, names)) or config.get('model_type', 'no architecture')}; "
                "this is for DeepseekOCRForCausalLM"
            )
    except KeyError as error:
        raise StagemeterError(f"{source} lacks the key {error.args[0]!r}, which DeepSeek-OCR needs") from error
    except (TypeError, ValueError) as error:
        if isinstance(error, StagemeterError):
            raise
        raise StagemeterError(f"{source} is not laid out as DeepSeek-OCR's configuration is: {error}") from error
    _check(architecture, source)
    return architecture


def architecture_from_sizes(sizes: Mapping[str, Any]) -> DeepseekOCRArchitecture:
    """Build an architecture from its sizes as plain data, as ``dataclasses.asdict`` and JSON give them."""
    first, second = sizes["sam"]["downsample_channels"]
    sam = {
        **sizes["sam"],
        "global_layers": tuple(sizes["sam"]["global_layers"]),
        "downsample_channels": (first, second),
    }
    return DeepseekOCRArchitecture(
        sam=SamArchitecture(**sam),
        clip=ClipArchitecture(**sizes["clip"]),
        decoder=DecoderArchitecture(**sizes["decoder"]),
    )


def _from_official(config: Mapping[str, Any]) -> DeepseekOCRArchitecture:
    text, vision = config["language_config"], config["vision_config"]
    if text.get("use_mla"):
        raise StagemeterError("use_mla is true: multi-head latent attention is not part of DeepSeek-OCR")
    sam, clip = vision["width"]["sam_vit_b"], vision["width"]["clip-l-14-224"]
    first, second = sam["downsample_channels"]
    return DeepseekOCRArchitecture(
        sam=SamArchitecture(
            hidden=sam["width"],
            layers=sam["layers"],
            heads=sam["heads"],
            intermediate=_FEED_FORWARD_RATIO * sam["width"],
            patch_size=_SAM_PATCH_SIZE,
            window_size=_SAM_WINDOW_SIZE,
            global_layers=tuple(sam["global_attn_indexes"]),
            pretrain_size=vision["image_size"],
            neck=_SAM_NECK,
            downsample_channels=(first, second),
        ),
        clip=ClipArchitecture(
            hidden=clip["width"],
            layers=clip["layers"],
            heads=clip["heads"],
            intermediate=_FEED_FORWARD_RATIO * clip["width"],
            patch_size=clip["patch_size"],
            pretrain_size=clip["image_size"],
        ),
        decoder=_decoder_from(text, dense_layers=text["first_k_dense_replace"]),
    )


def _from_transformers(config: Mapping[str, Any], source: str) -> DeepseekOCRArchitecture:
    text, vision = config["text_config"], config["vision_config"]
    if text["sliding_window"] < text["max_position_embeddings"]:
        raise StagemeterError(
            f"{source} has a sliding window of {text['sliding_window']} tokens: that is Unlimited-OCR, not DeepSeek-OCR"
        )
    sam, clip = vision["sam_config"], vision["encoder_config"]
    first, second = sam["downsample_channels"]
    return DeepseekOCRArchitecture(
        sam=SamArchitecture(
            hidden=sam["hidden_size"],
            layers=sam["num_hidden_layers"],
            heads=sam["num_attention_heads"],
            intermediate=sam["mlp_dim"],
            patch_size=sam["patch_size"],
            window_size=sam["window_size"],
            global_layers=tuple(sam["global_attn_indexes"]),
            pretrain_size=sam["image_size"],
            neck=sam["output_channels"],
            downsample_channels=(first, second),
        ),
        clip=ClipArchitecture(
            hidden=clip["hidden_size"],
            layers=clip["num_hidden_layers"],
            heads=clip["num_attention_heads"],
            intermediate=clip["intermediate_size"],
            patch_size=clip["patch_size"],
            pretrain_size=clip["image_size"],
        ),
        decoder=_decoder_from(text, dense_layers=list(text["mlp_layer_types"]).count("dense")),
    )


def _decoder_from(text: Mapping[str, Any], dense_layers: int) -> DecoderArchitecture:
    return DecoderArchitecture(
        hidden=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        key_value_heads=text["num_key_value_heads"],
        head_width=_whole(text, "hidden_size") // _whole(text, "num_attention_heads"),
        intermediate=text["intermediate_size"],
        dense_layers=min(dense_layers, _whole(text, "num_hidden_layers")),
        experts=text["n_routed_experts"],
        experts_per_token=text["num_experts_per_tok"],
        shared_experts=text["n_shared_experts"],
        expert_intermediate=text["moe_intermediate_size"],
        vocabulary=text["vocab_size"],
        max_positions=text["max_position_embeddings"],
    )


def _whole(settings: Mapping[str, Any], key: str) -> int:
    """Read a size that is calculated with before `_check` sees it."""
    value = settings[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise StagemeterError(f"{key} of the language model is {value!r}; it must be a whole number, 1 or more")
    return value


def _check(architecture: DeepseekOCRArchitecture, source: str) -> None:
    """Refuse sizes that contradict one another, by name."""
    for part, sizes in asdict(architecture).items():
        for name, size in sizes.items():
            numbers = size if isinstance(size, (tuple, list)) else (size,)
            smallest = 0 if name in {"global_layers", "dense_layers"} else 1
            if any(not isinstance(n, int) or isinstance(n, bool) or n < smallest for n in numbers):
                raise StagemeterError(
                    f"{source}: {part} {name} is {size!r}; it must be a whole number, {smallest} or more"
                )
    sam, clip, decoder = architecture.sam, architecture.clip, architecture.decoder
    for part, hidden, heads in (
        ("sam", sam.hidden, sam.heads),
        ("clip", clip.hidden, clip.heads),
        ("decoder", decoder.hidden, decoder.heads),
        ("decoder attention", decoder.heads, decoder.key_value_heads),
    ):
        if hidden % heads:
            raise StagemeterError(f"{source}: {part} of width {hidden} cannot be split into {heads} heads")
    if decoder.experts_per_token > decoder.experts:
        raise StagemeterError(
            f"{source}: {decoder.experts_per_token} experts per token, but only {decoder.experts} experts"
        )
    if sam.downsample_channels[-1] != clip.hidden:
        raise StagemeterError(
            f"{source}: SAM's feature map has {sam.downsample_channels[-1]} channels, but CLIP takes {clip.hidden}"
        )


def transformers_config(architecture: DeepseekOCRArchitecture, attention: str = "sdpa") -> PretrainedConfig:
    """Build the configuration from which transformers makes the model.

    Parameters
    ----------
    architecture : DeepseekOCRArchitecture
        Sizes.
    attention : str
        Attention implementation: ``sdpa`` or ``eager``.
    """
    from transformers.models.unlimited_ocr.configuration_unlimited_ocr import UnlimitedOcrConfig

    sam, clip, decoder = architecture.sam, architecture.clip, architecture.decoder
    config_class: Any = UnlimitedOcrConfig
    config: PretrainedConfig = config_class(
        architectures=["UnlimitedOcrForConditionalGeneration"],
        attn_implementation=attention,
        vision_config={
            "sam_config": {
                "hidden_size": sam.hidden,
                "num_hidden_layers": sam.layers,
                "num_attention_heads": sam.heads,
                "mlp_dim": sam.intermediate,
                "patch_size": sam.patch_size,
                "window_size": sam.window_size,
                "global_attn_indexes": list(sam.global_layers),
                "image_size": sam.pretrain_size,
                "output_channels": sam.neck,
                "downsample_channels": list(sam.downsample_channels),
            },
            "encoder_config": {
                "hidden_size": clip.hidden,
                "num_hidden_layers": clip.layers,
                "num_attention_heads": clip.heads,
                "intermediate_size": clip.intermediate,
                "patch_size": clip.patch_size,
                "image_size": clip.pretrain_size,
            },
        },
        text_config={
            "hidden_size": decoder.hidden,
            "num_hidden_layers": decoder.layers,
            "num_attention_heads": decoder.heads,
            "num_key_value_heads": decoder.key_value_heads,
            "intermediate_size": decoder.intermediate,
            "mlp_layer_types": ["dense"] * decoder.dense_layers + ["sparse"] * decoder.expert_layers,
            "n_routed_experts": decoder.experts,
            "num_experts_per_tok": decoder.experts_per_token,
            "n_shared_experts": decoder.shared_experts,
            "moe_intermediate_size": decoder.expert_intermediate,
            "vocab_size": decoder.vocabulary,
            "max_position_embeddings": decoder.max_positions,
            # DeepSeek-OCR attends to everything; the window is what Unlimited-OCR adds, and may not be left out.
            "sliding_window": decoder.max_positions,
            "layer_types": ["full_attention"] * decoder.layers,
        },
    )
    return config


def view_groups(architecture: DeepseekOCRArchitecture, workload: Workload) -> list[ViewGroup]:
    """The groups of equal views that pass through the encoders: global views, and local ones if there are any."""
    sides = [(workload.global_views, workload.base_size), (workload.local_views, workload.image_size)]
    sam = architecture.sam
    return [
        ViewGroup.of(workload.batch_size * views, side, sam.patch_size, sam.window_size)
        for views, side in sides
        if views
    ]


def _view_calls(architecture: DeepseekOCRArchitecture, workload: Workload) -> list[Variables]:
    return [asdict(group) for group in view_groups(architecture, workload)]


def _prefill_calls(architecture: DeepseekOCRArchitecture, workload: Workload) -> list[Variables]:
    rows = workload.batch_size * workload.prompt_tokens
    return [
        {
            "batch": workload.batch_size,
            "tokens": workload.prompt_tokens,
            "experts_read": architecture.decoder.experts_read(rows),
        }
    ]


def _decode_calls(architecture: DeepseekOCRArchitecture, workload: Workload) -> list[Variables]:
    return [
        {
            "batch": workload.batch_size,
            "context": workload.decode_context,
            "experts_read": architecture.decoder.experts_read(workload.batch_size),
        }
    ]


def _sam_cost(architecture: DeepseekOCRArchitecture, variables: Variables) -> Cost:
    return sam_cost(architecture.sam, ViewGroup(**variables))


def _clip_cost(architecture: DeepseekOCRArchitecture, variables: Variables) -> Cost:
    return clip_cost(architecture.clip, ViewGroup(**variables))


def _projector_cost(architecture: DeepseekOCRArchitecture, variables: Variables) -> Cost:
    group = ViewGroup(**variables)
    rows = group.views * group.quarter_grid**2
    return linear(rows, architecture.projector_inputs, architecture.decoder.hidden, bias=True)


def _prefill_cost(architecture: DeepseekOCRArchitecture, variables: Variables) -> Cost:
    return prefill_cost(architecture.decoder, variables["batch"], variables["tokens"], variables["experts_read"])


def _decode_cost(architecture: DeepseekOCRArchitecture, variables: Variables) -> Cost:
    return decode_cost(architecture.decoder, variables["batch"], variables["context"], variables["experts_read"])


def _sam_parameters(architecture: DeepseekOCRArchitecture) -> StageParameters:
    parameters = sam_parameters(architecture.sam)
    return StageParameters(total=parameters, active=parameters)


def _clip_parameters(architecture: DeepseekOCRArchitecture) -> StageParameters:
    parameters, unused = clip_parameters(architecture.clip), architecture.clip.unused_parameters
    return StageParameters(total=parameters, active=parameters - unused, unused=unused)


def _projector_parameters(architecture: DeepseekOCRArchitecture) -> StageParameters:
    parameters = (architecture.projector_inputs + 1) * architecture.decoder.hidden
    return StageParameters(total=parameters, active=parameters)


def _prefill_parameters(architecture: DeepseekOCRArchitecture) -> StageParameters:
    decoder = architecture.decoder
    embedding = embedding_parameters(decoder)
    return StageParameters(
        total=embedding + decoder_parameters(decoder, decoder.experts),
        active=embedding + decoder_parameters(decoder, decoder.experts_per_token),
    )


def _decode_parameters(architecture: DeepseekOCRArchitecture) -> StageParameters:
    parameters = embedding_parameters(architecture.decoder)
    return StageParameters(total=parameters, active=parameters)


def _other_parameters(architecture: DeepseekOCRArchitecture) -> dict[str, int]:
    hidden = architecture.decoder.hidden
    return {"image_newline": hidden, "view_separator": hidden}


def _run_sam(model: Any, workload: Workload, recorder: CacheRecorder) -> None:
    for pixels in page_pixels(model, workload):
        model.get_submodule(_SAM)(pixels)


def _run_clip(model: Any, workload: Workload, recorder: CacheRecorder) -> None:
    for views, side, channels in _feature_maps(model, workload):
        model.get_submodule(_CLIP)(_empty(model, views, channels, side, side))


def _run_projector(model: Any, workload: Workload, recorder: CacheRecorder) -> None:
    width = model.get_submodule(_PROJECTOR).in_features
    for views, side, _ in _feature_maps(model, workload):
        model.get_submodule(_PROJECTOR)(_empty(model, views, side * side, width))


def _run_prefill(model: Any, workload: Workload, recorder: CacheRecorder) -> None:
    _run_decoder(model, workload, recorder, tokens=workload.prompt_tokens, cached=0)


def _run_decode(model: Any, workload: Workload, recorder: CacheRecorder) -> None:
    _run_decoder(model, workload, recorder, tokens=1, cached=workload.decode_context - 1)


def _run_decoder(model: Any, workload: Workload, recorder: CacheRecorder, tokens: int, cached: int) -> None:
    hidden = model.config.text_config.hidden_size
    model.get_submodule(_DECODER)(
        inputs_embeds=_empty(model, workload.batch_size, tokens, hidden),
        **_cache_arguments(model, workload, recorder, tokens, cached),
    )
    model.get_submodule(_HEAD)(_empty(model, workload.batch_size, 1, hidden))


def _run_whole_forward(model: Any, workload: Workload, recorder: CacheRecorder) -> None:
    """One pass of the whole model over the prompt, as ``generate`` makes it first."""
    pixels = page_pixels(model, workload)
    page: dict[str, Any] = {"pixel_values": pixels[0]}
    if workload.local_views:
        page["pixel_values_local"] = pixels[1]
        page["num_local_patches"] = [workload.local_views] * workload.batch_size
        page["patches_grid"] = [list(workload.tile_grid)] * workload.batch_size
    if workload.prompt_tokens < workload.image_tokens:
        # The length was set by hand, and the image does not fit in: both halves of the pass, one after the other.
        model.model.get_image_features(**page)
        page = {}
    _run_whole(model, workload, recorder, workload.prompt_tokens, 0, page)


def _run_whole_decode(model: Any, workload: Workload, recorder: CacheRecorder) -> None:
    """One pass of the whole model over one new token."""
    _run_whole(model, workload, recorder, 1, workload.decode_context - 1, {})


def _run_whole(
    model: Any, workload: Workload, recorder: CacheRecorder, tokens: int, cached: int, page: Mapping[str, Any]
) -> None:
    import torch

    model(
        input_ids=torch.zeros(workload.batch_size, tokens, dtype=torch.long, device=model.device),
        logits_to_keep=1,
        **page,
        **_cache_arguments(model, workload, recorder, tokens, cached),
    )


def page_pixels(model: Any, workload: Workload) -> list[torch.Tensor]:
    """Empty pixels of a batch of pages, global views first, on the model's device.

    Returns
    -------
    list of torch.Tensor
        One tensor of shape ``(views, 3, side, side)`` per group of views.
    """
    groups = [(workload.global_views, workload.base_size), (workload.local_views, workload.image_size)]
    return [_empty(model, workload.batch_size * views, 3, side, side) for views, side in groups if views]


def _feature_maps(model: Any, workload: Workload) -> list[tuple[int, int, int]]:
    """Views, side and channels of SAM's feature maps."""
    sam = model.config.vision_config.sam_config
    shapes = []
    for pixels in page_pixels(model, workload):
        group = ViewGroup.of(pixels.shape[0], pixels.shape[-1], sam.patch_size, sam.window_size)
        shapes.append((group.views, group.quarter_grid, sam.downsample_channels[-1]))
    return shapes


def _cache_arguments(
    model: Any, workload: Workload, recorder: CacheRecorder, tokens: int, cached: int
) -> dict[str, Any]:
    """What a decoder pass needs besides its tokens: positions, and a cache that holds what came before."""
    import torch

    from stagemeter.models.key_value_cache import RecordedCache

    text = model.config.text_config
    shape = (workload.batch_size, text.num_key_value_heads, cached, text.head_dim)
    cache = RecordedCache(recorder)
    for layer in range(text.num_hidden_layers if cached else 0):
        cache.fill(_empty(model, *shape), _empty(model, *shape), layer)
    positions = torch.arange(cached, cached + tokens, device=model.device)
    return {
        "position_ids": positions.expand(workload.batch_size, tokens),
        "past_key_values": cache,
        "use_cache": True,
    }


def _empty(model: Any, *shape: int) -> torch.Tensor:
    import torch

    return torch.zeros(shape, dtype=model.dtype, device=model.device)


_VIEW_VARIABLES = {
    "views": "views of one size that pass through together: batch times global views, or batch times local views",
    "side": "side of a view in pixels: base_size for global views, image_size for local ones",
    "grid": "side // patch_size, patches per side",
    "padded_grid": "grid rounded up to a multiple of window_size",
    "half_grid": "grid / 2 rounded up",
    "quarter_grid": "half_grid / 2 rounded up, tokens per side",
}
_BATCH = "batch_size"

FAMILY: Family[DeepseekOCRArchitecture] = Family(
    name=NAME,
    stages=(
        Stage(
            name="sam",
            title="SAM encoder, every view",
            modules=(_SAM,),
            owns=(_SAM,),
            parameters=_sam_parameters,
            variables=_VIEW_VARIABLES,
            calls=_view_calls,
            cost=_sam_cost,
            run=_run_sam,
        ),
        Stage(
            name="clip",
            title="CLIP encoder over SAM's feature maps, every view",
            modules=(_CLIP,),
            owns=(_CLIP,),
            parameters=_clip_parameters,
            variables=_VIEW_VARIABLES,
            calls=_view_calls,
            cost=_clip_cost,
            run=_run_clip,
        ),
        Stage(
            name="projector",
            title="projection of the features to the decoder's width",
            modules=(_PROJECTOR,),
            owns=(_PROJECTOR,),
            parameters=_projector_parameters,
            variables=_VIEW_VARIABLES,
            calls=_view_calls,
            cost=_projector_cost,
            run=_run_projector,
        ),
        Stage(
            name="prefill",
            title="decoder over the prompt, output head on its last position",
            modules=(_DECODER, _HEAD),
            owns=(_DECODER,),
            parameters=_prefill_parameters,
            variables={
                "batch": _BATCH,
                "tokens": "prompt_tokens",
                "experts_read": "min(experts, batch * tokens * experts_per_token)",
            },
            calls=_prefill_calls,
            cost=_prefill_cost,
            run=_run_prefill,
        ),
        Stage(
            name="decode",
            title="one token through decoder and output head",
            modules=(_DECODER, _HEAD),
            owns=(_HEAD,),
            parameters=_decode_parameters,
            variables={
                "batch": _BATCH,
                "context": "tokens attended to, the new one included",
                "experts_read": "min(experts, batch * experts_per_token)",
            },
            calls=_decode_calls,
            cost=_decode_cost,
            run=_run_decode,
            whole_pass="decode",
        ),
    ),
    other_parameters=_other_parameters,
    architecture_from_sizes=architecture_from_sizes,
    whole_passes={"forward": _run_whole_forward, "decode": _run_whole_decode},
)
