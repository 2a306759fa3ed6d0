"""A report becomes files. Everything here reads the report and never the model."""

from stagemeter.export.fvcore_table import write_static_compute_fvcore_table
from stagemeter.export.json_file import write_static_compute_json
from stagemeter.export.markdown import write_static_compute_markdown

__all__ = ["write_static_compute_fvcore_table", "write_static_compute_json", "write_static_compute_markdown"]
