"""Does a method beat the others? AdaLoRA, or any method, minus each of them, with interval, p and verdict.

Everything is computed from the rows of ``frame`` that the rule of a cell shows, paired over common seeds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adalora_repro.config import catalog
from adalora_repro.errors import one_of
from adalora_repro.records.selection import RULE as SELECTION
from adalora_repro.records.selection import Run, device_of
from adalora_repro.reports.frame import frame_of, of_one_seed
from adalora_repro.reports.notes import UNEQUAL
from adalora_repro.reports.output import add_format, form_of
from adalora_repro.reports.render import FORMATS, Sheet, html_notes, html_table, render_sheet, texts_sheet, to_csv
from adalora_repro.reports.significance import LEVEL, TINY, NoTest, half_width, holm, paired_t, same_examples
from adalora_repro.reports.spec import Record, Report, Request, Scope, is_baseline, label_of, paper_rows
from adalora_repro.reports.tables import table1, table2, table3
from adalora_repro.reports.text import NONE, fixed, lr_of_tried, number, plural, seeds_text, signed

if TYPE_CHECKING:
    import pandas as pd

METHOD = "adalora"
BEST = "best baseline"
#: what AdaLoRA is compared with: (method, protocol) or ``BEST``; in the order of the report
AGAINST: tuple[tuple[str, str], ...] = (
    ("lora", "paper"),
    (BEST, "paper"),
    ("adalora_uniform", "paper"),
    ("adalora_random", "paper"),
    ("adalora_gradient", "paper"),
    ("lora_init_r", "paper"),
    (METHOD, "released"),
)
#: the same for any other method
AGAINST_ANY: tuple[tuple[str, str], ...] = (("lora", "paper"), (BEST, "paper"), (METHOD, "paper"))
PRINTED = (table1.SPEC, table2.SPEC, table3.SPEC)  # where the paper has AdaLoRA beside its baselines
MOST_SEEDS = 1000
SUPPORTED, CONTRADICTED, UNDECIDED, MISSING = "supported", "contradicted", "undecided", "not measured"
FIELDS = [
    *("backbone", "data", "task", "budget", "method", "against", "against_id", "against_method", "against_protocol"),
    *("metric", "n_seeds", "seeds", "difference", "low", "high", "sd", "p", "p_holm", "verdict"),
    *("seeds_needed", "reason"),
    *("paper_budget", "paper_difference", "lr", "lrs_tried", "chosen_on"),
    *("against_lr", "against_lrs_tried", "against_chosen_on", "params", "against_params"),
    "time_ratio",
]
VERDICT = (
    f"Verdict: supported if p < {LEVEL} and {{label}} is higher, contradicted if p < {LEVEL} and it is lower, "
    "otherwise undecided. In brackets: the fewest seeds with which the same mean difference and the same spread would "
    f"have p < {LEVEL} (times the number of tests)."
)
NOTES = (
    "Points: {label} minus the other method in the task's primary metric in percent, on the reported split; mean over "
    f"the seeds that both have, with the {1 - LEVEL:.0%} interval of a paired t-test. p: of the same test, two-sided, "
    "corrected by Holm's method over all different tests of the table.",
    VERDICT,
    "Best baseline: of the other methods at the same budget that are no ablation, no control and not AdaLoRA, the one "
    "with the best mean, on the held-out split where every run has one, otherwise on the reported split.",
    "Paper: its difference on its own backbone, at the budget with the same rank of LoRA.",
    "Rates: how many learning rates were tried for {label} and for the other method; "
    f"{UNEQUAL} marks unequal numbers.",
)
ABOUT_ADALORA = (
    "LoRA at the initial rank has more parameters than the budget, as many as AdaLoRA has at its start. Released: "
    "AdaLoRA as the authors' code trains it (protocol=released)."
)
TIMES = (
    "Time: {label}'s seconds of training divided by the other method's, summed over the common seeds, where all ran "
    "on one device; without evaluations. Other work on the machine changes it: measure=cost compares the two methods "
    "step by step."
)


@dataclass(frozen=True)
class Side:
    """The shown runs of one method at one size: the rows of ``frame`` by seed."""

    rows: pd.DataFrame

    @property
    def first(self) -> Any:
        return self.rows.iloc[0]

    @property
    def scores(self) -> dict[int, float]:
        return dict(zip(self.rows.seed, self.rows.score, strict=True))

    def mean(self, held_out: bool) -> float:
        return float((self.rows.held_out if held_out else self.rows.score).mean())


def claims_of(records: Iterable[Record], method: str = METHOD) -> pd.DataFrame:
    """A row for each (backbone, data, task, budget) with finished runs of ``method`` and each that it is compared with.

    The columns are ``FIELDS``. ``difference``, ``low``, ``high`` and ``sd`` are points; without a test ``reason`` says
    why there is none.
    """
    import pandas as pd

    runs = frame_of(records)
    runs = runs[runs.shown & (runs.checkpoint == "final")]
    lines: list[dict[str, Any]] = []
    for key, cell in runs.groupby(["backbone", "data", "task"], sort=True):
        ours = cell[(cell.method == method) & (cell.protocol == "paper")]
        for budget, rows in ours.groupby("budget"):
            side = Side(rows.set_index("seed", drop=False).sort_index())
            of_budget = cell[cell.budget == budget]
            name = dict(zip(("backbone", "data", "task"), key, strict=True)) | {"budget": budget, "method": method}
            against = AGAINST if method == METHOD else AGAINST_ANY
            lines += [name | compared(side, of_budget, *other) for other in against if other != (method, "paper")]
    return with_verdicts(pd.DataFrame(lines, columns=FIELDS, dtype=object))


def compared(ours: Side, cell: pd.DataFrame, method: str, protocol: str) -> dict[str, Any]:
    """The test of one claim; ``cell`` has the shown runs of the same task and budget."""
    released = " (released)" * (protocol != "paper")
    against = method if method == BEST else f"{label_of(method)}{released}"
    label, metric = paper_budget(str(ours.first.budget), cell), ours.first.metric
    line: dict[str, Any] = {
        "against": against,
        "against_id": f"{method}{released}",
        "against_method": method,
        "against_protocol": protocol,
        "metric": metric,
        "paper_budget": label,
        "paper_difference": paper_difference(ours.first, label, method) if protocol == "paper" else None,
        **{"lr": ours.first.lr, "lrs_tried": int(ours.first.lrs_tried), "chosen_on": ours.first.chosen_on},
        "params": ours.first["params.method"],
    }
    theirs = best_baseline(cell, ours.first.method) if method == BEST else side_of(cell, method, protocol)
    if theirs is None:
        return line | {"reason": f"no finished run of {against}"}
    first = theirs.first
    if method == BEST:
        line |= {"against": f"{BEST}: {first.label}", "against_id": f"{BEST}: {first.method}"}
    line |= {"against_method": first.method, "against_lr": first.lr, "against_lrs_tried": int(first.lrs_tried)}
    line |= {"against_chosen_on": first.chosen_on, "against_params": first["params.method"]}
    seeds = sorted(ours.scores.keys() & theirs.scores.keys())
    line |= {"n_seeds": len(seeds), "seeds": " ".join(map(str, seeds))}
    differences = [ours.scores[seed] - theirs.scores[seed] for seed in seeds]
    line |= {"difference": statistics.fmean(differences)} if seeds else {}
    line |= {"time_ratio": time_ratio(*(list(side.rows.run[seeds]) for side in (ours, theirs)))}
    if not all(same_examples(ours.rows.run[seed].record, theirs.rows.run[seed].record) for seed in seeds):
        return line | {"difference": None, "reason": "evaluated on different examples"}
    try:
        p = paired_t([ours.scores[seed] for seed in seeds], [theirs.scores[seed] for seed in seeds])
    except NoTest as reason:
        return line | {"reason": str(reason)}
    sd = statistics.stdev(differences)
    half = half_width(sd, len(seeds))
    return line | {"sd": sd, "low": line["difference"] - half, "high": line["difference"] + half, "p": p}


def time_ratio(ours: Sequence[Run], theirs: Sequence[Run]) -> float | None:
    """See ``TIMES``; None if a time is missing or the devices differ."""
    times, others = ([run.record.time.get("train_s", 0.0) for run in runs] for runs in (ours, theirs))
    one_device = len({device_of(run.record) for run in (*ours, *theirs)}) == 1
    return sum(times) / sum(others) if one_device and all(times + others) else None


def side_of(cell: pd.DataFrame, method: str, protocol: str = "paper") -> Side | None:
    rows = cell[(cell.method == method) & (cell.protocol == protocol)]
    return Side(rows.set_index("seed", drop=False).sort_index()) if len(rows) else None


def best_baseline(cell: pd.DataFrame, of: str) -> Side | None:
    """See ``NOTES``; of the baselines with the most seeds, and of equal ones the first by name; never ``of`` itself."""
    others = sorted(method for method in set(cell.method) - {of} if is_baseline(method))
    sides = [side for method in others if (side := side_of(cell, method))]
    if not sides:
        return None
    most = max(len(side.rows) for side in sides)
    sides = [side for side in sides if len(side.rows) == most]
    held_out = all(side.first.chosen_on == "held-out" for side in sides)
    return max(sides, key=lambda side: side.mean(held_out))


def with_verdicts(lines: pd.DataFrame) -> pd.DataFrame:
    """``p_holm``, ``verdict`` and ``seeds_needed``; the best baseline may be a method that has its own line."""
    tests: dict[tuple[Any, ...], float] = {}
    identity = ["backbone", "data", "task", "budget", "against_method", "against_protocol"]
    for line in lines[lines.p.notna()].itertuples():
        tests[tuple(getattr(line, name) for name in identity)] = line.p
    corrected = dict(zip(tests, holm(list(tests.values())), strict=True))
    for index, line in lines.iterrows():
        if line.p != line.p or line.p is None:
            lines.loc[index, "verdict"] = MISSING if number(line.difference) is None else UNDECIDED
            continue
        p_holm = corrected[tuple(line[name] for name in identity)]
        lines.loc[index, ["p_holm", "verdict"]] = [p_holm, verdict(line.difference, p_holm)]
        if p_holm >= LEVEL:
            lines.loc[index, "seeds_needed"] = seeds_needed(line.difference, line.sd, len(tests))
    return lines


def verdict(difference: float, p: float) -> str:
    if p >= LEVEL:
        return UNDECIDED
    return SUPPORTED if difference > 0 else CONTRADICTED


def seeds_needed(difference: float, sd: float, tests: int) -> int | None:
    """The smallest n with p < ``LEVEL`` / tests in a paired t-test of this mean difference and sd.

        t = difference / (sd / sqrt(n)),  n - 1 degrees of freedom

    None: more than ``MOST_SEEDS``, as where the difference is 0.
    """
    import numpy as np
    from scipy.stats import t

    n = np.arange(2, MOST_SEEDS + 1)
    enough = n[2 * t.sf(abs(difference) / max(sd, TINY) * n**0.5, n - 1) < LEVEL / tests]
    return int(enough[0]) if len(enough) else None


# --- the paper's numbers ----------------------------------------------------------------------------------------------


def paper_budget(budget: str, cell: pd.DataFrame) -> str:
    """The paper's label of a budget: itself, or the one of the task's family at which LoRA has the rank that it has
    in these runs (``budget.match=params``); "" if there is none."""
    families, sizes = catalog.budget_families(), catalog.sizes_of("lora") or {}
    if budget in families:
        return budget
    for run in cell[cell.method == "lora"].run:
        rank, family = (run.record.budget or {}).get("r"), run.record.settings.get("task.budgets")
        for label, of in families.items():
            if of == family and sizes.get(label, {}).get("r") == rank:
                return label
    return ""


def paper_difference(run: Any, budget: str, method: str) -> float | None:
    """The method of ``run`` minus ``method`` in the paper's table of its task and metric; None where it has none."""
    for spec in PRINTED:
        column = next((column for column in spec.columns if column.task == run.task), None)
        if column is None or run.metric not in column.metrics:
            continue
        name = column.paper[column.metrics.index(run.metric)]
        scores = {row["method"]: number(row[name]) for row in paper_rows(spec.paper_file) if row["budget"] == budget}
        ours = scores.pop(run.method, None)
        baselines = [value for other, value in scores.items() if is_baseline(other) and value is not None]
        theirs = max(baselines, default=None) if method == BEST else scores.get(method)
        return None if ours is None or theirs is None else ours - theirs
    return None


