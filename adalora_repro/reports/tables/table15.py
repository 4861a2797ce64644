"""Table 15: what a step, an epoch and the memory of AdaLoRA cost beside LoRA's (paper, Appendix H).

Not a table of scores: its records are those of ``measure=cost``, below ``results/cost``. The paper labels the lower
half SST-2, but its text and its times are those of SQuADv2: both readings are shown.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_repro.config import catalog
from adalora_repro.config.estimate import of_cost
from adalora_repro.records import cost_record
from adalora_repro.records.cost_record import CostRecord
from adalora_repro.reports.output import add_format, form_of
from adalora_repro.reports.render import FORMATS, Sheet, html_part, render_sheet, texts_sheet, to_csv
from adalora_repro.reports.spec import (
    Report,
    Request,
    Scope,
    command,
    commands,
    default_backbone,
    official_epochs,
    paper_rows,
)
from adalora_repro.reports.text import NONE, by_size, fixed, number, plural

if TYPE_CHECKING:
    import pandas as pd

TITLE = "Reproduction of Table 15, cost of training"
REFERENCE = "lora"  # what the paper measures against
METHODS = ("full", "bitfit", "houlsby", "pfeiffer", "lora", "adalora")  # the order of a pair
PAPER_FILE = "table15_cost.csv"
PAPER_FIGURES = ("gpu_mem_gb", "time_per_epoch_min")
#: a task of the paper's file -> the tasks that its rows may be of, and why
READINGS = {"sst2": {"squad_v2": " (by the text)", "sst2": " (by the label)"}}
HEADINGS = {"mnli": "MNLI", "squad_v2": "SQuADv2", "sst2": "SST-2"}
#: what two measurements must share to stand in one line of each row
CONDITION = ["device", "threads", "precision", "padding", "weights", "tokenizer", "data", "protocol", "typed"]
ROW = ["task", "budget", "method"]
ENDS = ("value", "low", "high")
FIELDS = [
    *("table", "backbone", *ROW, "against", *CONDITION, "batch_size", "pairs", "measurements"),
    *(*cost_record.TIMES, "hours_per_cell", "peak_memory", "memory_of", "epoch_steps", "epoch_examples"),
    *(f"ratio_{of}_{end}" for of in cost_record.RATIOS for end in ENDS),
    *("paper_label", "paper_gpu_mem_gb", "paper_time_per_epoch_min", "paper_ratio", "record", "command"),
]
NOTES = (
    "Ratio: to LoRA at the same budget, unless the cell names another method. Both step on the same batches, one right "
    "after the other and in turn first. Intervals: percentile bootstrap over these pairs of steps.",
    "Ours: training steps alone, warm-up steps left out, batches on the device already; batches stand for an epoch's "
    "lengths, steps for the phases of the whole run. Time/epoch: the mean step times the steps of the official "
    "training split. Hours/cell: the mean step times the steps of one run in the paper's setting, without "
    "evaluations. Memory (1 GB = 10^9 bytes): peak while the method trains alone, over the epoch's "
    "smallest and largest micro-batch. Tokens: without padding. Padding: longest: batches grouped by length; drawn: at "
    "random, in parts of similar length on a CPU.",
    "Paper: one V100 GPU; its padding and precision are not stated. It prints whole minutes: the ratios made of them "
    "here are good to about 0.01 on MNLI and 0.02 below.",
    "The paper labels the lower half SST-2. Its text says SQuADv2, and 60 minutes an epoch against 105 of MNLI do not "
    "fit SST-2, which has a sixth of MNLI's examples, and shorter ones: the same figures stand here under both names.",
)

Record = tuple[Path, CostRecord]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", metavar="NAME", help="default: the paper's, or the one with most measurements")
    add_format(parser, FORMATS)
    parser.add_argument("--only-filled", action="store_true", help="leave out rows without a measurement")
    parser.add_argument("--notes", action="store_true", help="print all notes and commands in text output too")


def read(request: Request) -> list[Record]:
    records, refused = cost_record.read_all(request.results)
    request.refused.extend(refused)
    return records


def make(request: Request) -> str:
    args = request.args
    form, records = form_of(args.format, args.out, FORMATS), read(request)
    backbone = args.backbone or default_backbone(record.key["backbone"] for _, record in records)
    lines = lines_of(records, backbone, request.results, args.only_filled)
    if form == "csv":
        return to_csv(lines[FIELDS])
    sheet = sheet_of(lines, backbone, [] if args.only_filled else commands_of(lines, request.results))
    return render_sheet(texts_sheet(sheet, form), form, args.notes)


def common(request: Request) -> str:
    """For the page of all reports: every backbone that was measured."""
    records, parts = read(request), []
    for backbone in sorted({record.key["backbone"] for _, record in records}):
        lines = lines_of(records, backbone, request.results, only_filled=True)
        parts.append(html_part(sheet_of(lines, backbone, [])))
    return "\n".join(parts)


REPORT = Report("table15", TITLE, add_arguments, make, reads="results", common=common)


# --- one frame: a row a line of ours, and a row of the paper's without one --------------------------------------------


@cache
def paper_frame() -> pd.DataFrame:
    """The paper's rows under each task that they may be of, the first reading of the whole file first.

    ``paper_ratio`` is the time per epoch over that of ``REFERENCE`` at the same task and budget.
    """
    import pandas as pd

    rows = pd.DataFrame(paper_rows(PAPER_FILE)).rename(columns={name: f"paper_{name}" for name in PAPER_FIGURES})
    rows = rows.assign(paper_label=rows.task, task=[list(READINGS.get(task, [task])) for task in rows.task])
    rows = rows.explode("task").astype({f"paper_{name}": float for name in PAPER_FIGURES})
    rows = rows.sort_values("task", key=lambda tasks: tasks.map(list(dict.fromkeys(tasks)).index), kind="stable")
    cell = pd.MultiIndex.from_frame(rows[["task", "budget"]])
    reference = rows[rows.method == REFERENCE].set_index(["task", "budget"]).paper_time_per_epoch_min.reindex(cell)
    ratio = rows.paper_time_per_epoch_min / reference.to_numpy()
    return rows.assign(paper_ratio=ratio.where(rows.method != REFERENCE))


def measured(path: Path, record: CostRecord, method: str) -> dict[str, Any]:
    """One method of one measurement; it stands under the budget of the measurement."""
    key, own = record.key, method == record.key["method"]
    line = {name: key[name] for name in (*CONDITION, "task", "budget", "batch_size")}
    line |= {name: record.methods[method][name] for name in (*cost_record.TIMES, "peak_memory")}
    line |= {"hours_per_cell": of_cost(path, record, method).hours(paper_steps(key["task"], record.epoch["steps"]))}
    line |= {f"epoch_{name}": record.epoch[name] for name in ("steps", "examples")}
    line |= {"method": method, "memory_of": record.memory_of, "record": str(path), "pairs": len(record.pairs)}
    ratio = record.ratio if own else None
    for of in cost_record.RATIOS if ratio else ():
        line |= {"against": key["against"]} | {f"ratio_{of}_{end}": ratio[of][end] for end in ENDS}  # type: ignore[index]
    return line | {"own": own, "created": record.created}


@cache
def paper_steps(task: str, epoch_steps: int) -> float:
    """T in the paper's setting, with this many steps in an epoch; NaN for a task that the paper does not have."""
    epochs = official_epochs(task)
    return math.nan if epochs is None else math.ceil(epochs * epoch_steps)


