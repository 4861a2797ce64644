"""Records -> one table: which runs belong in each cell, which of them are shown, and the frame of its figures.

``selection.RULE``, printed under every table, chooses the runs of a cell (task, method, budget). They have one
backbone, one data source and one protocol.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from adalora_repro.config import catalog
from adalora_repro.config.words import lr_text
from adalora_repro.records.run_record import RunRecord, stated
from adalora_repro.records.selection import Run, Selection, at_edge, device_kind, primary_mean
from adalora_repro.reports.frame import COLUMNS, frame_of, unusable
from adalora_repro.reports.spec import (
    AVERAGE_COLUMN,
    DATA_SOURCES,
    Column,
    Record,
    Request,
    Scope,
    Spec,
    command,
    default_backbone,
    on_the_papers_data,
    paper_rows,
)
from adalora_repro.reports.text import by_size, number, plural, seed_phrase, short

if TYPE_CHECKING:
    import pandas as pd

AVERAGE = -1  # the column of a table's own mean
COUNTS = ("method", "head", "total", "backbone")
#: the columns of the CSV, in their order
FIELDS = [
    *("table", "backbone", "data", "protocol", "checkpoint", "method", "method_name", "budget", "task", "metric"),
    *("mean", "sd", "n_seeds", "seeds", "paper", "difference", "best", "best_unequal"),
    *("baseline", "test", "p", "p_holm", "mark", "lrs", "baseline_lrs"),
    *("full_test", "full_p", "full_p_holm", "full_mark", "full_baseline_lrs", "params_paper"),
    *(f"params_{name}_{end}" for name in COUNTS for end in ("min", "max")),
    *("lr", "lrs_tried", "n_lrs_tried", "chosen_on", "held_out_mean", "degenerate_seeds", "total_steps"),
    *("max_examples", "variant", "note", "records", "command"),
]
INTERNAL = ["position", "second", "values"]  # beside them, see ``Table``


@dataclass(frozen=True)
class Cell(Selection):
    """One task of one row with runs of ours; ``shown``: the rows of ``frame`` of the runs shown, by seed."""

    shown: pd.DataFrame

    @property
    def key(self) -> dict[str, Any]:
        """The key of the first run shown; all of them differ from it in their seed alone."""
        return self.runs[0].key

    @property
    def lrs(self) -> tuple[float, ...]:
        return tuple(self.by_lr)

    @property
    def tried(self) -> str:
        """Among which learning rates the one shown was chosen: "8 tried, 3e-5 to 1e-3"."""
        return f"{len(self.lrs)} tried, {self.span}" if len(self.lrs) > 1 else "the only one tried"

    @property
    def span(self) -> str:
        return f"{lr_text(self.lrs[0])} to {lr_text(self.lrs[-1])}"

    @property
    def edge(self) -> bool:
        """Whether the learning rate shown is the smallest or the largest of several."""
        return at_edge(self.lr, self.lrs)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.key["seed"] for run in self.runs)

    @property
    def degenerate(self) -> tuple[int, ...]:
        """Seeds of the runs shown that made the same prediction for every example in their final evaluation."""
        return tuple(run.key["seed"] for run in self.runs if run.record.degenerate)

    @property
    def notes(self) -> list[str]:
        """What a reader must know, the most surprising first; phrases without a full stop."""
        notes, key = [], self.key
        if self.degenerate:
            named = f"{seed_phrase(self.degenerate)} of {len(self.runs)}"
            notes.append(f"degenerate: {named} gave every example the same prediction in the final evaluation")
        if self.others:
            others = "; ".join(setting_text(self.runs[0], other) for other in self.others)
            notes.append(f"shows setting {key['variant']} ({key['total_steps']:,} steps); other settings: {others}")
        means = {lr: primary_mean(runs, self.held_out) for lr, runs in self.by_lr.items()}
        best = max(means, key=means.__getitem__)
        if means[best] > means[self.lr]:
            seeds = f"{len(self.by_lr[best])} of {len(self.runs)}"
            notes.append(f"lr {lr_text(best)} has a higher mean with fewer seeds ({seeds}): not shown")
        if self.edge:
            notes.append(f"lr {lr_text(self.lr)} is the edge of its grid ({self.span}): widen it")
        if self.repeated:
            notes.append(f"{plural(self.repeated, 'record')} of a seed that has one already: not counted")
        return notes


def setting_text(shown: Run, other: Run) -> str:
    """Another setting of a cell: its variant, and what it does differently."""
    ours, theirs = stated(shown.record.settings), stated(other.record.settings)
    different = differing((shown, other))
    parts, device = [f"{other.key['total_steps']:,} steps"], device_kind(other.record)
    parts += [f"on a {device}"] if device != device_kind(shown.record) else []
    parts += [f"{name}={short(theirs.get(name))} not {short(ours.get(name))}" for name in different]
    return f"{other.key['variant']} ({'; '.join(parts)})"


def differing(runs: Iterable[Run]) -> list[str]:
    """The settings in which runs differ, learning rate and seed apart."""
    settings = [stated(run.record.settings) for run in runs]
    names = {name for one in settings for name in one} - {"optim.lr", "seed"}
    return sorted(name for name in names if any(one.get(name) != settings[0].get(name) for one in settings))


@dataclass(frozen=True)
class Row:
    """One method at one budget; ``paper`` is its row in the paper's file.

    ``cells`` are in the order of the columns, None where there is no run of ours.
    """

    method: str
    budget: str
    paper: Mapping[str, str]
    cells: tuple[Cell | None, ...]

    @property
    def name(self) -> str:
        label = catalog.method(self.method).label
        return label if self.fixed_size else f"{label} {self.budget}"

    @property
    def fixed_size(self) -> bool:
        return self.budget == self.method

    @property
    def in_paper(self) -> bool:
        return bool(self.paper)

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple({run.path: run for cell in self.cells if cell for run in cell.runs}.values())

    @property
    def params_label(self) -> str | None:
        """# Params as the paper prints it: a count or, where its file has none, the share that names the budget."""
        return self.paper.get("params_label", "100%" if self.fixed_size else self.budget) if self.paper else None

    def params(self, name: str, over: str = "") -> list[float]:
        """A count of each run (``method``, ``head``, ``total`` or ``backbone``), or its ratio to another.

        Tasks differ in it, and AdaLoRA's seeds.
        """
        params = [run.record.params for run in self.runs]
        return [of[name] / (of[over] if over else 1) for of in params if name in of and (not over or of.get(over))]


