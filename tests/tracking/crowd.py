"""Sixteen processes that analyze into one store at once: ``python crowd.py EXPERIMENT``.

They are forked from one that has imported what they need, since sixteen imports of MLflow take two cores a minute.
"""

import importlib
import multiprocessing
import sys

from stagemeter.cli import main

for name in ("mlflow", "stagemeter.application.analyze", "stagemeter.tracking.log"):
    importlib.import_module(name)


def analyze(experiment: str, number: int) -> None:
    sys.argv[1:] = ["analyze", "--estimate", "--mode", "tiny", "--new-tokens", str(100 + number),
                    "--experiment", experiment, "--output-dir", f"report-{number}"]  # fmt: skip
    main()


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=analyze, args=(sys.argv[1], number)) for number in range(16)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in processes))
