"""Views of pages under the files of a processor, and the processors themselves."""

from __future__ import annotations

from importlib import import_module

from hypothesis import settings
from hypothesis import strategies as st

from stagemeter.models.lookup import ModelDescription, describe_model
from stagemeter.models.pages.processor_files import ProcessorFiles
from stagemeter.models.pages.settings import ProcessorSettings

many = settings(max_examples=60, deadline=None)
sides = st.integers(1, 4000)
FILE = "preprocessor_config.json"


def pil(model: str, name: str):
    """Return a processor of transformers that needs no torchvision."""
    return getattr(import_module(f"transformers.models.{model}.image_processing_pil_{model}"), name)


def views(model: ModelDescription | str, width: int, height: int, file: dict, whole: dict | None = None, **options):
    """Return what a page becomes under the settings of a file."""
    described = describe_model(model) if isinstance(model, str) else model
    files = ProcessorFiles(
        image=file,
        image_source=FILE,
        whole=whole or {},
        whole_source=None if whole is None else "processor_config.json",
    )
    rules = described.family.rules(described.architecture, ProcessorSettings(files, options))
    return rules.page(width, height)