@dataclass(frozen=True)
class Table:
    """A compiled table.

    Attributes:
        figures: one row a figure, with the columns of the report's CSV; beside them ``position`` (number of the column,
            ``AVERAGE`` for the table's own mean), ``second`` and ``values`` (seed -> value).
        comparable: the paper's numbers may stand beside ours: its backbone, and its data in every run shown.
        left_out: reason -> how many records of the scope are in no cell for it.
        refused: one line for each record that cannot be used.
        tests: notes about the tests of significance.
    """

    spec: Spec
    scope: Scope
    rows: tuple[Row, ...]
    figures: pd.DataFrame
    comparable: bool
    left_out: Mapping[str, int]
    refused: tuple[str, ...]
    tests: tuple[str, ...] = ()

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Each run once, in how many columns it may be."""
        return tuple({run.path: run for row in self.rows for run in row.runs}.values())

    @property
    def head(self) -> list[str]:
        """What the table is about, in sentences."""
        scope = self.scope
        about = f"{self.spec.title}. Backbone {scope.backbone}; data {scope.data}; protocol {scope.protocol}"
        return [about, *scope.remarks]

    @cached_property
    def by_cell(self) -> dict[tuple[str, str, int], list[Any]]:
        """The figures of each row and column, as named tuples."""
        shown: dict[tuple[str, str, int], list[Any]] = defaultdict(list)
        for figure in self.figures.itertuples():
            shown[figure.method, figure.budget, figure.position].append(figure)
        return shown

    def of(self, row: Row, position: int) -> list[Any]:
        """The figures of one cell: ``mean``, ``sd``, ``paper``, ``difference``, ``best`` and the rest of the CSV."""
        return self.by_cell[row.method, row.budget, position]

    def cells(self) -> Iterable[tuple[Row, Column, Cell | None]]:
        return ((row, *pair) for row in self.rows for pair in zip(self.spec.columns, row.cells, strict=True))

    def filled(self) -> list[tuple[Row, Column, Cell]]:
        """The cells with runs of ours."""
        return [(row, column, cell) for row, column, cell in self.cells() if cell]


def compile_scoped(request: Request, spec: Spec, more: Sequence[Record] = ()) -> Table:
    """The table that the command line asks for, of the records below the results and of ``more``."""
    args, records, wanted = request.args, [*request.records, *more], rows_wanted(spec)
    select = getattr(args, "select", "final")
    wish = Scope("", "", args.protocol, select, args.include_partial, request.results)
    ours = [record for _, record in records if wanted(record.key)]
    table = compile_table(spec, records, choose_scope(spec.backbone, ours, args.backbone, args.data, wish))
    request.refused.extend(table.refused)
    return table


def compile_table(spec: Spec, records: Iterable[Record], scope: Scope) -> Table:
    """Records -> the table, by ``selection.RULE``."""
    usable, left_out, refused = sort_in(spec, records, scope)
    runs = frame_of(usable, scope.include_partial, [scope.select])
    shown = runs[runs.shown].set_index("seed").sort_index()
    cells = {
        key: Cell(**vars(of_cell.selection.iloc[0]), shown=of_cell)
        for key, of_cell in shown.groupby(["method", "budget", "task"])
    }
    rows = tuple(
        Row(method, budget, paper, tuple(cells.get((method, budget, column.task)) for column in spec.columns))
        for method, budget, paper in row_specs(spec, cells)
    )
    comparable = scope.backbone == spec.backbone and all(
        on_the_papers_data(run.record) for row in rows for run in row.runs
    )
    figures = figures_of(spec, scope, rows, comparable)
    return Table(spec, scope, rows, figures, comparable, left_out, tuple(refused))


# --- which records count ----------------------------------------------------------------------------------------------


def sort_in(spec: Spec, records: Iterable[Record], scope: Scope) -> tuple[list[Record], dict[str, int], list[str]]:
    """The records of the table's cells; how many were left out and why; a line for each one that is refused."""
    wanted = rows_wanted(spec)
    usable, left_out, refused = [], Counter[str](), []
    for path, record in records:
        if not wanted(record.key) or not in_scope(record, scope):
            continue
        if reason := left_out_because(record, scope):
            left_out[reason] += 1
        elif wrong := unusable(record, scope.select, needed(spec, record)):
            refused.append(f"{path}: {wrong}")
        else:
            usable.append((path, record))
    return usable, dict(left_out), refused


