"""SAM's sizes as configurations give them."""

from __future__ import annotations

from stagemeter.core.errors import StagemeterError
from stagemeter.models.settings import Settings
from stagemeter.models.vision.sam import SamArchitecture


def sam_architecture(sizes: Settings, downsample_channels: tuple[int, int]) -> SamArchitecture:
    """Read the sizes of SAM's encoder.

    Parameters
    ----------
    sizes : Settings
        The encoder's configuration.
    downsample_channels : tuple of int
        Channels of the two strided convolutions behind it.

    Raises
    ------
    StagemeterError
        If a size is missing, or sizes contradict one another.
    """
    sizes.split("hidden_size", "num_attention_heads")
    layers = sizes.whole("num_hidden_layers")
    whole = sizes.values.get("global_attn_indexes")
    if not isinstance(whole, (list, tuple)) or any(index not in range(layers) for index in whole):
        raise StagemeterError(f"{sizes.source}: global_attn_indexes is {whole!r}; it must list some of {layers} layers")
    side, patch = sizes.whole("image_size"), sizes.whole("patch_size")
    if side % patch:
        raise StagemeterError(f"{sizes.source}: image_size {side} cannot be split into patches of patch_size {patch}")
    return SamArchitecture(
        hidden=sizes.whole("hidden_size"),
        layers=layers,
        heads=sizes.whole("num_attention_heads"),
        intermediate=sizes.whole("mlp_dim"),
        patch_size=patch,
        window_size=sizes.whole("window_size"),
        global_layers=tuple(sorted(set(whole))),
        pretrain_size=side,
        neck=sizes.whole("output_channels"),
        downsample_channels=downsample_channels,
    )