# --- the choice of the learning rate ----------------------------------------------------------------------------------


def optimism_measured(records: Iterable[Record]) -> list[tuple[str, float]]:
    """(cell, points): how much higher a cell's score is if its rate is chosen on the reported split.

    Per cell whose runs have a held-out split and which tried several rates on one common seed: the reported score at
    the rate that is best on the reported split, less the one at the rate that is best on the held-out split, both of
    that seed. It is never negative.
    """
    runs = frame_of(records)
    runs = runs[(runs.status == "ok") & (runs.chosen_on == "held-out") & (runs.checkpoint == "final")]
    gains = []
    names = ["backbone", "data", "protocol", "task", "method", "budget"]
    for key, tried in of_one_seed(runs, names).sort_values("lr").groupby(names):
        if len(tried) > 1:
            gain = tried.score.max() - tried.score.loc[tried.held_out.idxmax()]
            gains.append((f"{key[3]} {label_of(key[4])}{' (released)' * (key[2] != 'paper')}", float(gain)))
    return gains


def optimism_notes(records: Sequence[Record]) -> list[str]:
    gains = optimism_measured(records)
    if not gains:
        return []
    values = [gain for _, gain in gains]
    largest = max(gains, key=lambda gain: gain[1])
    return [
        "Choosing the learning rate on the reported split instead of the held-out one would raise the reported score "
        f"of the seed on which the rates were tried by {statistics.fmean(values):.2f} points on average over "
        f"{plural(len(gains), 'cell')} (by 0 in {sum(value == 0 for value in values)} of them; at most by "
        f"{largest[1]:.2f}: {largest[0]})."
    ]


