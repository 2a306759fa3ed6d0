"""Documents as files, pictures and tables. Everything here reads documents, and never the model."""

from stagemeter.export.fvcore_table import write_static_compute_fvcore_table
from stagemeter.export.report import write_static_compute_json, write_static_compute_markdown

__all__ = ["write_static_compute_fvcore_table", "write_static_compute_json", "write_static_compute_markdown"]
