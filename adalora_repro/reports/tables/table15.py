"""Table 15: what a step, an epoch and the memory of AdaLoRA cost beside LoRA's (paper, Appendix H).

Not a table of scores: its records are those of ``measure=cost``, below ``results/cost``. The paper labels the lower
half SST-2, but its text and its times are those of SQuADv2: both readings are shown.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from adalora_repro.errors import one_of
from adalora_repro.records import cost_record
from adalora_repro.records.cost_record import CostRecord
from adalora_repro.reports.base import METHOD_NAMES, Report, Request, Scope, number, paper_rows
from adalora_repro.reports.defence import without_faulty
from adalora_repro.reports.layout import NONE, OURS, PAPER, Block, Line, Part, Sheet, command, plural
from adalora_repro.reports.out import add_format, form_of
from adalora_repro.reports.render import FORMATS, html_notes, html_table, render_sheet, to_csv

TITLE = "Reproduction of Table 15, cost of training"
BACKBONE = "deberta-v3-base"
REFERENCE = "lora"  # what the paper measures against
PAPER_FILE = "table15_cost.csv"
#: a task of the paper's file -> the tasks that its rows may be of, and why
READINGS = {"sst2": {"squad_v2": " (by the text)", "sst2": " (by the label)"}}
HEADINGS = {"mnli": "MNLI", "squad_v2": "SQuADv2", "sst2": "SST-2"}
HEADING = (
    ("Memory", "GB"),
    ("s/step", "mean"),
    ("Time/epoch", "min"),
    ("Tokens/s", ""),
    ("Time/epoch", "ratio [95%]"),
    ("Step", "median ratio [95%]"),
)
#: what two measurements must share to stand in one line of each row
CONDITION = ("device", "threads", "precision", "padding", "weights", "tokenizer", "data", "protocol", "typed")
NOTES = (
    "Ratio: to LoRA at the same budget, unless the cell names another method. Both step on the same batches, one right "
    "after the other and in turn first. Intervals: percentile bootstrap over these pairs of steps.",
    "Ours: training steps alone, warm-up steps left out, batches on the device already; batches stand for an epoch's "
    "lengths, steps for the phases of the whole run. Time/epoch: the mean step times the steps of the official "
    "training split. Memory (1 GB = 10^9 bytes): peak of a process that trains the method alone, over the epoch's "
    "smallest and largest micro-batch. Tokens: without padding. Padding: longest: batches grouped by length; drawn: at "
    "random, in parts of similar length on a CPU.",
    "Paper: one V100 GPU; its padding and precision are not said, its minutes are whole ones, so that its ratios, made "
    "of them here, are good to about 0.01 on MNLI and 0.02 below.",
    "The paper labels the lower half SST-2. Its text says SQuADv2, and 60 minutes an epoch against 105 of MNLI do not "
    "fit SST-2, which has a sixth of MNLI's examples, and shorter ones: the same figures stand here under both names.",
)

Row = tuple[str, str, str]  # task, budget, method
Condition = tuple[Any, ...]


@dataclass(frozen=True)
class Shown:
    """The measurement that a line shows: the newest of ``count``."""

    path: Path
    record: CostRecord
    count: int


Found = Mapping[Row, Mapping[Condition, Shown]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", metavar="NAME", help="default: the paper's, or the only one with measurements")
    add_format(parser, FORMATS)
    parser.add_argument("--only-filled", action="store_true", help="leave out rows without a measurement")


def make(request: Request) -> tuple[str, list[str]]:
    args = request.args
    form = form_of(args.format, args.out, FORMATS)
    records, refused = cost_record.read_all(request.results)
    backbone, said = choose_backbone(args.backbone, [record for _, record in records])

    def text(records: Sequence[tuple[Path, CostRecord]]) -> str:
        found = sort_in((path, record) for path, record in records if record.key["backbone"] == backbone)
        rows = rows_of(found, args.only_filled)
        scope = Scope(backbone, data_of(found), results=request.results)
        if form == "csv":
            return to_csv(FIELDS, long_rows(rows, found, scope))
        commands = [] if args.only_filled else commands_of(found, scope)
        return render_sheet(sheet_of(rows, found, backbone, said, commands), form)

    made, faulty = without_faulty(text, records)
    return made, refused + faulty


def common(results: Path) -> tuple[str, list[str]]:
    """For the page of all reports: every backbone that was measured."""
    records, refused = cost_record.read_all(results)

    def html(records: Sequence[tuple[Path, CostRecord]]) -> str:
        lines = []
        for backbone in sorted({record.key["backbone"] for _, record in records}):
            found = sort_in((path, record) for path, record in records if record.key["backbone"] == backbone)
            sheet = sheet_of(rows_of(found, only_filled=True), found, backbone, [], [])
            lines += [*html_table(sheet), *html_notes(sheet)]
        return "\n".join(lines)

    made, faulty = without_faulty(html, records)
    return made, refused + faulty


REPORT = Report("table15", TITLE, add_arguments, make, reads="results", common=common)


# -- which measurements --------------------------------------------------------------------------------------------


def choose_backbone(name: str | None, records: Sequence[CostRecord]) -> tuple[str, list[str]]:
    """The backbone asked for or chosen, and what to tell of the choice.

    Raises:
        InputError: there is no such backbone.
    """
    have = sorted({record.key["backbone"] for record in records})
    if name is not None:
        if name not in have:
            from adalora_repro.config.catalog import choices_of  # imports OmegaConf: only here

            if name not in choices_of("backbone"):
                raise one_of("backbone", name, sorted({*choices_of("backbone"), *have}))
        return name, []
    if not have or BACKBONE in have:
        return BACKBONE, []
    if len(have) == 1:
        return have[0], [f"No measurement of {BACKBONE}: this is {have[0]}, the only backbone with any."]
    return BACKBONE, [f"No measurement of {BACKBONE}; --backbone chooses among those with any: {', '.join(have)}."]


def condition_of(record: CostRecord) -> Condition:
    return tuple(record.key[name] for name in CONDITION)


def sort_in(records: Iterable[tuple[Path, CostRecord]]) -> Found:
    """Of each row under each condition the newest measurement; the one made for the method before one beside another.

    A row stands under the budget of the measurement; of methods without sizes that is the other's.
    """
    groups: dict[tuple[Row, Condition], list[tuple[bool, float, Path, CostRecord]]] = defaultdict(list)
    for path, record in records:
        key = record.key
        for method in record.methods:
            row = key["task"], key["budget"], method
            groups[row, condition_of(record)].append((method == key["method"], record.created, path, record))
    found: dict[Row, dict[Condition, Shown]] = defaultdict(dict)
    for (row, condition), members in groups.items():
        own, _, path, record = max(members, key=lambda member: member[:3])
        found[row][condition] = Shown(path, record, sum(member[0] == own for member in members))
    return found


@cache
def paper_of() -> dict[Row, dict[str, str]]:
    """The paper's rows under each task that they may be of, the first reading of the whole file first."""
    read = [(task, row) for row in paper_rows(PAPER_FILE) for task in READINGS.get(row["task"], [row["task"]])]
    tasks = dict.fromkeys(task for task, _ in read)
    return {(task, row["budget"], row["method"]): row for first in tasks for task, row in read if task == first}


