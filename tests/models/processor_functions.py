"""Functions of image processors of transformers that cannot be imported without torchvision."""

import ast
import math
from collections import defaultdict
from functools import cache, lru_cache
from importlib.resources import files

import torch
from transformers.image_utils import SizeDict
from transformers.models.minicpm_ocr.image_processing_minicpm_ocr import MiniCPMOcrImageProcessor
from transformers.video_utils import VideoMetadata


def functions_of(model, names):
    """Return functions from the source of an image processor whose module needs torchvision."""
    return _functions(model, tuple(names))


@cache
def _functions(model, names):
    text = (files(f"transformers.models.{model}") / f"image_processing_{model}.py").read_text(encoding="utf-8")
    found = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name in names]
    assert [node.name for node in found] == list(names)
    namespace = {"math": math, "lru_cache": lru_cache, "defaultdict": defaultdict, "torch": torch, "SizeDict": SizeDict}
    exec(compile(ast.Module(found, []), model, "exec"), namespace)
    return [namespace[name] for name in names]


@cache
def method_of(model, kind, owner, name):
    """Return a method from the source of a processor whose module needs torchvision."""
    text = (files(f"transformers.models.{model}") / f"{kind}_{model}.py").read_text(encoding="utf-8")
    (owned,) = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == owner)
    found = [node for node in owned.body if isinstance(node, ast.FunctionDef) and node.name == name]
    namespace = {"math": math, "torch": torch, "VideoMetadata": VideoMetadata}
    exec(compile(ast.Module(found, []), model, "exec"), namespace)
    return namespace[name]


def views_of_minicpm(width, height, patch_size, merges_more):
    """Return the views of a page: as a whole, then its slices."""
    processor, mode = object.__new__(MiniCPMOcrImageProcessor), "16x" if merges_more else "4x"
    grid = processor.get_sliced_grid((height, width), 9, 448)
    rows, columns = processor.find_best_resize((height, width), 448, patch_size, mode, allow_upscale=grid is None)
    views = [(columns, rows)]
    if grid is not None:
        rows, columns = processor.get_refine_size((height, width), grid, 448, patch_size, mode, allow_upscale=True)
        views += [(columns // grid[1], rows // grid[0])] * (grid[0] * grid[1])
    return views