def lines_of(records: Sequence[Record], backbone: str, results: Path, only_filled: bool) -> pd.DataFrame:
    """Of each row under each condition the newest measurement, its own before one made beside another method's.

    The paper's rows come in their order, then others; the two of a pair one below the other.
    """
    import pandas as pd

    records = [(path, record) for path, record in records if record.key["backbone"] == backbone]
    lines = [measured(path, record, method) for path, record in records for method in record.methods]
    names = [name for name in FIELDS if not name.startswith("paper_")] + ["own", "created"]
    ours = pd.DataFrame(lines, columns=names, dtype=object).sort_values(["own", "created", "record"])
    same = ours.groupby([*ROW, *CONDITION, "own"], dropna=False)
    ours["measurements"] = same["record"].transform("count").astype(object)
    ours = ours.groupby([*ROW, *CONDITION], dropna=False).tail(1)
    scope = scope_of(ours, backbone, results)
    paper = paper_frame()
    frame = paper.merge(ours, how="right" if only_filled else "outer", on=ROW)
    gaps = frame.record.isna()
    fills = [
        f"{command([gap.task], [gap.method], [gap.budget], scope)} measure=cost" for gap in frame[gaps].itertuples()
    ]
    frame.loc[gaps, "command"] = pd.Series(fills, index=frame.index[gaps], dtype=object)
    cells = list(dict.fromkeys(zip(paper.task, paper.budget, strict=True)))
    others = {*zip(frame.task, frame.budget, strict=True)} - {*cells}
    cells += sorted(others, key=lambda cell: (cell[0], by_size(cell[1])))
    methods = [*METHODS, *sorted({*frame.method} - {*METHODS})]
    frame = frame.assign(
        table=REPORT.name,
        backbone=backbone,
        cell=[cells.index(cell) for cell in zip(frame.task, frame.budget, strict=True)],
        rank=frame.method.map(methods.index),
    )
    order = ["cell", "rank", "device", "precision", "padding", "weights"]
    return frame.sort_values(order, kind="stable", ignore_index=True)


