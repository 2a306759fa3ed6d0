"""Small models, and counts by brute force, are those of ``tests/modules``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "modules"))