def rows_wanted(spec: Spec) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a run with this key belongs in the table, whatever its backbone, data and protocol."""
    tasks = {column.task for column in spec.columns}
    budgets = {row["budget"] for row in paper_rows(spec.paper_file)}

    def wanted(key: Mapping[str, Any]) -> bool:
        variant = catalog.method(key["method"]).variant
        named = key["method"] in spec.methods and (key["budget"] in budgets or variant)
        return key["task"] in tasks and (named if spec.methods else not variant)

    return wanted


def in_scope(record: RunRecord, scope: Scope) -> bool:
    key = record.key
    return (key["backbone"], key["data"], key["protocol"]) == (scope.backbone, scope.data, scope.protocol)


def left_out_because(record: RunRecord, scope: Scope) -> str | None:
    """Why a record of the scope is in no cell, as a phrase that a count can precede; None if it is in one."""
    if record.status != "ok":
        return record.status
    if record.key["max_examples"] is not None and not scope.include_partial:
        return "evaluated on a part of the examples (eval.max_examples; --include-partial shows them)"
    if scope.select == "best" and record.best is None:
        return "without an evaluation at the final budget (no 'best')"
    return None


def needed(spec: Spec, record: RunRecord) -> set[str]:
    """The metrics that the columns show of a record."""
    columns = [column for column in spec.columns if column.task == record.key["task"]]
    return {name for column in columns for name in column.mean_of or column.metrics} - {*COLUMNS}


def row_specs(spec: Spec, cells: Iterable[tuple[str, str, str]]) -> list[tuple[str, str, dict[str, str]]]:
    """(method, budget, paper's row) in the paper's order; then, in its budget's group, what only our records have."""
    rows = [(row["method"], row["budget"], row) for row in paper_rows(spec.paper_file)]
    order = {budget: i for i, (_, budget, _) in reversed(list(enumerate(rows)))}
    extra = sorted({(method, budget) for method, budget, _ in cells} - {row[:2] for row in rows})
    rows += [(method, budget, {}) for method, budget in extra]

    def place(row: tuple[str, str, dict[str, str]]) -> tuple[int, tuple[list[float], str]]:
        """A size matched to a label's parameters (0.3M-params) stands behind the label, other sizes by their number."""
        return order.get(row[1].partition("-params")[0], len(rows)), by_size(row[1])

    return sorted(rows, key=place)


# --- the frame of figures ---------------------------------------------------------------------------------------------


def figures_of(spec: Spec, scope: Scope, rows: Sequence[Row], comparable: bool) -> pd.DataFrame:
    """Every figure of every row, also of empty cells, with the paper's number and all that is known of its runs."""
    import pandas as pd

    budgets = {row.budget for row in rows if row.in_paper}
    lines: list[dict[str, Any]] = []
    for row in rows:
        of_row: dict[str, Any] = {
            **{"table": spec.name, "method": row.method, "method_name": row.name, "budget": row.budget},
            **{"backbone": scope.backbone, "data": scope.data, "protocol": scope.protocol, "checkpoint": scope.select},
            "params_paper": row.params_label,
        }
        columns: dict[str, pd.Series[float]] = {}
        for i, (column, cell) in enumerate(zip(spec.columns, row.cells, strict=True)):
            typed = row.fixed_size or row.budget in budgets  # r3 is no budget to type
            words = command([column.task], [row.method], [] if row.fixed_size else [row.budget], scope) if typed else ""
            of_cell = of_row | {"task": column.task, "position": i}
            of_cell |= details(cell) if cell else {"command": words}
            for name, printed in zip(column.metrics, column.printed, strict=True):
                columns[printed] = values_of(cell, column.mean_of or (name,)) if cell else pd.Series(dtype=float)
                lines.append(of_cell | figure_of(columns[printed], row.paper.get(printed)) | {"metric": name})
        if spec.average is not None:
            by_seed = pd.DataFrame(columns)  # NaN where columns have different seeds
            averages = spec.average(by_seed) if by_seed.notna().all(axis=None) else pd.Series(dtype=float)
            of_average = figure_of(averages, row.paper.get(AVERAGE_COLUMN)) | {"mean": spec.average(by_seed.mean())}
            lines.append(of_row | of_average | {"task": "all", "position": AVERAGE, "metric": AVERAGE_COLUMN})
    figures = pd.DataFrame(lines, columns=[*FIELDS, *INTERNAL], dtype=object)
    figures = figures.where(figures.notna(), None)
    figures = figures.astype(dict.fromkeys(("mean", "sd", "paper"), float) | {"position": int})
    figures["difference"] = figures["mean"] - figures["paper"] if comparable else float("nan")
    return with_best(spec, figures)


def values_of(cell: Cell, metrics: Sequence[str]) -> pd.Series[float]:
    """The mean of these metrics by seed; a run without one of them has no value."""
    columns = [name if name in COLUMNS else f"metrics.{name}" for name in metrics]
    return cell.shown.reindex(columns=columns).mean(axis=1, skipna=False).dropna()


def figure_of(values: pd.Series[float], paper: str | None) -> dict[str, Any]:
    """Mean and sample standard deviation (ddof = 1) of the values by seed, beside what the paper prints."""
    seeds = {"n_seeds": len(values), "seeds": " ".join(map(str, values.index)), "values": values.to_dict()}
    return {"mean": values.mean(), "sd": values.std(), "paper": number(paper)} | seeds


def details(cell: Cell) -> dict[str, Any]:
    """Counts, settings and files of the runs in a cell."""
    counts: dict[str, int | None] = {}
    for name in COUNTS:
        known = [run.record.params[name] for run in cell.runs if name in run.record.params]
        counts |= {f"params_{name}_min": min(known, default=None), f"params_{name}_max": max(known, default=None)}
    return counts | {
        **{name: cell.key[name] for name in ("lr", "total_steps", "max_examples", "variant")},
        "lrs_tried": " ".join(map(lr_text, cell.lrs)),
        "n_lrs_tried": len(cell.lrs),
        "chosen_on": "held-out" if cell.held_out else "reported",
        "held_out_mean": primary_mean(cell.runs, True) if cell.held_out else None,
        "degenerate_seeds": " ".join(map(str, cell.degenerate)),
        "note": "; ".join(cell.notes),
        "records": " ".join(str(run.path) for run in cell.runs),
    }


def with_best(spec: Spec, figures: pd.DataFrame) -> pd.DataFrame:
    """Marks the best and the second best of ours in each column, to the two decimals shown, where rows compete.

    ``best_unequal``: it is the best, and the rows of the column tried different numbers of learning rates.
    """
    for flag in ("best", "second", "best_unequal"):
        figures[flag] = False
    for (position, _), column in figures[figures["mean"].notna()].groupby(["position", "metric"]):
        better = "higher" if position == AVERAGE else spec.columns[int(position)].better
        if len(column) < 2 or better == "neither":
            continue
        ranks = column["mean"].round(2).rank(method="dense", ascending=better == "lower")
        figures.loc[column.index, "best"] = ranks == 1
        figures.loc[column.index, "second"] = ranks == 2
        figures.loc[column.index, "best_unequal"] = (ranks == 1) & (column.n_lrs_tried.nunique() > 1)
    return figures


# --- the scope --------------------------------------------------------------------------------------------------------


def choose_scope(
    paper: str, records: Iterable[RunRecord], backbone: str | None, data: str | None, wish: Scope
) -> Scope:
    """Fills in the backbone and the data source that the user left open, and says what it chose.

    Backbone: ``default_backbone``. Data: the first of hub, local, sample with a record of this backbone. Unfinished
    runs count only if there are no finished ones.

    Args:
        paper: the paper's backbone.
        records: those that the report may show.
    """
    ours = [record for record in records if record.key["protocol"] == wish.protocol]
    keys = [record.key for record in ours if left_out_because(record, wish) is None] or [record.key for record in ours]
    have = sorted({key["backbone"] for key in keys})
    remarks = []
    asked, backbone = backbone, backbone or default_backbone((key["backbone"] for key in keys), paper)
    if have and backbone not in have:
        remarks.append(f"No record of {backbone}; backbones with records: {', '.join(have)}.")
    elif not asked and len(have) > 1:
        remarks.append(f"Backbone {backbone}; --backbone chooses among those with records: {', '.join(have)}.")
    elif not asked and backbone != paper:
        remarks.append(f"No record of {paper}: this is {backbone}, the only backbone with records.")
    if data is None:
        have = [key["data"] for key in keys if key["backbone"] == backbone]
        have = have or [record.key["data"] for record in ours if record.key["backbone"] == backbone]
        sources = [source for source in DATA_SOURCES if source in have] or [DATA_SOURCES[0]]
        data = sources[0]
        if len(sources) > 1:
            remarks.append(f"Data {data}; there are also records with --data {' and --data '.join(sources[1:])}.")
    return replace(wish, backbone=backbone, data=data, remarks=tuple(remarks))
