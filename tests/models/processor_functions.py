"""Functions of image processors of transformers that cannot be imported without torchvision."""

import ast
import math
from collections import defaultdict
from functools import cache, lru_cache
from importlib.resources import files

import torch
from transformers.image_utils import SizeDict


def functions_of(model, names):
    """Return functions of an image processor whose module needs torchvision, taken out of its text as they are."""
    return _functions(model, tuple(names))


@cache
def _functions(model, names):
    text = (files(f"transformers.models.{model}") / f"image_processing_{model}.py").read_text(encoding="utf-8")
    found = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name in names]
    assert [node.name for node in found] == list(names)
    namespace = {"math": math, "lru_cache": lru_cache, "defaultdict": defaultdict, "torch": torch, "SizeDict": SizeDict}
    exec(compile(ast.Module(found, []), model, "exec"), namespace)
    return [namespace[name] for name in names]
