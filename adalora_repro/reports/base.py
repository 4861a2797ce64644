"""What the tables share: which records belong in a cell, which of them are shown, and the numbers of a cell.

A table is one module of this package with a ``SPEC``, any other report one with a ``REPORT``; nothing else knows them.
Standard library only, no printing: ``layout.py`` puts a compiled table into words and lines, ``render.py`` into
markdown, LaTeX, CSV and HTML.

The rule of a cell (task, method, budget) is ``selection.RULE``, printed under every table; its runs have one backbone,
one data source and one protocol.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from adalora_repro.records.revisions import outdated
from adalora_repro.records.run_record import RunRecord, read_all, stated
from adalora_repro.records.selection import (
    Run,
    Selection,
    at_edge,
    device_kind,
    held_out_of,
    metrics_of,
    primary_mean,
    run_of,
    select,
)
from adalora_repro.reports.out import checked

DATA_SOURCES = ("hub", "local", "sample")  # in the order they are preferred; never mixed in one table
PROTOCOLS = ("paper", "released")
CHECKPOINTS = ("final", "best")
VARIANTS = {  # ablations and controls: rows of the tables that name them, and of no other
    "lora_qv": "LoRA (Wq, Wv)",
    "lora_regu": "LoRA regu",
    "prune_lora": "Prune LoRA",
    "svd_lora": "SVD-LoRA",
    "adalora_gamma0": "AdaLoRA (gamma = 0)",
    "adalora_sensitivity": "AdaLoRA (s = I)",
    "adalora_magnitude": "AdaLoRA (S = magnitude)",
    "lora_at_adalora": "LoRA (lr of AdaLoRA)",
    "lora_init_r": "LoRA (initial rank)",
    "lora_rank_pattern": "LoRA (ranks of AdaLoRA)",
    "svd_lora_init_r": "SVD-LoRA (initial rank)",
    "adalora_random": "AdaLoRA (random scores)",
    "adalora_gradient": "AdaLoRA (gradient scores)",
    "adalora_uniform": "AdaLoRA (uniform ranks)",
}
METHOD_NAMES = {
    "full": "Full FT",
    "bitfit": "BitFit",
    "houlsby": "HAdapter (Houlsby)",
    "pfeiffer": "PAdapter (Pfeiffer)",
    "lora": "LoRA",
    "adalora": "AdaLoRA",
    **VARIANTS,
}


@dataclass(frozen=True)
class Column:
    """One task of a table.

    Attributes:
        metrics: names in a record; ``paper`` the columns of the paper's CSV for them.
        mean_of: the one name in ``metrics`` is that of the mean of these metrics of a record.
        percent: the records hold percentages (0 to 100); otherwise fractions of 1 (-1 to 1, for correlations).
        more: further metrics of the same runs, in the report's CSV alone.
        settings: those of the runs shown that a reader must know to compare, told in a note.
    """

    task: str
    heading: str
    unit: str
    metrics: tuple[str, ...]
    paper: tuple[str, ...]
    mean_of: tuple[str, ...] = ()
    percent: bool = False
    more: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spec:
    """One table of the paper.

    Attributes:
        paper_file: in ``tables/paper``; columns ``method``, ``budget``, ``params_label`` and those of ``columns``.
        backbone: the one the paper used, and the default of the report.
        printed: the paper has this table; a table beyond it has its own rows in ``paper_file``.
        methods: the only ones that get rows, ``VARIANTS`` at every budget, others at those of ``paper_file``. Without:
            all get rows but ``VARIANTS``.
        shares: the paper's # Params are shares of full fine-tuning, which its budgets are named by (``paper_file`` then
            needs no ``params_label``); the report shows counts and shares. Otherwise both are counts.
        decimals: of the paper's scores, as printed there.
        average: {paper column: score} -> the table's own mean, or None; ``average_column`` is its name in the CSV.
        notes: rules of this table alone.
    """

    name: str
    title: str
    paper_file: str
    backbone: str
    columns: tuple[Column, ...]
    printed: bool = True
    methods: tuple[str, ...] = ()
    shares: bool = False
    decimals: int = 2
    average: Callable[[Mapping[str, float]], float] | None = None
    average_column: str = ""
    average_heading: tuple[str, str] = ("", "")
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scope:
    """Which records a table is about; ``said`` tells the reader what was chosen for him."""

    backbone: str
    data: str
    protocol: str = "paper"
    select: str = "final"
    include_partial: bool = False
    results: Path = Path("results")
    said: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """What was asked of ``adalora-report``: the options, all tables by name, the folder with ``runs/`` in it, and all
    other reports by name.
    """

    args: argparse.Namespace
    specs: Mapping[str, Spec]
    results: Path
    reports: Mapping[str, Report] = field(default_factory=dict)

    @cached_property
    def found(self) -> tuple[list[tuple[Path, RunRecord]], list[str]]:
        """All records, and a line for each file refused: read once, when they are first asked for."""
        return read_all(self.results)

    def of(self, records: Sequence[tuple[Path, RunRecord]]) -> Request:
        """The same request, limited to these records."""
        request = replace(self)
        vars(request)["found"] = list(records), self.found[1]
        return request


@dataclass(frozen=True)
class Report:
    """A report that is no table of scores; being in its module makes it a subcommand, with ``--out``.

    Attributes:
        add_arguments: its own options.
        make: the request -> the report (bytes: not for a terminal, so that ``--out`` is needed), and a line for each
            file that was refused. Raises InputError.
        reads: what it takes beside its own options: ``results`` (``--results``), ``scope`` (``--backbone``, ``--data``
            and ``--protocol`` too) or ``nothing``.
        place: the request -> the file that the report goes to, None for the terminal; asked first. Raises InputError.
        section: records and a scope -> what the page of all reports shows of it, as HTML; "" for nothing. ``common``:
            the folder of results -> the same for what belongs to no scope, and a line for each file refused.
    """

    name: str
    title: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    make: Callable[[Request], tuple[str | bytes, list[str]]]
    reads: str = "scope"
    place: Callable[[Request], str | None] = lambda request: checked(request.args)
    section: Callable[[Sequence[tuple[Path, RunRecord]], Scope], str] | None = None
    common: Callable[[Path], tuple[str, list[str]]] | None = None


def add_partial(parser: argparse.ArgumentParser) -> None:
    """An option of every report that shows cells, so that all of them count the same runs."""
    parser.add_argument("--include-partial", action="store_true", help="show runs with eval.max_examples too")


@dataclass(frozen=True)
class Comparison:
    """A figure tested against another row's (``marks.py``): two-sided p; ``p_holm`` is corrected over a table's tests.

    ``mark`` is what the table shows beside the figure, "" where the difference is not significant; ``lrs`` and
    ``baseline_lrs`` count the learning rates tried on the two sides.
    """

    baseline: str
    test: str
    p: float
    p_holm: float
    mark: str
    lrs: int = 1
    baseline_lrs: int = 1

    @property
    def unequal(self) -> bool:
        return self.lrs != self.baseline_lrs


@dataclass(frozen=True)
class Value:
    """Mean and sample standard deviation (ddof = 1) over seeds, in percent; None where there is none.

    Attributes:
        best: whether it is the best of ours in its column; ``unequal``: it is, and rows of that column tried
            different numbers of learning rates.
        comparison: with the best baseline of the budget; ``with_full``: with full fine-tuning.
    """

    mean: float | None
    sd: float | None = None
    paper: float | None = None
    best: bool = False
    unequal: bool = False
    comparison: Comparison | None = None
    with_full: Comparison | None = None

    @property
    def difference(self) -> float | None:
        return None if self.mean is None or self.paper is None else self.mean - self.paper


@dataclass(frozen=True)
class Cell:
    """One task of one row. Without ``runs`` it holds the paper's numbers alone; ``more`` is by metric.

    ``by_lr`` are the runs of every learning rate tried with the setting shown; ``held_out`` says that the learning rate
    was chosen on the held-out split.
    """

    values: tuple[Value, ...]
    runs: tuple[Run, ...] = ()
    by_lr: Mapping[float, Sequence[Run]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    more: Mapping[str, Value] = field(default_factory=dict)
    held_out: bool = False

    @property
    def lrs(self) -> tuple[float, ...]:
        return tuple(sorted(self.by_lr))

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.key["seed"] for run in self.runs)

    @property
    def optimistic(self) -> bool:
        """Whether the learning rate was chosen among several by the scores that the cell reports."""
        return len(self.by_lr) > 1 and not self.held_out

    @property
    def degenerate(self) -> tuple[int, ...]:
        """Seeds of the runs shown that made the same prediction for every example in their final evaluation."""
        return tuple(run.key["seed"] for run in self.runs if run.record.degenerate)


@dataclass(frozen=True)
class Row:
    """One method at one budget; ``cells`` in the order of the table's columns.

    ``params_label`` is the paper's # Params, None for a row that it does not have.
    """

    method: str
    budget: str
    params_label: str | None
    cells: tuple[Cell, ...]
    average: Value | None = None
    average_seeds: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        name = METHOD_NAMES.get(self.method, self.method)
        return name if self.fixed_size else f"{name} {self.budget}"

    @property
    def fixed_size(self) -> bool:
        """The method's size is no choice: its ``budget`` is its own name."""
        return self.budget == self.method

    @property
    def in_paper(self) -> bool:
        return self.params_label is not None

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for cell in self.cells for run in cell.runs)

    def params(self, what: str) -> tuple[int, int] | None:
        """Smallest and largest count of ``method``, ``head`` or ``total`` among the runs shown.

        They differ between tasks (labels of the head) and, for AdaLoRA, between seeds (final ranks).
        """
        counts = [run.record.params[what] for run in self.runs if what in run.record.params]
        return (min(counts), max(counts)) if counts else None

    @property
    def share(self) -> tuple[float, float] | None:
        """Smallest and largest ``method`` count over the ``backbone``'s among the runs shown."""
        sizes = [(run.record.params.get("method"), run.record.params.get("backbone")) for run in self.runs]
        shares = [method / backbone for method, backbone in sizes if method is not None and backbone]
        return (min(shares), max(shares)) if shares else None


