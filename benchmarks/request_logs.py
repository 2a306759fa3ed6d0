"""Logs of growing size: the processor's seconds from process start to the costs of all requests, and memory.

python benchmarks/request_logs.py
"""

from __future__ import annotations

import sys
import tempfile
from itertools import product
from pathlib import Path

import click
import numpy as np
import pandas
from timing import peak_memory, print_table, processor_seconds

#: Requests of the logs, and the limits of seconds.
SIZES = {100_000: "", 1_000_000: "5 s", 10_000_000: ""}
MODELS = ("llama-3.1-8b", "deepseek-v3")
#: A model that reads pictures, and sizes of them; a request has up to three.
PICTURES = ("qwen2.5-vl-7b", ("600x800", "1024x768", "1654x2339", "448x336"))
#: Prompts as a whole, and in chunks.
CHUNKS = ((), ("--chunk-tokens", "512"))


def write_log(path: Path, count: int, pictures: bool) -> None:
    """Write a log of some requests, half of which find a part of their prompt in the cache, or with pictures."""
    random = np.random.default_rng(0)
    prompt, output = random.integers(1, 32_000, count), random.integers(1, 2_000, count)
    cached = (random.random(count) * prompt).astype(np.int64) // 16 * 16 * random.integers(0, 2, count)
    columns = {"prompt_tokens": prompt, "cached_tokens": np.minimum(cached, prompt - 1), "output_tokens": output}
    table = pandas.DataFrame(columns)
    if pictures:
        chosen = random.choice(PICTURES[1], (count, 3)).tolist()
        each = zip(chosen, random.integers(0, 4, count).tolist(), strict=True)
        table["image_sizes"] = [" ".join(sizes[:number]) for sizes, number in each]
        # The pages of a request take up to 14,868 tokens.
        table = table.assign(prompt_tokens=prompt + 16_000, cached_tokens=0)
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False)


@click.command()
@click.option("--largest", default=max(SIZES), show_default=True, help="Most requests of a log.")
def main(largest: int) -> None:
    """Print how time and memory grow with a log."""
    rows, tables = [], {}
    for count, limit in SIZES.items():
        logs = [(kind, False) for kind in ("csv", "parquet", "jsonl")] + [("csv", True)]
        for kind, pictures in logs if count <= largest else ():
            with tempfile.TemporaryDirectory() as folder:
                log = Path(folder) / f"log.{kind}"
                write_log(log, count, pictures)
                for model, chunks in [(PICTURES[0], ())] if pictures else product(MODELS, CHUNKS):
                    asked = ["analyze", "--model", model, "--requests", str(log), "--no-track", *chunks]
                    run = [sys.executable, "-m", "stagemeter", *asked]
                    seconds, memory = processor_seconds(run, folder), peak_memory(run, folder)
                    if kind == "csv" and not pictures:
                        tables[count, model, chunks] = seconds
                    table = tables.get((count, model, chunks))
                    ratio = "" if table is None else f"{seconds / table:.2f}"
                    more = [*("in chunks" for _ in chunks[:1]), *(["0 to 3 pictures each"] if pictures else [])]
                    name = ", ".join([model, f"{count:,} requests", kind, *more])
                    rows.append((name, f"{seconds:.1f} s", limit, ratio, f"{memory / 2**20:,.0f} MiB"))
    print_table(rows, ("log", "of the processor", "limit", "beside CSV", "peak memory"))


if __name__ == "__main__":
    main()
