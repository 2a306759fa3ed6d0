"""FLOPs of the same workload as other projects count them: `compare` puts their conventions beside a report."""

from __future__ import annotations

from stagemeter.conventions.compare import Comparison as Comparison
from stagemeter.conventions.compare import Row as Row
from stagemeter.conventions.compare import compare as compare