# --- what is shown ----------------------------------------------------------------------------------------------------


def sheet_of(
    claims: pd.DataFrame, form: str, more: Sequence[str] = (), times: bool = False, method: str = METHOD
) -> Sheet:
    """The claims as plain texts, with ``times`` in a column; in a terminal with one decimal and the ids of methods."""
    import pandas as pd

    narrow, label = form == "text", label_of(method)
    title, minus = f"Claims: {label} minus others", f"{method if narrow else label} minus"
    texts = [
        {
            "Cell": f"{line.task} {line.budget}",
            minus: line.against_id if narrow else line.against,
            f"Points [{1 - LEVEL:.0%}] (seeds)": difference_text(line, 1 if narrow else 2),
            "p": NONE if number(line.p_holm) is None else f"{line.p_holm:.1g}",
            "Paper": signed(number(line.paper_difference), 1 if narrow else 2),
            **({"Time": fixed(line.time_ratio)} if times else {}),
            "Rates": rates_text(line),
            "Verdict": verdict_text(line),
        }
        for line in claims.itertuples()
    ]
    where = sorted(set(claims.backbone + " on " + claims.data + " data"))
    counts = claims.verdict.value_counts()
    summary = ", ".join(f"{counts[name]} {name}" for name in (SUPPORTED, CONTRADICTED, UNDECIDED) if name in counts)
    caption = f"{title}. {'; '.join(where)}: {summary or 'no test yet'}." if where else f"{title}: no finished run yet."
    frame = pd.DataFrame(texts, columns=None if texts else ["Cell", minus, "Verdict"])
    timed = [TIMES.format(label=label)] if times else []
    notes = [note.format(label=label) for note in NOTES] + [ABOUT_ADALORA] * (method == METHOD)
    notes += [*timed, *reasons(claims), *settings(claims), *more, SELECTION]
    warnings = [VERDICT.format(label=label), *timed]
    return Sheet("claims", title, caption, frame, list(frame.Cell), notes, warnings, names=2)


