"""What a report is: the declaration of a table, the runs that it is about, a report of another kind.

A module of this package with a ``SPEC`` is a table, one with a ``REPORT`` any other report; each is a subcommand of
``adalora-report`` by being there.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_repro.config import catalog
from adalora_repro.config.words import word
from adalora_repro.records.run_record import RunRecord, read_all

if TYPE_CHECKING:
    import pandas as pd

DATA_SOURCES = ("hub", "local", "sample")  # in the order of preference; never mixed in one table
PROTOCOLS = ("paper", "released")
CHECKPOINTS = ("final", "best")
PAPER_BACKBONE = "deberta-v3-base"  # of the paper's tables but Table 3
AVERAGE_COLUMN = "avg"

Record = tuple[Path, RunRecord]


@dataclass(frozen=True)
class Column:
    """One column of a table: figures of the runs of one task. Several columns may be of one task.

    Attributes:
        metrics: metrics of the record, or other columns of ``frame.COLUMNS`` (``time.train_s``, ``rank_entropy``).
        paper: the columns of the paper's CSV for them; none for figures that the paper does not have.
        mean_of: ``metrics`` is one name, of the mean of these metrics.
        settings: those that a reader must know to compare the runs; a note lists their values.
        better: ``higher``, ``lower`` or ``neither``: which figure of the column is bold.
    """

    task: str
    heading: str
    unit: str
    metrics: tuple[str, ...]
    paper: tuple[str, ...] = ()
    mean_of: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    better: str = "higher"

    @property
    def printed(self) -> tuple[str, ...]:
        """A column of the paper's CSV for each metric, "" for none."""
        return self.paper or ("",) * len(self.metrics)


@dataclass(frozen=True)
class Spec:
    """One table of the paper.

    Attributes:
        paper_file: in ``tables/paper``; columns ``method``, ``budget``, ``params_label`` and those of ``columns``.
        backbone: the one the paper used, and the default of the report.
        printed: the paper has this table.
        methods: the only ones with rows; ablations and controls at every budget, others at those of ``paper_file``.
            Without: all but ablations and controls.
        shares: the paper's # Params are shares of full fine-tuning, which name its budgets (``paper_file`` then has no
            ``params_label``); the report shows counts and shares. Otherwise both are counts.
        decimals: of the paper's scores, as printed there.
        average: scores by the paper's columns (numbers, or a frame of seeds) -> the table's own mean,
            ``AVERAGE_COLUMN`` of the CSV; only where every column is filled, its sd where all have the same seeds.
        notes: rules of this table alone.
    """

    name: str
    title: str
    paper_file: str
    columns: tuple[Column, ...]
    backbone: str = PAPER_BACKBONE
    printed: bool = True
    methods: tuple[str, ...] = ()
    shares: bool = False
    decimals: int = 2
    average: Callable[[Any], Any] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scope:
    """The runs that a table is about; ``remarks`` tells the reader what was chosen for them."""

    backbone: str
    data: str
    protocol: str = "paper"
    select: str = "final"
    include_partial: bool = False
    results: Path = Path("results")
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """What was asked of ``adalora-report``: options, folder of results, all tables and all other reports by name.

    ``refused``: a line for each file that was read and does not count; every report adds those that it meets.
    """

    args: argparse.Namespace
    specs: Mapping[str, Spec]
    results: Path
    reports: Mapping[str, Report] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    @cached_property
    def records(self) -> list[Record]:
        """All records, read when first asked for."""
        records, refused = read_all(self.results)
        self.refused.extend(refused)
        return records


@dataclass(frozen=True)
class Report:
    """A report that is no table of scores.

    Attributes:
        add_arguments: its own options.
        make: the request -> the report (bytes: not for a terminal, so that ``--out`` is needed). Raises InputError.
        reads: what it takes beside its own options: ``results`` (``--results``), ``scope`` (``--backbone``, ``--data``
            and ``--protocol`` too) or ``nothing``.
        file: without ``--out`` it goes to this file in the folder of results, not to the terminal.
        section: ``frame_of`` all records at the last step and a scope -> what the page of all reports shows of it, as
            HTML; "" for nothing. ``common``: the request -> the same of what belongs to no scope.
        writes: whether it takes ``--out``.
    """

    name: str
    title: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    make: Callable[[Request], str | bytes]
    reads: str = "scope"
    file: str = ""
    section: Callable[[pd.DataFrame, Scope], str] | None = None
    common: Callable[[Request], str] | None = None
    writes: bool = True