def scope_of(lines: pd.DataFrame, backbone: str, results: Path) -> Scope:
    """With the data of the newest measurement."""
    data = lines[lines.record.notna()].sort_values("created").data
    return Scope(backbone, str(data.iloc[-1]) if len(data) else "hub", results=results)


# --- what is shown of it ----------------------------------------------------------------------------------------------


def sheet_of(lines: pd.DataFrame, backbone: str, commands: Sequence[str]) -> Sheet:
    import pandas as pd

    texts = {i: condition_text(line) for i, line in lines.iterrows() if line.notna().record}
    settings = list(dict.fromkeys(texts.values()))
    labels = {text: f"ours {i}" if len(settings) > 1 else "ours" for i, text in enumerate(settings, 1)}
    shown: list[list[str]] = []
    group: list[str] = []
    notes = [f"{labels[text]}: {text}." for text in settings if len(settings) > 1]
    warnings = [*notes]
    for key, row in lines.groupby(ROW, sort=False):
        task, budget, method = map(str, key)
        paper = row.iloc[0]
        reading = READINGS.get(str(paper.paper_label), {}).get(task, "")
        name = f"{HEADINGS.get(task, task)}{reading} {budget} {catalog.method(method).label}"
        for i, line in row[row.record.notna()].iterrows():
            shown.append([name, labels[texts[i]], *figures_of(line)])
            if line.own:
                pairs = f"{plural(line.pairs, 'pair')} of steps, batches of up to {line.batch_size} examples"
                notes.append(f"{name}, {labels[texts[i]]}: {pairs}; memory: {line.memory_of}; {line.record}.")
        if number(paper.paper_gpu_mem_gb) is not None:
            ratio = "" if number(paper.paper_ratio) is None else f"{paper.paper_ratio:.3f}"
            minutes = f"{paper.paper_time_per_epoch_min:.0f}"
            shown.append([name, "paper", f"{paper.paper_gpu_mem_gb:.3f}", "", minutes, "", "", ratio, ""])
        group += [f"{task} {budget}"] * (len(shown) - len(group))
    setting = f"{len(settings)} settings, listed in the notes" if len(settings) > 1 else "".join(settings)
    headings = ["Method", "", "Memory GB", "s/step mean", "Time/epoch min", "Hours/cell", "Tokens/s"]
    return Sheet(
        REPORT.name,
        TITLE,
        f"{TITLE}. Backbone {backbone}; {setting or 'not measured yet'}",
        pd.DataFrame(shown, columns=[*headings, "Time/epoch ratio [95%]", "Step median ratio [95%]"]),
        group,
        notes=[*NOTES, *notes],
        warnings=warnings,
        commands=commands,
        names=2,
    )


def condition_text(of: pd.Series[Any]) -> str:
    typed = f"; {of.typed}" if of.typed else ""
    return (
        f"{of.device}, {plural(of.threads, 'thread')}, {of.precision}, padding {of.padding}, {of.weights} weights, "
        f"tokenizer: {of.tokenizer}, data {of.data}, protocol {of.protocol}{typed}"
    )


def figures_of(line: pd.Series[Any]) -> list[str]:
    memory = number(line.peak_memory)
    return [
        NONE if memory is None else f"{memory / 1e9:.3f}",
        f"{line.mean_s:.4g}",
        f"{line.epoch_s / 60:,.1f}",
        fixed(line.hours_per_cell, 1),
        f"{line.tokens_per_s:,.0f}",
        *(ratio_text(line, of) for of in ("epoch", "median")),
    ]


def ratio_text(line: pd.Series[Any], of: str) -> str:
    """ "1.105 [1.093, 1.121]"; empty for the method that others are measured against."""
    value, low, high = (number(line[f"ratio_{of}_{end}"]) for end in ENDS)
    if value is None:
        return ""
    ends = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    return f"{value:.3f}{ends}" + ("" if line.against == REFERENCE else f" to {catalog.method(line.against).label}")


def commands_of(lines: pd.DataFrame, results: Path) -> list[str]:
    """The fewest commands that fill the paper's rows; one run measures both methods of a pair."""
    gaps = lines[lines.record.isna() & (lines.method != REFERENCE)]
    cells = gaps[["task", "method", "budget"]].itertuples(index=False, name=None)
    return [f"{line} measure=cost" for line in commands(cells, scope_of(lines, str(lines.backbone.iloc[0]), results))]
