"""Two runs over the same examples: which test fits a metric, and ``adalora-report compare``."""

from __future__ import annotations

import argparse
from pathlib import Path

from adalora_repro.config.words import lr_text
from adalora_repro.errors import InputError, clean
from adalora_repro.records import run_record
from adalora_repro.records.revisions import outdated
from adalora_repro.records.run_record import RecordError
from adalora_repro.records.selection import Run, metrics_of, run_of
from adalora_repro.reports.predictions import read_examples
from adalora_repro.reports.significance import MEASURES, RESAMPLES, NoTest, bootstrap, mcnemar, same_examples
from adalora_repro.reports.spec import CHECKPOINTS, Report, Request
from adalora_repro.reports.text import cell_name, fixed, piped, plural, signed, wrapped

MCNEMAR, BOOTSTRAP = "McNemar", "bootstrap"
ROUNDING = 1e-6  # points: predictions and record may differ by so much
AFTER = (
    "McNemar: the exact test, where every example is right or wrong. bootstrap: paired, over examples "
    f"({RESAMPLES:,} resamples, seed 0); the interval is its percentile interval. p is two-sided and not corrected for "
    "the number of metrics. Both are about these two runs: what other seeds would give they do not say."
)


def compare_examples(metric: str, select: str, ours: Run, theirs: Run) -> tuple[str, float, float, float]:
    """The test of two runs, example by example.

    Returns:
        Name and p: McNemar's where every example is right or wrong, otherwise the paired bootstrap's. Low and high end
        of the bootstrap's interval of ours - theirs, in points.

    Raises:
        NoTest: they were evaluated on different examples, or the stored predictions are not those that were scored.
    """
    import numpy as np

    sides = [read_examples(run, select, metric) for run in (ours, theirs)]
    if not same_examples(ours.record, theirs.record) or sides[0].names != sides[1].names:
        raise NoTest("evaluated on different examples")
    measure, scale, labels = sides[0].measure, sides[0].scale, np.array(sides[0].labels)
    values = [np.array(examples.values) for examples in sides]
    for run, examples, of_run in zip((ours, theirs), sides, values, strict=True):
        measured = scale * float(MEASURES[measure](labels, of_run))
        if not abs(measured - examples.score) <= ROUNDING:  # nor is it where it is no number
            raise NoTest(
                f"{run.path}: {metric} of the predictions is {measured:.4f}, in the record {examples.score:.4f}"
            )
    low, high, p = bootstrap(measure, labels, values[0], values[1])
    name = BOOTSTRAP
    if measure == "accuracy":
        name, p = MCNEMAR, mcnemar(values[0] == labels, values[1] == labels)
    return name, p, scale * low, scale * high


def read_run(name: str, select: str) -> Run:
    """A finished run, by its record or its folder, at a checkpoint.

    Raises:
        InputError: there is none, it is damaged, or it has no such checkpoint.
    """
    try:
        path, record = run_record.finished(Path(name))
    except RecordError as error:
        raise InputError(str(error)) from None
    if not metrics_of(record, select):
        raise InputError(f"{path}: no evaluation at the final budget (no '{select}'); --select final is there")
    return run_of(path, record, select)


def compare(first: str, second: str, select: str) -> str:
    """Every metric that two runs of one task have: figures, difference, interval, p.

    Raises:
        InputError: not two finished runs of one task.
    """
    a, b = read_run(first, select), read_run(second, select)
    if a.key["task"] != b.key["task"]:
        raise InputError(f"{second}: task {b.key['task']}, but {first}: task {a.key['task']}; compare runs of one task")
    rows = [["metric", "test", "A", "B", "A - B", "95% interval", "p"]]
    rows += [compared(name, select, a, b) for name in a.scores if name in b.scores]
    for name in (name for name in a.held_out if name in b.held_out):
        rows.append([f"{name}, held-out", "not tested", *figures(a.held_out[name], b.held_out[name]), "", ""])
    lines = [*wrapped(f"A: {described(a)}", "  "), *wrapped(f"B: {described(b)}", "  ")]
    lines += [f"checkpoint {select}; metrics in percent", "", *map(clean, piped(rows)), "", *wrapped(AFTER)]
    return "\n".join(lines) + "\n"


def described(run: Run) -> str:
    key, record = run.key, run.record
    steps = plural(key["total_steps"], "step")
    warning = f"; {reason}" if (reason := outdated(record)) else ""
    degenerate = ", degenerate (the same prediction for every example)" * record.degenerate
    words = f"{cell_name(key)}, lr {lr_text(key['lr'])}, {steps}, seed {key['seed']}{degenerate}"
    return f"{words}: {run.path}{warning}"


def figures(a: float, b: float) -> list[str]:
    return [fixed(a), fixed(b), signed(a - b)]


def compared(metric: str, select: str, ours: Run, theirs: Run) -> list[str]:
    """One line of the table; without a test it says why."""
    shown = figures(ours.scores[metric], theirs.scores[metric])
    try:
        test, p, low, high = compare_examples(metric, select, ours, theirs)
    except NoTest as reason:
        return [metric, f"not tested: {reason}", *shown, "", ""]
    return [metric, test, *shown, f"{signed(low)} to {signed(high)}", f"{p:.3g}"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, which in (("first", "A"), ("second", "B")):
        parser.add_argument(name, metavar=f"RUN_{which}", help="a run's folder or its metrics.json")
    parser.add_argument("--select", choices=CHECKPOINTS, default="final", help="checkpoint (default: %(default)s)")


def make(request: Request) -> tuple[str, list[str]]:
    args = request.args
    return compare(args.first, args.second, args.select), []


REPORT = Report("compare", "two runs of one task, example by example", add_arguments, make, reads="nothing")