def add_partial(parser: argparse.ArgumentParser) -> None:
    """An option of every report that shows cells, so that all of them count the same runs."""
    parser.add_argument("--include-partial", action="store_true", help="show runs with eval.max_examples too")


def paper_rows(name: str) -> list[dict[str, str]]:
    """The paper's own numbers, as printed there, from ``tables/paper/<name>``."""
    text = (files("adalora_repro.reports.tables") / "paper" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def default_backbone(of_runs: Iterable[str], paper: str = PAPER_BACKBONE) -> str:
    """What a report shows if nobody asks for another: the paper's backbone, or without a run of it the one with most.

    Args:
        of_runs: the backbone of each run.
    """
    counts = Counter(of_runs)
    return paper if paper in counts else min(counts, key=lambda name: (-counts[name], name), default=paper)


# --- the paper's setting ----------------------------------------------------------------------------------------------


@cache
def official_rows(task: str) -> dict[str, int]:
    """Rows of each split of a shipped task, as the paper used it; empty for other tasks."""
    rows: dict[str, int] = {}
    for path in reversed(catalog.base_files("task", task)):
        rows |= catalog.section(path, "task").get("rows") or {}
    return rows


@cache
def official_epochs(task: str) -> float | None:
    """Epochs of a shipped task, as in the paper; None for other tasks."""
    if not official_rows(task):
        return None
    trains = (catalog.section(path, "train") for path in catalog.base_files("task", task))
    return next((float(train["epochs"]) for train in trains if "epochs" in train), None)


def in_the_papers_setting(record: RunRecord) -> bool:
    """Whether protocol, data and epochs are the paper's; the backbone is the table's to compare."""
    epochs = record.settings.get("train.epochs")
    as_printed = record.key["protocol"] == "paper" and epochs == official_epochs(record.key["task"])
    return as_printed and on_the_papers_data(record)


def on_the_papers_data(record: RunRecord) -> bool:
    """Whether the run was trained and evaluated on all of the data that the paper used, and not cut short."""
    key, rows = record.key, dict(record.data.get("rows", {}))
    if key["data"] == "sample" or key["max_examples"] is not None or record.settings.get("train.max_steps") is not None:
        return False
    rows["train"] = rows.get("train", 0) + rows.pop("holdout", 0)
    official = official_rows(key["task"])
    if len(rows) < 2:
        return bool(key["data"] == "hub")
    return all(official.get(split) == count for split, count in rows.items())


# --- commands ---------------------------------------------------------------------------------------------------------


def command(tasks: Sequence[str], methods: Sequence[str], budgets: Sequence[str], scope: Scope) -> str:
    """One ``adalora-run`` line; ``-m`` (one run per combination) where a list has more than one entry."""
    many = len(tasks) * len(methods) * max(1, len(budgets)) > 1
    words = ["adalora-run", *(["-m"] if many else []), word("task", *tasks), word("method", *methods)]
    words += [word("budget", *budgets)] if budgets else []
    return " ".join([*words, *scope_words(scope)])


def commands(cells: Iterable[tuple[str, str, str]], scope: Scope) -> list[str]:
    """The fewest lines that run these cells, each a task, a method and a budget or "": Hydra's comma lists."""
    tasks: dict[tuple[str, str], list[str]] = defaultdict(list)
    for task, method, budget in dict.fromkeys(cells):
        tasks[method, budget].append(task)
    methods: dict[tuple[tuple[str, ...], str], list[str]] = defaultdict(list)
    for (method, budget), of_row in tasks.items():
        methods[tuple(of_row), budget].append(method)
    budgets: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = defaultdict(list)
    for (of_rows, budget), names in methods.items():
        budgets[of_rows, tuple(names)] += [budget] if budget else []
    return [command(of_rows, names, of_all, scope) for (of_rows, names), of_all in budgets.items()]


def scope_words(scope: Scope) -> list[str]:
    """The words of ``adalora-run`` that put runs into the scope of this report."""
    words = [word("backbone", scope.backbone), word("data", scope.data)]
    words += ["data.dir=DIR"] if scope.data == "local" else []
    words += [word("protocol", scope.protocol)] if scope.protocol != "paper" else []
    return [*words, *results_words(scope.results)]


def results_words(results: Path) -> list[str]:
    """``results.dir``, left out for the default folder and for the project's own records, which no run may change."""
    published = (catalog.resource("results") / "published").resolve()
    default = str(results) == "results" or results.resolve().is_relative_to(published)
    return [] if default else [word("results.dir", str(results))]
