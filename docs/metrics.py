"""Write the table of metrics in docs/mlflow.md: ``python docs/metrics.py``. It comes from `stagemeter.core.metrics`."""

from __future__ import annotations

import re
from pathlib import Path

from stagemeter.core.metrics import METRICS

PAGE = Path(__file__).with_name("mlflow.md")


def page() -> str:
    """Return the page with the table as the code has it."""
    lines = ["| metric | unit | runs | meaning |", "| :--- | :--- | :--- | :--- |"]
    for metric in METRICS:
        names = [metric.name + "/"] if metric.in_runs is None else [f"{metric.name}/{part}" for part in metric.in_runs]
        kinds = ", ".join(f"`{kind}`" for kind in metric.readers) if names else "documents alone"
        shown = ", ".join(f"`{name}`" for name in names or [f"{metric.name}/"])
        lines.append(f"| {shown} | {metric.unit} | {kinds} | {metric.meaning} |")
    text = PAGE.read_text(encoding="utf-8")
    table = "\n".join(lines)
    return re.sub(r"(<!-- metrics -->\n).*?(\n<!-- end -->)", rf"\1\n{table}\n\2", text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
