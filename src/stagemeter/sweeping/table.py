"""The table of a sweep: its columns, and its parts on disk until the table is complete."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.json_text import read_json
from stagemeter.core.scratch import hold, scratch_folder
from stagemeter.core.versions import package_versions
from stagemeter.core.workload import stable_hash
from stagemeter.core.writing import replacing, write_whole
from stagemeter.sweeping.evaluate import evaluate_rows
from stagemeter.sweeping.grid import Grid

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows of a part, evaluated at a time.
ROWS_PER_PART = 50_000
#: Digits of a decimal number of 128 bits.
_DIGITS = 38
_MANIFEST = "sweep.json"


@dataclass(frozen=True)
class Part:
    """Rows of one grid that are evaluated together."""

    number: int
    grid: int
    start: int
    stop: int


def rows_table(grid: Grid, start: int, stop: int) -> pa.Table:
    """Evaluate rows of a grid as an Arrow table, the model in its first column."""
    import pyarrow as pa

    columns = evaluate_rows(grid, start, stop)
    length = stop - start
    arrays: dict[str, Any] = {"model": pa.array([grid.model] * length).dictionary_encode()}
    for name, values in columns.items():
        kind = pa.decimal128(_DIGITS) if values.dtype == object else None
        array = pa.array(values, kind, from_pandas=values.dtype.kind == "f")
        arrays[name] = array.dictionary_encode() if pa.types.is_string(array.type) else array
    return pa.table(arrays)


def rows_parquet(grid: Grid, start: int, stop: int) -> bytes:
    """Evaluate rows of a grid as a Parquet file, which a worker sends back."""
    import pyarrow.parquet as pq

    stream, table = io.BytesIO(), rows_table(grid, start, stop)
    pq.write_table(table, stream, **_encoding(table.schema))
    return stream.getvalue()


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """Return the options to write with: most numbers differ, and a dictionary of them is slow and large."""
    import pyarrow as pa

    words = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    return {"compression": "zstd", "use_dictionary": words}


class PartsFolder:
    """The parts of a sweep, in a folder beside the table.

    A part is complete or absent. The folder names its sweep, so that no other sweep continues it.
    """

    def __init__(self, output: Path, grids: list[Grid], rows_per_part: int = ROWS_PER_PART) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name}.parts")
        self._grids = grids
        self._lock: int | None = None
        self.parts = list(_split(grids, rows_per_part))
        self._identity = {
            "sweep": stable_hash({"grids": [grid.hash for grid in grids]}),
            "rows": sum(grid.size for grid in grids),
            "rows_per_part": rows_per_part,
            # Another version can have other columns, and other meanings of them.
            "version": package_versions()["stagemeter"],
        }

    def require_usable(self, resume: bool) -> None:
        """Refuse to mix two sweeps, or to continue this one without `resume`."""
        if not self.folder.exists():
            return
        if not resume:
            raise StagemeterError(
                f"{self.folder}: holds the parts of an interrupted sweep. Give --resume to continue it, or delete the "
                "folder"
            )
        try:
            found = read_json(self.folder / _MANIFEST)
        except StagemeterError:
            found = None
        if found != self._identity:
            raise StagemeterError(
                f"{self.folder}: is of another sweep, or of another version. Give the same options, or delete the "
                "folder"
            )

    def open(self, resume: bool) -> list[Part]:
        """Make the folder, or open it, and return the missing parts; refuse a folder that another process holds."""
        self.require_usable(resume)
        if not self.folder.exists():
            self._make()
        self._lock = os.open(self.folder / _MANIFEST, os.O_RDONLY)
        if hold(self._lock) is False:
            raise StagemeterError(
                f"{self.folder}: another process evaluates this sweep. Wait for it, or give another --output"
            )
        return [part for part in self.parts if not self._path(part).exists()]

    def _make(self) -> None:
        """Make the folder with its manifest in one step: of two processes that try, one is refused."""
        manifest = json.dumps(self._identity, indent=2) + "\n"
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(self.output.parent) as made:
            write_whole(made / "parts" / _MANIFEST, manifest)
            try:
                (made / "parts").rename(self.folder)
            except OSError as error:
                raise StagemeterError(
                    f"{self.folder}: cannot be made: {error.strerror}. Another sweep may write to the same --output"
                ) from error

    def write(self, part: Part, content: bytes) -> None:
        """Write a part."""
        write_whole(self._path(part), content)

    def leave(self) -> None:
        """Remove unfinished files, and the folder if it holds no part."""
        self._close()
        if not any(self._path(part).exists() for part in self.parts):
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        # An interrupt can come after a file is made and before it is removed.
        for unfinished in self.folder.glob(".part-*"):
            unfinished.unlink(missing_ok=True)

    def merge(self) -> None:
        """Write the parts to the table, in their order."""
        import pyarrow as pa

        try:
            # Among the parts: a killed process leaves nothing beside the table but their folder.
            with replacing(self.output, beside=self.folder / "part-of-all") as temporary:
                self._write_together(temporary)
        except pa.ArrowException as error:
            raise StagemeterError(
                f"{self.output}: cannot be written: {error}. The parts are in {self.folder}"
            ) from error

    def remove(self) -> None:
        """Remove the parts, once the table is complete."""
        self._close()
        shutil.rmtree(self.folder)

    def _close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write_together(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        # Models have different stages: the table has the columns of all, and nulls where a model lacks one.
        first = {part.grid: part for part in reversed(self.parts)}
        schema = pa.unify_schemas([pq.read_schema(self._path(first[grid])) for grid in sorted(first)])
        writer = pq.ParquetWriter(path, schema, **_encoding(schema))
        for part in self.parts:
            table = pq.read_table(self._path(part))
            if table.num_rows != part.stop - part.start:
                raise StagemeterError(
                    f"{self._path(part)}: holds {table.num_rows} rows, not {part.stop - part.start}. Delete it, and "
                    "continue by --resume"
                )
            writer.write_table(pa.table([_column(table, field) for field in schema], schema=schema))
        writer.close()

    def _path(self, part: Part) -> Path:
        return self.folder / f"part-{part.number:06d}.parquet"


def _column(table: pa.Table, field: pa.Field) -> pa.Array:
    """Return a column of a table, filled with nulls where the table lacks it."""
    import pyarrow as pa

    if field.name in table.column_names:
        return table[field.name]
    return pa.nulls(table.num_rows, field.type)


def _split(grids: list[Grid], rows_per_part: int) -> Iterator[Part]:
    number = 0
    for index, grid in enumerate(grids):
        for start in range(0, grid.size, rows_per_part):
            yield Part(number, index, start, min(grid.size, start + rows_per_part))
            number += 1


def require_space(folder: Path, grids: list[Grid]) -> None:
    """Refuse a sweep whose table is too large for the disk, judged by some of its rows."""
    rows = sum(grid.size for grid in grids)
    sample = min(grids[0].size, 2000)
    needed = len(rows_parquet(grids[0], 0, sample)) / sample * rows
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    # Parts and table are on disk at the same time.
    if 2 * needed > free:
        raise StagemeterError(
            f"--output {folder}: {rows:,} rows take about {2 * needed / 1e9:,.3g} GB while they are put together, and "
            f"{free / 1e9:,.3g} GB are free. Give a smaller grid"
        )
