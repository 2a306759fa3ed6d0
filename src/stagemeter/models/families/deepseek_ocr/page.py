"""Views of a page in DeepSeek-OCR: the padded page, its tiles, and the tensors of both.

The views are those of ``infer`` and ``dynamic_preprocess`` in ``modeling_deepseekocr.py`` of the
``deepseek-ai/DeepSeek-OCR`` checkpoint repository. torch is imported only to make a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.families.deepseek_ocr.prompt import build_prompt
from stagemeter.models.families.deepseek_ocr.tiling import NO_TILES

if TYPE_CHECKING:
    import torch

#: Padding around a page on its global view: the authors' ``int(0.5 * 255)`` for each channel.
PADDING_COLOUR = (127, 127, 127)
#: Mean and standard deviation of each channel in the authors' normalization, on a scale of 0 to 1.
PIXEL_MEAN, PIXEL_STD = 0.5, 0.5
#: Up to this side the authors' ``infer`` stretches a page to its single view instead of padding it.
_LARGEST_STRETCHED_VIEW = 640


def request_inputs(
    workload: Workload, load: Callable[[], Image.Image], crops: bool, device: torch.device
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the inputs of a request as the authors' ``infer`` takes them: token ids, and pages by argument.

    Token ids are int64 of shape ``(batch, prompt tokens)``; the arguments are ``images``, ``images_seq_mask`` and
    ``images_spatial_crop``. `load` loads the page in mode RGB, except on the meta device.
    """
    import torch

    prompt = build_prompt(workload.image_tokens, workload.text_tokens)
    dtype, batch = getattr(torch, workload.dtype), workload.batch_size
    base, tile = workload.base_size, workload.image_size
    if device.type == "meta":
        local_pixels = torch.empty(workload.local_views, 3, tile, tile, dtype=dtype, device=device)
        global_pixels = torch.empty(1, 3, base, base, dtype=dtype, device=device)
    else:
        page = load()
        stretch = not crops and base <= _LARGEST_STRETCHED_VIEW
        global_pixels = pixel_tensor([global_view(page, base, stretch)], dtype).to(device)
        cut = tiles(page, workload.tile_grid, tile)
        local_pixels = pixel_tensor(cut, dtype).to(device) if cut else global_pixels.new_empty(0, 3, tile, tile)
    kwargs = {
        "images": [(local_pixels, global_pixels)] * batch,
        "images_seq_mask": torch.tensor([prompt.image_mask] * batch, device=device),
        "images_spatial_crop": torch.tensor([workload.tile_grid] * batch, device=device),
    }
    return torch.tensor([prompt.input_ids] * batch, device=device), kwargs


def page_arguments(model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Translate pages from the arguments of the authors' code to those of transformers' model."""
    import torch

    local_views, global_views = zip(*model_kwargs["images"], strict=True)
    arguments: dict[str, Any] = {"pixel_values": torch.cat(global_views)}
    local_pixels = torch.cat(local_views)
    if len(local_pixels):
        arguments["pixel_values_local"] = local_pixels
        arguments["num_local_patches"] = [len(views) for views in local_views]
        arguments["patches_grid"] = model_kwargs["images_spatial_crop"].tolist()
    return arguments


def view_pixels(page: Image.Image, workload: Workload) -> dict[str, torch.Tensor]:
    """Return the pixels of the views of a page, by the argument of transformers' model."""
    import torch

    crops = workload.local_views > 0 or workload.image_size != workload.base_size
    _, model_kwargs = request_inputs(workload, lambda: page, crops, torch.device("cpu"))
    return {name: value for name, value in page_arguments(model_kwargs).items() if isinstance(value, torch.Tensor)}


def global_view(page: Image.Image, side: int, stretch: bool = False) -> Image.Image:
    """Lay the whole RGB page on a square, or raise StagemeterError if it is too thin to leave a pixel.

    `stretch` fills the square; otherwise the page keeps its proportions and is padded with grey.
    """
    if stretch:
        return page.resize((side, side))
    # The rounding is ImageOps.contain's, which then fails on a size of 0.
    if round(min(page.size) / max(page.size) * side) == 0:
        raise StagemeterError(
            f"a page of {page.width} x {page.height} pixels: padded to {side} x {side}, it keeps less than a pixel of "
            "its shorter side. Cut the page into shorter pieces"
        )
    return ImageOps.pad(page, (side, side), color=PADDING_COLOUR)


def tiles(page: Image.Image, grid: tuple[int, int], tile_size: int) -> list[Image.Image]:
    """Stretch an RGB page over a grid of square tiles, and cut it row by row, from left to right.

    The grid is columns and rows; ``(1, 1)`` has no tiles.
    """
    if grid == NO_TILES:
        return []
    columns, rows = grid
    stretched = page.resize((columns * tile_size, rows * tile_size))
    corners = [(column * tile_size, row * tile_size) for row in range(rows) for column in range(columns)]
    return [stretched.crop((left, top, left + tile_size, top + tile_size)) for left, top in corners]


def pixel_tensor(images: Sequence[Image.Image], dtype: torch.dtype) -> torch.Tensor:
    """Stack square RGB views of one size into a tensor ``(views, 3, side, side)`` with values in [-1, 1].

    The normalization itself runs in float32, as the authors' does.
    """
    import numpy
    import torch

    pixels = torch.from_numpy(numpy.stack([numpy.asarray(image) for image in images]))
    channels_first = pixels.permute(0, 3, 1, 2).contiguous().to(torch.float32)
    return channels_first.div_(255).sub_(PIXEL_MEAN).div_(PIXEL_STD).to(dtype)