def in_order(found: Found, row: Row) -> dict[Condition, Shown]:
    return dict(sorted(found.get(row, {}).items(), key=lambda item: str(item[0])))


def paper_ratio(row: Row) -> float | None:
    """The paper's time per epoch over that of ``REFERENCE`` at the same task and budget; None for that itself."""
    paper = paper_of()
    mine, reference = (number(paper[*row[:2], method]["time_per_epoch_min"]) for method in (row[2], REFERENCE))
    return None if row[2] == REFERENCE or mine is None or reference is None else mine / reference


def rows_of(found: Found, only_filled: bool) -> list[Row]:
    """The paper's rows in their order, then others; the two of a pair one below the other."""
    paper = list(paper_of())
    others = sorted((row for row in found if row not in paper), key=lambda row: (row[0], row[1], place(row[2]), row[2]))
    cells = list(dict.fromkeys(row[:2] for row in [*paper, *others]))
    rows = [row for cell in cells for row in [*paper, *others] if row[:2] == cell]
    return [row for row in rows if row in found or not only_filled]


def place(method: str) -> int:
    """The order of the methods in all tables; those that the paper does not have come last."""
    names = list(METHOD_NAMES)
    return names.index(method) if method in names else len(names)


def data_of(found: Found) -> str:
    """For the commands: where the data of the newest measurement came from."""
    shown = [each for lines in found.values() for each in lines.values()]
    return str(max(shown, key=lambda each: each.record.created).record.key["data"]) if shown else "hub"