def difference_text(line: Any, decimals: int) -> str:
    """ "+0.43 [-0.20, +1.06] (5)"."""
    if number(line.difference) is None:
        return NONE
    ends = "" if number(line.low) is None else f" [{signed(line.low, decimals)}, {signed(line.high, decimals)}]"
    return f"{signed(line.difference, decimals)}{ends} ({line.n_seeds:.0f})"


def rates_text(line: Any) -> str:
    """ "4/4": how many rates were tried on each side."""
    ours, theirs = number(line.lrs_tried), number(line.against_lrs_tried)
    if theirs is None:
        return f"{ours:.0f}/{NONE}"
    return f"{ours:.0f}/{theirs:.0f}{UNEQUAL * (ours != theirs)}"


def verdict_text(line: Any) -> str:
    """The verdict; of an undecided claim with the seeds that would decide it, or "?" where there is no test."""
    if line.verdict != UNDECIDED:
        return str(line.verdict)
    if number(line.p) is None:
        return f"{UNDECIDED} (?)"
    needed = number(line.seeds_needed)
    return f"{UNDECIDED} ({f'{needed:.0f}' if needed else f'>{MOST_SEEDS}'})"


def reasons(claims: pd.DataFrame) -> list[str]:
    """Why there is no test, where there is none."""
    lines = []
    for reason, untested in claims[claims.reason.notna()].groupby("reason"):
        names = [f"{line.task} {line.budget} {line.against}" for line in untested.itertuples()]
        lines.append(f"Not tested ({reason}): {', '.join(names)}.")
    return lines


