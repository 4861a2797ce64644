"""Does a method beat the others? AdaLoRA, or any method, minus each of them, with interval, p and verdict.

Everything is computed from the rows of ``frame`` that the selection rule shows, paired over common seeds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adalora_repro.config import catalog
from adalora_repro.config.catalog import PROPOSED
from adalora_repro.config.words import lr_text
from adalora_repro.errors import one_of
from adalora_repro.records.selection import RULE as SELECTION
from adalora_repro.records.selection import device_of
from adalora_repro.reports.frame import frame_of, of_one_seed, refusals
from adalora_repro.reports.notes import CONSTANT, DEGENERATE, PARTIAL, UNEQUAL, unlike
from adalora_repro.reports.output import add_format, form_of
from adalora_repro.reports.render import FORMATS, Sheet, html_part, render_sheet, texts_sheet, to_csv
from adalora_repro.reports.significance import LEVEL, TINY, NoTest, best_row, half_width, holm, paired_t, same_examples
from adalora_repro.reports.spec import Report, Request, Scope, paper_rows
from adalora_repro.reports.tables import table1, table2, table3
from adalora_repro.reports.text import NONE, by_size, fixed, number, plural, seeds_text, signed

if TYPE_CHECKING:
    import pandas as pd

BEST = "best baseline"
#: what AdaLoRA is compared with: (method, protocol) or ``BEST``; in the order of the report
AGAINST: tuple[tuple[str, str], ...] = (
    ("lora", "paper"),
    (BEST, "paper"),
    ("adalora_uniform", "paper"),
    ("adalora_random", "paper"),
    ("adalora_gradient", "paper"),
    ("lora_init_r", "paper"),
    (PROPOSED, "released"),
)
#: the same for any other method
AGAINST_ANY: tuple[tuple[str, str], ...] = (("lora", "paper"), (BEST, "paper"), (PROPOSED, "paper"))
PRINTED = (table1.SPEC, table2.SPEC, table3.SPEC)  # where the paper has AdaLoRA beside its baselines
MOST_SEEDS = 1000
SUPPORTED, CONTRADICTED, UNDECIDED, MISSING = "supported", "contradicted", "undecided", "not measured"
FIELDS = [
    *("backbone", "data", "task", "budget", "method", "against", "against_id", "against_method", "against_protocol"),
    *("metric", "n_seeds", "seeds", "difference", "low", "high", "sd", "p", "p_holm", "verdict"),
    *("seeds_needed", "reason"),
    *("paper_budget", "paper_difference", "lr", "lrs_tried", "chosen_on"),
    *("against_lr", "against_lrs_tried", "against_chosen_on", "params", "against_params"),
    *("time_ratio", "degenerate", "unlike"),
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
    "Best baseline: of the other methods at the same budget that are no ablation, control or cross-check and not "
    "AdaLoRA, and of these with the most seeds, the one with the best mean, on the held-out split where every run has "
    "one, otherwise on the reported split, which favours it.",
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


def claims_of(runs: pd.DataFrame, method: str = PROPOSED) -> pd.DataFrame:
    """A row for each (backbone, data, task, budget) with finished runs of ``method`` and each that it is compared with.

    The columns are ``FIELDS`` and ``cell``, the name of the cell. ``difference``, ``low``, ``high`` and ``sd`` are
    points; without a test ``reason`` says why there is none; ``unlike`` says how the training of the sides differs.

    Args:
        runs: ``frame_of`` records at the last step.
    """
    import pandas as pd

    runs = runs[runs.shown].set_index("seed").sort_index()
    names = ["backbone", "data", "task", "budget"]
    lines = [
        dict(zip(names, key, strict=True)) | {"method": method} | compared(ours, cell, *against)
        for key, cell in sorted(runs.groupby(names), key=lambda group: (*group[0][:3], by_size(group[0][3])))
        if len(ours := cell[(cell.method == method) & (cell.protocol == "paper")])
        for against in (AGAINST if method == PROPOSED else AGAINST_ANY)
        if against != (method, "paper")
    ]
    claims = with_verdicts(pd.DataFrame(lines, columns=FIELDS, dtype=object))
    where = claims.backbone + " " + claims.data + " "
    return claims.assign(cell=(where if where.nunique() > 1 else "") + claims.task + " " + claims.budget)


def best_baseline(cell: pd.DataFrame, of: str) -> pd.DataFrame:
    """See ``NOTES``; of equal ones the first by name; never ``of`` itself."""
    baseline = cell.method.map(lambda name: name != of and catalog.method(name).baseline)
    runs = cell[baseline & (cell.protocol == "paper")]
    if runs.empty:
        return runs
    rows = runs.groupby("method").agg(
        n_seeds=("score", "size"),
        mean=("score", "mean"),
        held_out_mean=("held_out", "mean"),
        chosen_on=("chosen_on", "first"),
    )
    return runs[runs.method == best_row(rows)]


def compared(ours: pd.DataFrame, cell: pd.DataFrame, method: str, protocol: str) -> dict[str, Any]:
    """The test of one claim, of runs by seed; ``cell`` has the shown runs of the same task and budget."""
    first = ours.iloc[0]
    released = " (released)" * (protocol != "paper")
    against = method if method == BEST else f"{catalog.method(method).label}{released}"
    label = paper_budget(first.budget, cell)
    line: dict[str, Any] = {
        "against": against,
        "against_id": f"{method}{released}",
        "against_method": method,
        "against_protocol": protocol,
        "metric": first.metric,
        "paper_budget": label,
        "paper_difference": None if released else paper_difference(first, label, method),
        **facts(ours),
    }
    theirs = cell[(cell.method == method) & (cell.protocol == protocol)]
    theirs = best_baseline(cell[cell.metric == first.metric], first.method) if method == BEST else theirs
    if theirs.empty:
        return line | {"reason": f"no finished run of {against}"}
    other = theirs.iloc[0]
    if method == BEST:
        line |= {"against": f"{BEST}: {other.label}", "against_id": f"{BEST}: {other.method}"}
    line |= {"against_method": other.method} | {f"against_{name}": value for name, value in facts(theirs).items()}
    if other.metric != first.metric:
        return line | {"reason": f"its primary metric is {other.metric}"}
    seeds = ours.index.intersection(theirs.index)
    ours, theirs = ours.loc[seeds], theirs.loc[seeds]
    differences = ours.score - theirs.score
    line |= {"n_seeds": len(seeds), "seeds": " ".join(map(str, seeds)), "difference": differences.mean()}
    line |= {"time_ratio": time_ratio(ours, theirs), "degenerate": bool((ours.degenerate | theirs.degenerate).any())}
    different = unlike(run.record for run in (*ours.run, *theirs.run))
    line |= {"unlike": "; ".join(f"{name} {values}" for name, values in different.items()) or None}
    if not all(same_examples(a.record, b.record) for a, b in zip(ours.run, theirs.run, strict=True)):
        return line | {"difference": None, "reason": "evaluated on different examples"}
    try:
        p = paired_t(list(ours.score), list(theirs.score))
    except NoTest as reason:
        return line | {"reason": str(reason)}
    mean, half = differences.mean(), half_width(differences.std(), len(seeds))
    return line | {"sd": differences.std(), "low": mean - half, "high": mean + half, "p": p}


def facts(runs: pd.DataFrame) -> dict[str, Any]:
    """What all runs of a side share, and their mean number of parameters."""
    first, params = runs.iloc[0], runs["params.method"].astype(float).mean()
    return {"lr": first.lr, "lrs_tried": int(first.lrs_tried), "chosen_on": first.chosen_on, "params": params}


def time_ratio(ours: pd.DataFrame, theirs: pd.DataFrame) -> float | None:
    """See ``TIMES``; None if a time is missing or the devices differ."""
    devices = {device_of(run.record) for run in (*ours.run, *theirs.run)}
    times, others = (list(side["time.train_s"].fillna(0.0)) for side in (ours, theirs))
    return sum(times) / sum(others) if len(devices) == 1 and all(times + others) else None


def with_verdicts(lines: pd.DataFrame) -> pd.DataFrame:
    """``p_holm``, ``verdict`` and ``seeds_needed``; the best baseline may be a method that has its own line."""
    import pandas as pd

    identity = ["backbone", "data", "task", "budget", "against_method", "against_protocol"]
    tests = list(lines[identity].itertuples(index=False, name=None))
    p = {test: p for test, p in zip(tests, lines.p, strict=True) if number(p) is not None}
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    lines["p_holm"] = pd.Series(map(corrected.get, tests), dtype=object)
    lines["verdict"] = [verdict(line) for line in lines.itertuples()]
    needed = [
        seeds_needed(line.difference, line.sd, len(p)) if line.verdict == UNDECIDED and number(line.p) else None
        for line in lines.itertuples()
    ]
    lines["seeds_needed"] = pd.Series(needed, dtype=object)
    return lines


def verdict(line: Any) -> str:
    if number(line.p) is None:
        return MISSING if number(line.difference) is None else UNDECIDED
    if line.p_holm >= LEVEL:
        return UNDECIDED
    return SUPPORTED if line.difference > 0 else CONTRADICTED


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
        baselines = [value for other, value in scores.items() if catalog.method(other).baseline and value is not None]
        theirs = max(baselines, default=None) if method == BEST else scores.get(method)
        return None if ours is None or theirs is None else ours - theirs
    return None


# --- the choice of the learning rate ----------------------------------------------------------------------------------


def optimism_measured(runs: pd.DataFrame) -> list[tuple[str, float]]:
    """(cell, points): how much higher a cell's score is if its rate is chosen on the reported split.

    Per cell whose runs have a held-out split and which tried several rates on one common seed: the reported score at
    the rate that is best on the reported split, less the one at the rate that is best on the held-out split, both of
    that seed. It is never negative.
    """
    runs = runs[runs.chosen_on == "held-out"]
    gains = []
    names = ["backbone", "data", "protocol", "task", "method", "budget"]
    for key, tried in of_one_seed(runs, names).sort_values("lr").groupby(names):
        if len(tried) > 1:
            gain = tried.score.max() - tried.score.loc[tried.held_out.idxmax()]
            gains.append((f"{key[3]} {catalog.method(key[4]).label}{' (released)' * (key[2] != 'paper')}", float(gain)))
    return gains


def optimism_notes(runs: pd.DataFrame) -> list[str]:
    gains = optimism_measured(runs)
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
    claims: pd.DataFrame, form: str, more: Sequence[str] = (), times: bool = False, method: str = PROPOSED
) -> Sheet:
    """The claims as plain texts, with ``times`` in a column; in a terminal with one decimal and the ids of methods."""
    import pandas as pd

    narrow, label = form == "text", catalog.method(method).label
    title, minus = f"Claims: {label} minus others", f"{method if narrow else label} minus"
    texts = [
        {
            "Cell": line.cell,
            minus: line.against_id if narrow else line.against,
            f"Points [{1 - LEVEL:.0%}] (seeds)": difference_text(line, 1 if narrow else 2),
            "p": NONE if number(line.p_holm) is None else f"{line.p_holm:.2g}",
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
    none = f"{title}: no finished run of it with protocol=paper yet."
    caption = f"{title}. {'; '.join(where)}: {summary or 'no test yet'}." if where else none
    frame = pd.DataFrame(texts, columns=None if texts else ["Cell", minus, "Verdict"])
    timed = [TIMES.format(label=label)] if times else []
    warned = [f"{CONSTANT} {DEGENERATE}."] if claims.degenerate.eq(True).any() else []
    notes = [note.format(label=label) for note in NOTES] + [ABOUT_ADALORA] * (method == PROPOSED)
    warned += listed(claims[claims.difference.notna()], "unlike", "Trained differently")
    notes += [*warned, *timed, *listed(claims, "reason", "Not tested"), *settings(claims), *more, SELECTION]
    warnings = [VERDICT.format(label=label), *warned, *timed]
    return Sheet("claims", title, caption, frame, list(frame.Cell), notes, warnings, names=2)


def difference_text(line: Any, decimals: int) -> str:
    """ "+0.43 [-0.20, +1.06] (5)", marked if one of the runs is degenerate."""
    if number(line.difference) is None:
        return NONE
    ends = "" if number(line.low) is None else f" [{signed(line.low, decimals)}, {signed(line.high, decimals)}]"
    return f"{signed(line.difference, decimals)}{ends} ({line.n_seeds:.0f}){CONSTANT * (line.degenerate is True)}"


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


def listed(claims: pd.DataFrame, column: str, words: str) -> list[str]:
    """For each text of a column (``reason`` or ``unlike``) the claims that have it."""
    return [
        f"{words} ({text}): {', '.join(f'{line.cell} {line.against}' for line in part.itertuples())}."
        for text, part in claims[claims[column].notna()].groupby(column)
    ]


def settings(claims: pd.DataFrame) -> list[str]:
    """Learning rate, split that chose it, and parameters of both sides; one line a cell."""
    lines = []
    for name, cell in claims[claims.difference.notna()].groupby("cell", sort=False):
        first = cell.iloc[0]
        sides = {catalog.method(first.method).label: (first.lr, first.lrs_tried, first.chosen_on, first.params)}
        for line in cell.itertuples():
            chosen = (line.against_lr, line.against_lrs_tried, line.against_chosen_on, line.against_params)
            sides[line.against.removeprefix(f"{BEST}: ")] = chosen
        texts = [
            f"{side} lr {lr_text(lr)}{f' of {tried}' * (tried > 1)} ({split} split), {params:,.0f} parameters"
            for side, (lr, tried, split, params) in sides.items()
        ]
        seeds = sorted({seed for line in cell.itertuples() for seed in map(int, line.seeds.split())})
        lines.append(f"{name}, seeds {seeds_text(seeds)}: {'; '.join(texts)}.")
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_format(parser, FORMATS)
    parser.add_argument("--method", metavar="NAME", default=PROPOSED, help="does it beat the others? (%(default)s)")
    parser.add_argument("--backbone", metavar="NAME", help="default: all with runs of the method")
    parser.add_argument("--times", action="store_true", help="its training time divided by the other method's")
    parser.add_argument("--notes", action="store_true", help="print all notes in text output too")


def make(request: Request) -> str:
    args = request.args
    form = form_of(args.format, args.out, FORMATS)
    methods = {record.key["method"] for _, record in request.records} | set(catalog.choices_of("method"))
    if args.method not in methods:
        raise one_of("method", args.method, sorted(methods))
    records = (one for one in request.records if args.backbone in (None, one[1].key["backbone"]))
    runs = frame_of(records, checkpoints=["final"])
    claims = claims_of(runs, args.method)
    request.refused.extend(refusals(runs))
    if form == "csv":
        return to_csv(claims[FIELDS])
    sheet = sheet_of(claims, form, optimism_notes(runs), args.times, args.method)
    return render_sheet(texts_sheet(sheet, form), form, args.notes)


def section(runs: pd.DataFrame, scope: Scope) -> str:
    """For the page: the claims of a backbone and its data; of the paper's protocol alone, which they are about."""
    if scope.protocol != "paper":
        return ""
    runs = runs[(runs.backbone == scope.backbone) & (runs.data == scope.data)]
    claims = claims_of(runs)
    measured = claims[claims.difference.notna()]
    if measured.empty:
        return ""
    more = [*listed(claims.drop(measured.index), "reason", "Not tested"), *optimism_notes(runs)]
    return html_part(sheet_of(measured, "html", more + [PARTIAL.strip()] * scope.include_partial))


REPORT = Report(
    "claims",
    "Does a method beat LoRA and the best baseline?",
    add_arguments,
    make,
    reads="results",
    section=section,
)
