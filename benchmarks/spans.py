"""The span processor: processor time that it adds to a call that MLflow traces, and to the first one.

python benchmarks/spans.py
"""

from __future__ import annotations

import base64
import io
import statistics
import tempfile
import time
from typing import Any

import click
import mlflow
from PIL import Image
from timing import print_table

import stagemeter

#: Milliseconds that a call after the first may take.
LIMIT = 1.0
MODELS = ("llama-3.1-8b", "deepseek-v3", "qwen2.5-vl-7b", "deepseek-ocr")
PAGE = (1654, 2339)


def traced(model: str, prompt: int, inputs: dict[str, Any]) -> None:
    """Trace a call without a server."""
    with mlflow.start_span("call", span_type="CHAT_MODEL", attributes={"mlflow.llm.model": model}) as span:
        span.set_inputs(inputs)
        usage = {"input_tokens": prompt, "output_tokens": 200, "cache_read_input_tokens": 0}
        span.set_attribute("mlflow.chat.tokenUsage", usage)


@click.command()
@click.option("--calls", default=200, show_default=True, help="Calls of each model.")
def main(calls: int) -> None:
    """Print the processor time of the first call and the median of the others."""
    data = io.BytesIO()
    Image.effect_noise(PAGE, 64).save(data, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    picture = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": address}}]}]}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        for model in MODELS:
            processor = stagemeter.trace_processor(model, device="H100-SXM", price_per_hour=2.5)
            seconds: list[float] = []

            def timed(span: Any, process: Any = processor, seconds: list[float] = seconds) -> None:
                start = time.thread_time()
                process(span)
                seconds.append(time.thread_time() - start)

            inputs = picture if stagemeter.describe_model(model).family.reads_pages else {"messages": []}
            with mlflow.tracing.configure(span_processors=[timed]):
                for number in range(calls):
                    traced(model, 6000 + number, inputs)
            first, later = 1000 * seconds[0], 1000 * statistics.median(seconds[1:])
            name = f"{model}, a page of {PAGE[0]}x{PAGE[1]}" if inputs is picture else f"{model}, text"
            rows.append((name, f"{first:.1f} ms", f"{later:.2f} ms", f"{LIMIT:g} ms"))
        mlflow.flush_trace_async_logging()
    print_table(rows, ("calls of", "first", "later ones", "limit"))


if __name__ == "__main__":
    main()
