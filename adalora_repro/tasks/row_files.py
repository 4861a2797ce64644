"""Files of rows: JSON Lines, CSV and TSV (each also gzip-compressed), and Parquet. Every row comes with its place.

The standard library reads text, because it knows the lines; pyarrow, on which ``datasets`` is built, reads Parquet.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from adalora_repro.errors import InputError, first_line

FORMAT = "one JSON object a line, UTF-8, gzip-compressed (.jsonl.gz) or plain (.jsonl)"
LARGEST_CELL = 2**31 - 1  # characters; the csv module's own limit is less than a long document
DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".jsonl.gz", ".jsonl", ".csv.gz", ".csv", ".tsv.gz", ".tsv", ".parquet")


class BrokenLine(str):
    """Stands for a row that is none, and says why."""


def rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of each row: ``file:line``, of Parquet ``file, row number`` from 0; a row is column -> value.

    Cells of CSV and TSV are text, whatever they hold.

    Raises:
        InputError: the file cannot be read or is damaged.
    """
    ending = (path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix).lower()
    if ending == ".parquet":
        return _parquet(path)
    if ending in DELIMITERS:
        return _table(path, DELIMITERS[ending])
    return ((where, row_of(line)) for where, line in lines(path))


def lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """(file and line number, line) of a file, blank lines left out.

    Raises:
        InputError: the file cannot be read or is damaged.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from numbered(file, path)
    except (OSError, EOFError, zlib.error) as error:  # BadGzipFile is an OSError
        raise InputError(f"{path}: cannot be read ({first_line(error)}); expected {FORMAT}") from None


def numbered(file: Iterable[bytes], name: object) -> Iterator[tuple[str, bytes]]:
    """As ``lines``, of a file that is open."""
    for number, line in enumerate(file, 1):
        if line := line.strip():
            yield f"{name}:{number}", line


def row_of(line: bytes | str) -> Any:
    """The JSON value of a line, or a ``BrokenLine``."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        return BrokenLine(f"not JSON ({first_line(error)}); expected {FORMAT}")


def _table(path: Path, delimiter: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(LARGEST_CELL)
    line = 1
    try:
        with (
            gzip.open(path) if path.suffix == ".gz" else path.open("rb") as binary,
            io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text,
        ):
            reader = csv.reader(text, delimiter=delimiter, strict=True)
            header: list[str] | None = None
            for cells in reader:
                where, line = f"{path}:{line}", reader.line_num + 1  # a quoted cell may have several lines
                if not cells:
                    continue
                if header is None:
                    header = cells
                    if twice := [name for name in header if header.count(name) > 1]:
                        raise InputError(f"{where}: column '{twice[0]}' appears twice")
                elif len(cells) != len(header):
                    yield where, BrokenLine(f"{len(cells)} cells, but the first line names {len(header)} columns")
                else:
                    yield where, dict(zip(header, cells, strict=True))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)}); expected UTF-8") from None
    except csv.Error as error:
        raise InputError(
            f"{path}:{line}: {first_line(error)}; a cell with a quote, a delimiter or a line break must be quoted"
        ) from None


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    from pyarrow import ArrowException, parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                yield f"{path}, row {number}", row
                number += 1
    except (OSError, ValueError, ArrowException) as error:  # ArrowInvalid is a ValueError
        raise InputError(f"{path}: cannot be read ({first_line(error)}); expected Parquet") from None
