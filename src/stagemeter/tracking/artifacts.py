"""Files of a run, which come from memory: what lies on the disk can be another process's by now."""

from __future__ import annotations

from collections.abc import Mapping

import mlflow

from stagemeter.core.scratch import scratch_folder


def log_files(run_id: str, contents: Mapping[str, str | bytes]) -> None:
    """Log files to a run.

    Parameters
    ----------
    run_id : str
        The run.
    contents : mapping
        What is in each, by name; text becomes UTF-8.
    """
    # MLflow takes files alone, so they go through a folder of this process's own.
    with scratch_folder() as folder:
        for name, content in contents.items():
            data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
            (folder / name).write_bytes(data)
        mlflow.MlflowClient().log_artifacts(run_id, str(folder))