# -- a sheet -------------------------------------------------------------------------------------------------------


def sheet_of(rows: Sequence[Row], found: Found, backbone: str, said: Sequence[str], commands: Sequence[str]) -> Sheet:
    conditions = sorted({condition for lines in found.values() for condition in lines}, key=str)
    marks = marks_of(conditions)
    return Sheet(
        title=TITLE,
        caption=f"{TITLE}. Backbone {backbone}; {caption_of(conditions)}",
        heading=HEADING,
        blocks=tuple(block_of(row, found.get(row, {}), marks) for row in rows),
        notes=(*said, *notes_of(rows, found, marks)),
        commands=tuple(commands),
    )


def caption_of(conditions: Sequence[Condition]) -> str:
    if not conditions:
        return "not measured yet"
    return described(conditions[0]) if len(conditions) == 1 else f"{len(conditions)} settings, told below"


def marks_of(conditions: Sequence[Condition]) -> dict[Condition, str]:
    """The label of each condition's lines: ``ours``, or ``ours 1``, ``ours 2``, … where there are several."""
    if len(conditions) == 1:
        return {conditions[0]: OURS}
    return {condition: f"{OURS} {number}" for number, condition in enumerate(conditions, 1)}


def described(condition: Condition) -> str:
    told = dict(zip(CONDITION, condition, strict=True))
    typed = f"; {told['typed']}" if told["typed"] else ""
    return (
        f"{told['device']}, {plural(told['threads'], 'thread')}, {told['precision']}, padding {told['padding']}, "
        f"{told['weights']} weights, tokenizer: {told['tokenizer']}, data {told['data']}, protocol "
        f"{told['protocol']}{typed}"
    )


def name_of(row: Row) -> str:
    task, budget, method = row
    printed = paper_of().get(row)
    reading = READINGS.get(printed["task"], {}).get(task, "") if printed else ""
    return f"{HEADINGS.get(task, task)}{reading} {budget} {METHOD_NAMES.get(method, method)}"


def block_of(row: Row, lines: Mapping[Condition, Shown], marks: Mapping[Condition, str]) -> Block:
    ours = [Line(mark, ours_of(row[2], lines[condition])) for condition, mark in marks.items() if condition in lines]
    if (printed := paper_of().get(row)) is not None:
        ratio = paper_ratio(row)
        texts = (
            printed["gpu_mem_gb"],
            "",
            printed["time_per_epoch_min"],
            "",
            "" if ratio is None else f"{ratio:.3f}",
            "",
        )
        ours.append(Line(PAPER, tuple((Part(text),) for text in texts)))
    return Block(name_of(row), f"{row[0]} {row[1]}", tuple(ours))


def ours_of(method: str, shown: Shown) -> tuple[tuple[Part, ...], ...]:
    figures = shown.record.methods[method]
    texts = [
        NONE if figures["peak_memory"] is None else f"{figures['peak_memory'] / 1e9:.3f}",
        f"{figures['mean_s']:.4g}",
        f"{figures['epoch_s'] / 60:,.1f}",
        f"{figures['tokens_per_s']:,.0f}",
        ratio_text(method, shown.record, "epoch"),
        ratio_text(method, shown.record, "median"),
    ]
    return tuple((Part(text),) for text in texts)


def ratio_text(method: str, record: CostRecord, of: str) -> str:
    """ "1.105 [1.093, 1.121]"; empty for the method that others are measured against."""
    ratio = ratio_of(method, record, of)
    if ratio is None:
        return ""
    ends = "" if ratio["low"] is None else f" [{ratio['low']:.3f}, {ratio['high']:.3f}]"
    against = record.key["against"]
    return f"{ratio['value']:.3f}{ends}" + ("" if against == REFERENCE else f" to {METHOD_NAMES.get(against, against)}")


def ratio_of(method: str, record: CostRecord, of: str) -> Mapping[str, Any] | None:
    if record.ratio is None or method != record.key["method"]:
        return None
    ratio: Mapping[str, Any] = record.ratio[of]
    return ratio