def settings(claims: pd.DataFrame) -> list[str]:
    """Learning rate, split that chose it, and parameters of both sides; one line a cell."""
    lines = []
    for (task, budget), cell in claims[claims.difference.notna()].groupby(["task", "budget"], sort=False):
        first = cell.iloc[0]
        sides = {label_of(first.method): (first.lr, first.lrs_tried, first.chosen_on, first.params)}
        for line in cell.itertuples():
            chosen = (line.against_lr, line.against_lrs_tried, line.against_chosen_on, line.against_params)
            sides[line.against.removeprefix(f"{BEST}: ")] = chosen
        texts = [
            f"{name} lr {lr_of_tried(lr, tried)} ({split} split), {params:,} parameters"
            for name, (lr, tried, split, params) in sides.items()
        ]
        seeds = sorted({seed for line in cell.itertuples() for seed in map(int, line.seeds.split())})
        lines.append(f"{task} {budget}, seeds {seeds_text(seeds)}: {'; '.join(texts)}.")
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_format(parser, FORMATS)
    parser.add_argument("--method", metavar="NAME", default=METHOD, help="does it beat the others? (%(default)s)")
    parser.add_argument("--backbone", metavar="NAME", help="default: all with runs of the method")
    parser.add_argument("--times", action="store_true", help="its training time divided by the other method's")
    parser.add_argument("--notes", action="store_true", help="all notes in a terminal too")


def make(request: Request) -> tuple[str, list[str]]:
    args = request.args
    form = form_of(args.format, args.out, FORMATS)
    records, refused = request.read
    methods = {record.key["method"] for _, record in records} | set(catalog.choices_of("method"))
    if args.method not in methods:
        raise one_of("method", args.method, sorted(methods))
    records = [one for one in records if args.backbone in (None, one[1].key["backbone"])]
    claims = claims_of(records, args.method)
    if form == "csv":
        return to_csv(claims), refused
    sheet = sheet_of(claims, form, optimism_notes(records), args.times, args.method)
    return render_sheet(texts_sheet(sheet, form), form, args.notes), refused


def section(records: Sequence[Record], scope: Scope) -> str:
    """For the page: the claims of a backbone and its data; of the paper's protocol alone, which they are about."""
    if scope.protocol != "paper":
        return ""
    claims = claims_of(records)
    measured = claims[claims.difference.notna()]
    if measured.empty:
        return ""
    missing = reasons(claims.drop(measured.index))
    sheet = texts_sheet(sheet_of(measured, "html", [*missing, *optimism_notes(records)]), "html")
    return f"{html_table(sheet)}\n<details><summary>Notes</summary>\n{html_notes(sheet.notes)}\n</details>"


REPORT = Report(
    "claims",
    "Does a method beat LoRA and the best baseline?",
    add_arguments,
    make,
    reads="results",
    section=section,
    of_protocols=True,
)