@dataclass(frozen=True)
class Table:
    """A compiled table; ``refused`` names records that could not be used, one line each; ``tests`` are notes."""

    spec: Spec
    scope: Scope
    rows: tuple[Row, ...]
    left_out: Mapping[str, int]
    refused: tuple[str, ...]
    tests: tuple[str, ...] = ()

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for row in self.rows for run in row.runs)


def paper_rows(name: str) -> list[dict[str, str]]:
    """The paper's own numbers, as printed there, from ``tables/paper/<name>``."""
    text = (files("adalora_repro.reports.tables") / "paper" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def number(text: str | None) -> float | None:
    """A number of the paper's CSV; None where the paper has none."""
    return float(text) if text else None


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (ddof = 1; None for one value), independent of the order of ``values``."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def rows_wanted(spec: Spec) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a run with this key belongs in the table, its scope apart."""
    tasks = {column.task for column in spec.columns}
    budgets = {row["budget"] for row in paper_rows(spec.paper_file)}

    def wanted(key: Mapping[str, Any]) -> bool:
        if spec.methods:
            shown = key["budget"] in budgets or key["method"] in VARIANTS
            return key["task"] in tasks and key["method"] in spec.methods and shown
        return key["task"] in tasks and key["method"] not in VARIANTS

    return wanted


def compile_table(spec: Spec, records: Iterable[tuple[Path, RunRecord]], scope: Scope) -> Table:
    """Records -> numbers of the table, by ``selection.RULE``."""
    cells, left_out, refused = sort_in(spec, records, scope)
    rows = []
    for method, budget, paper in row_specs(spec, cells):
        shown = [cell_of(column, cells.get((method, budget, column.task), []), paper) for column in spec.columns]
        average, seeds = average_of(spec, shown, paper)
        rows.append(Row(method, budget, label_of(spec, paper), tuple(shown), average, seeds))
    return Table(spec, scope, tuple(mark_best(rows)), left_out, tuple(refused))


def label_of(spec: Spec, paper: Mapping[str, str]) -> str | None:
    """# Params of the paper's row, as printed there; a share is the budget's name, and 100% what has no budget."""
    if not paper:
        return None
    if spec.shares:
        return "100%" if paper["budget"] == paper["method"] else paper["budget"]
    return paper.get("params_label", "")


CellKey = tuple[str, str, str]


def sort_in(
    spec: Spec, records: Iterable[tuple[Path, RunRecord]], scope: Scope
) -> tuple[dict[CellKey, list[Run]], dict[str, int], list[str]]:
    """Records of the scope by (method, budget, task); how many were left out and why; what was refused."""
    columns = {column.task: column for column in spec.columns}
    wanted = rows_wanted(spec)
    cells: dict[CellKey, list[Run]] = defaultdict(list)
    left_out: dict[str, int] = defaultdict(int)
    refused = []
    for path, record in records:
        key = record.key
        if not wanted(key) or not in_scope(record, scope):
            continue
        reason = left_out_because(record, scope)
        if reason:
            left_out[reason] += 1
            continue
        metrics, held_out = metrics_of(record, scope.select), held_out_of(record, scope.select)
        column = columns[key["task"]]
        needed = {*(column.mean_of or column.metrics), record.primary_metric, *(metrics.keys() & column.more)}
        wrong = outdated(record) or wrong_metrics(metrics, needed, column.percent)
        beside = wrong_metrics(held_out, held_out.keys() & {record.primary_metric}, column.percent)
        if wrong or beside:
            refused.append(f"{path}: {wrong or f'held-out split: {beside}'}")
            continue
        run = run_of(path, record, scope.select)
        if column.mean_of:
            mean = statistics.fmean(run.scores[name] for name in column.mean_of)
            run = replace(run, scores={**run.scores, column.metrics[0]: mean})
        cells[key["method"], key["budget"], key["task"]].append(run)
    return dict(cells), dict(left_out), refused


def in_scope(record: RunRecord, scope: Scope) -> bool:
    key = record.key
    return bool(key["backbone"] == scope.backbone and key["data"] == scope.data and key["protocol"] == scope.protocol)


def left_out_because(record: RunRecord, scope: Scope) -> str | None:
    """Why a record of the scope is in no cell, as a phrase that a count can precede; None if it is in one."""
    if record.status != "ok":
        return record.status
    if record.key["max_examples"] is not None and not scope.include_partial:
        return "evaluated on a part of the examples (eval.max_examples; --include-partial shows them)"
    if scope.select == "best" and record.best is None:
        return "without an evaluation at the final budget (no 'best')"
    return None


def wrong_metrics(metrics: Mapping[str, float], needed: set[str], percent: bool) -> str | None:
    """What makes the metrics of a record unusable here; among fractions, 87.3 is a percentage gone astray."""
    low, high, unit = (0.0, 100.0, "a percentage") if percent else (-1.0, 1.0, "a fraction of 1")
    for name in sorted(needed):
        if name not in metrics:
            return f"no metric '{name}'"
        if not low <= metrics[name] <= high:
            return f"{name} is {metrics[name]!r}, not {unit}"
    return None


def row_specs(spec: Spec, cells: Iterable[CellKey]) -> list[tuple[str, str, dict[str, str]]]:
    """(method, budget, paper's row) in the paper's order; then, in its budget's group, what only our records have."""
    rows = [(row["method"], row["budget"], row) for row in paper_rows(spec.paper_file)]
    known = {(method, budget) for method, budget, _ in rows}
    order = {budget: place for place, (_, budget, _) in reversed(list(enumerate(rows)))}
    extra = sorted({(method, budget) for method, budget, _ in cells} - known)
    rows += [(method, budget, {}) for method, budget in extra]
    # a size matched to a label's parameters (0.3M-params) stands with the label
    return sorted(rows, key=lambda row: order.get(row[1].partition("-params")[0], len(rows)))


def cell_of(column: Column, runs: Sequence[Run], paper: Mapping[str, str]) -> Cell:
    """The runs that ``selection.RULE`` chooses, and their numbers beside the paper's."""
    printed = [number(paper.get(name)) for name in column.paper]
    if not runs:
        return Cell(tuple(Value(None, paper=value) for value in printed))
    chosen = select(runs)
    shown = chosen.runs
    stats = [mean_sd([run.scores[metric] for run in shown]) for metric in column.metrics]
    values = tuple(Value(mean, sd, value) for (mean, sd), value in zip(stats, printed, strict=True))
    more = {
        metric: Value(*mean_sd([run.scores[metric] for run in shown]))
        for metric in column.more
        if all(metric in run.scores for run in shown)
    }
    notes = setting_notes(shown[0], chosen.others) + lr_notes(chosen) + edge_notes(chosen.lr, list(chosen.by_lr))
    notes += repeated_notes(chosen)
    cell = Cell(values, shown, chosen.by_lr, tuple(notes), more, chosen.held_out)
    return replace(cell, notes=(*degenerate_notes(cell), *cell.notes))


def setting_notes(shown: Run, others: Sequence[Run]) -> list[str]:
    """Names the setting shown when a cell had several, and what the others do differently."""
    if not others:
        return []
    ours = stated(shown.record.settings)
    descriptions = []
    for other in others:
        theirs = stated(other.record.settings)
        names = sorted(
            name
            for name in ours.keys() | theirs.keys()
            if name not in ("optim.lr", "seed") and ours.get(name) != theirs.get(name)
        )
        differs = ", ".join(f"{name}={short(theirs.get(name))} not {short(ours.get(name))}" for name in names[:3])
        if (device := device_kind(other.record)) != device_kind(shown.record):
            differs = f"on a {device}{', ' * bool(names)}{differs}"
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        steps = f"{other.key['total_steps']:,} steps"
        descriptions.append(f"{other.key['variant']} ({steps}{'; ' * bool(differs)}{differs}{more})")
    key = shown.key
    return [f"shows setting {key['variant']} ({key['total_steps']:,} steps); other settings: {', '.join(descriptions)}"]


def short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:39] + "…"


