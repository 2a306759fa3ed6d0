"""Readers of times, for the stages of DeepSeek-OCR."""

from functools import partial

from stagemeter.profiling import readers
from stagemeter.profiling.readers import mapping

VISION = ("sam", "clip", "projector")
NameMapping = partial(mapping.NameMapping, VISION)
STAGES = NameMapping().stages


def read_profile(path, *, mapping=None, **options):
    return readers.read_profile(path, mapping=mapping or NameMapping(), **options)


def stage_names(patterns, source):
    return mapping.StageNames(patterns or NameMapping(), source)
