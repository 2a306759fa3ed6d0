"""Qwen 3-VL, dense and mixture of experts: a page at its own resolution, a decoder like Qwen 3's.

Features of some layers of the encoder are also merged, and added to the results of the decoder's first layers.
Source: transformers, ``modeling_qwen3_vl.py``, ``modeling_qwen3_vl_moe.py``.
"""

from __future__ import annotations

from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.families.qwen2_vl import PATCH_NOTES, QwenVLArchitecture, decoder_of_type, qwen_vl_family
from stagemeter.models.family import Note
from stagemeter.models.pages.patches import VideoProcessor
from stagemeter.models.pages.sampling import FrameSampling
from stagemeter.models.settings import Settings
from stagemeter.models.vision.merging import QwenVision, qwen_vision

#: Type of the language model by the ``model_type`` of the whole.
_DECODERS = {"qwen3_vl": "qwen3", "qwen3_vl_moe": "qwen3_moe"}
#: Limits of a page's pixels in the published processors (``preprocessor_config.json``).
_MIN_PIXELS, _MAX_PIXELS = 65_536, 16_777_216
#: Limits hold for all frames together. Source: transformers, ``video_processing_qwen3_vl.py``; published limits are
#: from ``video_preprocessor_config.json``.
TOGETHER = VideoProcessor(
    (128 * 32 * 32, 32 * 32 * 768),
    patch_size=16,
    tokens=768,
    together=True,
    sampling=FrameSampling(samples=True, fps=2, whole_patches=False),
    published=(4_096, 25_165_824),
)


def _read(settings: Settings) -> QwenVLArchitecture:
    decoder = decoder_of_type(settings, _DECODERS[settings.values["model_type"]])
    return QwenVLArchitecture(later_vision(settings.part("vision_config"), decoder, deep=True), decoder)


def later_vision(sizes: Settings, decoder: Decoder, deep: bool) -> QwenVision:
    """Read the encoder of Qwen 3.5, or of Qwen 3-VL, which is `deep`: earlier features also reach the decoder."""
    return qwen_vision(
        sizes,
        decoder.hidden,
        (_MIN_PIXELS, _MAX_PIXELS),
        intermediate=sizes.whole("intermediate_size"),
        gated=False,
        norm_bias=True,
        patch_bias=True,
        positions=sizes.whole("num_position_embeddings"),
        deep_mergers=len(sizes.indices("deepstack_visual_indexes")) if deep else 0,
    )


#: Notes on pages and videos of Qwen 3-VL and Qwen 3.5.
PAGE_NOTES = (
    *PATCH_NOTES,
    Note(
        "the time before each two frames of a video is text: count it with the text tokens",
        applies=lambda decoder, workload: workload.video_frames is not None,
    ),
)

FAMILY = qwen_vl_family(
    name="qwen3-vl",
    title="Qwen 3-VL: a page at its own resolution, features of several layers to the decoder",
    model_types=tuple(_DECODERS),
    read=_read,
    shipped=("qwen3-vl-2b", "qwen3-vl-4b", "qwen3-vl-8b", "qwen3-vl-30b-a3b"),
    notes=PAGE_NOTES,
    deep=True,
    positions=True,
    videos=TOGETHER,
)