def lr_text(lr: float) -> str:
    """5e-4, 1.2e-3: as the paper and the configuration write learning rates."""
    mantissa, _, exponent = f"{lr:.6e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def lr_notes(chosen: Selection) -> list[str]:
    """Names the learning rate with the best mean if it has too few seeds to be shown: its mean may be luck."""
    means = {lr: primary_mean(runs, chosen.held_out) for lr, runs in chosen.by_lr.items()}
    best = max(means, key=lambda lr: (means[lr], -lr))
    seeds = [len(chosen.by_lr[lr]) for lr in (best, chosen.lr)]
    if seeds[0] == seeds[1] or means[best] == means[chosen.lr]:
        return []
    return [f"lr {lr_text(best)} has a higher mean with fewer seeds ({seeds[0]} of {seeds[1]}): not shown"]


def edge_notes(lr: float, grid: Sequence[float]) -> list[str]:
    if not at_edge(lr, grid):
        return []
    return [f"lr {lr_text(lr)} is the edge of its grid ({lr_text(min(grid))} to {lr_text(max(grid))}): widen it"]


def repeated_notes(chosen: Selection) -> list[str]:
    return [f"{chosen.repeated} record(s) repeat a seed and are not counted"] if chosen.repeated else []


def degenerate_notes(cell: Cell) -> list[str]:
    """Names the seeds whose model predicts the same for every example: its score is that of a constant prediction."""
    if not cell.degenerate:
        return []
    seeds = f"seed{'s' * (len(cell.degenerate) > 1)} {', '.join(map(str, cell.degenerate))}"
    return [f"degenerate: {seeds} of {len(cell.runs)} gave every example the same prediction in the final evaluation"]


