"""Names of `stagemeter.profiling.readers.engines` that moved there."""

from stagemeter.profiling.readers.engines.address import fetch
from stagemeter.profiling.readers.engines.pages import finished, page_of, processed, profile_of_growth

__all__ = ["fetch", "finished", "page_of", "processed", "profile_of_growth"]
