"""Readers of times from other tools: traces, exports, summaries, tables, and a serving engine's metrics."""

from stagemeter.profiling.readers.detection import read_profile
from stagemeter.profiling.readers.engines.address import scrape
from stagemeter.profiling.readers.engines.pages import read_scrape_files, read_scrapes
from stagemeter.profiling.readers.mapping import NameMapping

__all__ = ["NameMapping", "read_profile", "read_scrape_files", "read_scrapes", "scrape"]