def average_of(spec: Spec, cells: Sequence[Cell], paper: Mapping[str, str]) -> tuple[Value | None, tuple[int, ...]]:
    """The table's own mean, only when every task is there; its sd only when all tasks have the same seeds."""
    if spec.average is None:
        return None, ()
    printed = number(paper.get(spec.average_column))
    if not all(cell.runs for cell in cells):
        return Value(None, paper=printed), ()
    names = [name for column in spec.columns for name in column.paper]
    means = [value.mean for cell in cells for value in cell.values]
    mean = spec.average({name: value for name, value in zip(names, means, strict=True) if value is not None})
    seeds = cells[0].seeds
    if any(cell.seeds != seeds for cell in cells):
        return Value(mean, None, printed), ()
    metrics = [(cell, metric) for cell, column in zip(cells, spec.columns, strict=True) for metric in column.metrics]
    of_seed = [
        spec.average({name: cell.runs[i].scores[metric] for name, (cell, metric) in zip(names, metrics, strict=True)})
        for i in range(len(seeds))
    ]
    return Value(mean, mean_sd(of_seed)[1], printed), seeds


def mark_best(rows: Sequence[Row]) -> list[Row]:
    """Marks the best of ours in each column, to the two decimals shown; a column with one row has no best."""
    best: dict[tuple[int, int], float] = {}
    tried: dict[tuple[int, int], list[tuple[int, ...]]] = defaultdict(list)  # numbers of learning rates, by row
    for row in rows:
        for place, value in values_of(row):
            if value.mean is not None:
                best[place] = max(best.get(place, value.mean), value.mean)
                cells = row.cells if place[0] < 0 else [row.cells[place[0]]]
                tried[place].append(tuple(len(cell.lrs) for cell in cells))

    def marked(place: tuple[int, int], value: Value) -> Value:
        wins = value.mean is not None and len(tried[place]) > 1 and f"{value.mean:.2f}" == f"{best[place]:.2f}"
        return replace(value, best=wins, unequal=wins and len(set(tried[place])) > 1)

    done = []
    for row in rows:
        cells = tuple(
            replace(cell, values=tuple(marked((i, j), value) for j, value in enumerate(cell.values)))
            for i, cell in enumerate(row.cells)
        )
        average = None if row.average is None else marked((-1, 0), row.average)
        done.append(replace(row, cells=cells, average=average))
    return done