def notes_of(rows: Sequence[Row], found: Found, marks: Mapping[Condition, str]) -> list[str]:
    notes = list(NOTES)
    if len(marks) > 1:
        notes += [f"{mark}: {described(condition)}." for condition, mark in marks.items()]
    for row in rows:
        for condition, shown in in_order(found, row).items():
            if row[2] == shown.record.key["method"]:
                notes.append(f"{name_of(row)}, {marks[condition]}: {account_of(shown)}.")
    return notes


def account_of(shown: Shown) -> str:
    """How many steps, in which phases, from which file."""
    record = shown.record
    phases = record.ratio.get("phases", {}) if record.ratio is not None else {}
    by_phase = ", ".join(f"{phase} {found['median']:.3f} ({found['pairs']})" for phase, found in phases.items())
    told = [
        f"{plural(len(record.pairs), 'pair')} of steps, batches of up to {record.key['batch_size']} examples",
        *([f"median ratio (pairs) by phase: {by_phase}"] if by_phase else []),
        f"memory: {record.memory_of}",
        *([f"the newest of {shown.count} measurements"] if shown.count > 1 else []),
        str(shown.path),
    ]
    return "; ".join(told)


def commands_of(found: Found, scope: Scope) -> list[str]:
    """The fewest commands that fill the paper's rows; one run measures both methods of a pair."""
    gaps: dict[tuple[str, str], list[str]] = defaultdict(list)
    for task, budget, method in paper_of():
        if method != REFERENCE and (task, budget, method) not in found:
            gaps[task, method].append(budget)
    merged: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for (task, method), budgets in gaps.items():
        merged[method, *budgets].append(task)
    return [fill(tasks, method, budgets, scope) for (method, *budgets), tasks in merged.items()]


def fill(tasks: Sequence[str], method: str, budgets: Sequence[str], scope: Scope) -> str:
    return f"{command(tasks, [method], budgets, scope)} measure=cost"


# -- CSV -----------------------------------------------------------------------------------------------------------

ENDS = ("value", "low", "high")
FIELDS = [
    *("table", "backbone", "task", "budget", "method", "against", *CONDITION, "batch_size", "pairs", "measurements"),
    *(*cost_record.TIMES, "peak_memory", "memory_of", "epoch_steps", "epoch_examples"),
    *(f"ratio_{of}_{end}" for of in cost_record.RATIOS for end in ENDS),
    *("paper_label", "paper_gpu_mem_gb", "paper_time_per_epoch_min", "paper_ratio", "record", "command"),
]


def long_rows(rows: Sequence[Row], found: Found, scope: Scope) -> list[dict[str, Any]]:
    """One dictionary per line of ours, and per row of the paper without one."""
    written = []
    for row in rows:
        task, budget, method = row
        common: dict[str, Any] = {"table": REPORT.name, "backbone": scope.backbone}
        common |= {"task": task, "budget": budget, "method": method}
        if (printed := paper_of().get(row)) is not None:
            common |= {
                "paper_label": printed["task"],
                "paper_gpu_mem_gb": number(printed["gpu_mem_gb"]),
                "paper_time_per_epoch_min": number(printed["time_per_epoch_min"]),
                "paper_ratio": paper_ratio(row),
            }
        lines = [common | csv_line(method, shown) for shown in in_order(found, row).values()]
        written += lines or [common | {"command": fill([task], method, [budget], scope)}]
    return [dict.fromkeys(FIELDS) | line for line in written]


def csv_line(method: str, shown: Shown) -> dict[str, Any]:
    record = shown.record
    line = dict(zip(CONDITION, condition_of(record), strict=True))
    line |= {"batch_size": record.key["batch_size"], "pairs": len(record.pairs), "measurements": shown.count}
    line |= {name: record.methods[method][name] for name in (*cost_record.TIMES, "peak_memory")}
    line |= {"memory_of": record.memory_of, "record": str(shown.path)}
    line |= {f"epoch_{name}": record.epoch[name] for name in ("steps", "examples")}
    for of in cost_record.RATIOS:
        if (ratio := ratio_of(method, record, of)) is not None:
            line |= {"against": record.key["against"]} | {f"ratio_{of}_{end}": ratio[end] for end in ENDS}
    return line
