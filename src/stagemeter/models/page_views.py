"""Views of pages: what a processor makes of a page, the rules that decide it, and the workload that they become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stagemeter.core.workload import OWN, TEXT, FurtherPages, Workload


@dataclass(frozen=True, slots=True)
class PageViews:
    """Views of a page.

    Attributes
    ----------
    global_views, local_views : int
        Views of the whole page, and of its tiles.
    width, height : int
        Size of each view in pixels; tiles may differ, see `tile_side`.
    tile_grid : tuple of int
        Columns and rows of tiles; ``(1, 1)`` if the page is not tiled.
    image_tokens : int
        Tokens of all views.
    tile_side : int or None
        Side of a tile in pixels if it differs from that of a global view.
    padded_tokens : int or None
        Tokens that the page is padded to before the encoder, if they differ from those of the published models.
    mode : str
        Name of the resolution mode; `OWN` if the model's own processor decides the views.
    """

    global_views: int
    local_views: int
    width: int
    height: int
    tile_grid: tuple[int, int]
    image_tokens: int
    tile_side: int | None = None
    padded_tokens: int | None = None
    mode: str = OWN

    @property
    def base_size(self) -> int:
        """The longer side of a global view in pixels."""
        return max(self.width, self.height)

    @property
    def image_size(self) -> int:
        """Side of a tile in pixels."""
        return self.tile_side or self.base_size


#: Views of a request of text alone.
NO_PAGE = PageViews(0, 0, 0, 0, (1, 1), 0, mode=TEXT)


@dataclass(frozen=True, slots=True)
class PageRules:
    """Views of pages and videos under the settings of a processor and a request.

    `page` takes width and height in pixels, `video` frames, width and height. `frames` takes a video's number of frames
    and how many a second (None: unknown), and returns how many are sampled. Both are None if the model reads no videos.
    `notes` say which limits decide some views; None: the settings say it, see `ProcessorSettings.note`. `among`
    replaces `page` in requests of several pages, if it is not None.
    """

    page: Callable[[int, int], PageViews]
    video: Callable[[int, int, int], PageViews] | None = None
    notes: Callable[[PageViews], tuple[str, ...]] | None = None
    frames: Callable[[int, float | None], int] | None = None
    among: Callable[[int, int], PageViews] | None = None


@dataclass(frozen=True, slots=True)
class RequestPages:
    """Equal pages, one after another: their number, width and height in pixels, and views; `tags` are around each."""

    times: int
    size: tuple[int, int]
    views: PageViews
    tags: int = 0


def workload_of_views(
    page: tuple[int, int], views: PageViews, further: Sequence[RequestPages] = (), **asked: Any
) -> Workload:
    """Return the workload of a page that becomes some views, and of further ones.

    `page` is its width and height in pixels, zeros for text alone; its views are `NO_PAGE` then. `asked` are the fields
    of `Workload` that the pages do not decide.
    """
    pages = tuple(FurtherPages(**_fields(one.size, one.views), times=one.times, tags=one.tags) for one in further)
    return Workload(**_fields(page, views), further_pages=pages or None, **asked)


def _fields(page: tuple[int, int], views: PageViews) -> dict[str, Any]:
    """Return the fields of `stagemeter.core.workload.PageOfWorkload`."""
    return {
        "image_width": page[0],
        "image_height": page[1],
        "mode": views.mode,
        "base_size": views.base_size,
        "image_size": views.image_size,
        "global_views": views.global_views,
        "local_views": views.local_views,
        "tile_grid": views.tile_grid,
        "image_tokens": views.image_tokens,
        "view_size": None if views.width == views.height else (views.width, views.height),
        "padded_tokens": views.padded_tokens,
    }