def values_of(row: Row) -> list[tuple[tuple[int, int], Value]]:
    """((column, metric), value) of a row; its average as column -1."""
    values = [((i, j), value) for i, cell in enumerate(row.cells) for j, value in enumerate(cell.values)]
    return values if row.average is None else [*values, ((-1, 0), row.average)]


def choose_scope(
    spec: Spec,
    records: Sequence[tuple[Path, RunRecord]],
    backbone: str | None,
    data: str | None,
    wish: Scope,
) -> Scope:
    """Fills in the backbone and the data source that the user left open, and says what it chose.

    Backbone: the paper's; if that has no record and exactly one other has, that one. Data: the first of hub, local,
    sample with a record of this backbone. Unfinished runs count only if there are no finished ones. Every backbone
    with records is named, unless the user asked for one that has some.
    """
    wanted = rows_wanted(spec)
    ours = [record for _, record in records if wanted(record.key) and record.key["protocol"] == wish.protocol]
    finished = [record for record in ours if left_out_because(record, wish) is None]
    have = sorted({record.key["backbone"] for record in finished or ours})
    said, named = [], ", ".join(have)
    if backbone is None:
        backbone = have[0] if len(have) == 1 else spec.backbone
        if len(have) == 1 and backbone != spec.backbone:
            said.append(f"No record of {spec.backbone}: this is {backbone}, the only backbone with records.")
        elif have and spec.backbone not in have:
            said.append(f"No record of {spec.backbone}; --backbone chooses among those with records: {named}.")
        elif len(have) > 1:
            said.append(f"Backbone {backbone}; --backbone chooses among those with records: {named}.")
    elif have and backbone not in have:
        said.append(f"No record of {backbone}; backbones with records: {named}.")
    if data is None:
        of_backbone = [record for record in finished if record.key["backbone"] == backbone]
        of_backbone = of_backbone or [record for record in ours if record.key["backbone"] == backbone]
        sources = [source for source in DATA_SOURCES if any(record.key["data"] == source for record in of_backbone)]
        data = sources[0] if sources else DATA_SOURCES[0]
        if len(sources) > 1:
            said.append(f"Data {data}; there are also records with --data {' and --data '.join(sources[1:])}.")
    return replace(wish, backbone=backbone, data=data, said=tuple(said))
