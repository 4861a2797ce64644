"""Two runs over the same examples: which test fits a metric, and ``adalora-report compare``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_repro.config.words import lr_text
from adalora_repro.errors import InputError, clean
from adalora_repro.records import run_record
from adalora_repro.records.revisions import outdated
from adalora_repro.records.run_record import RECORD_NAME, RecordError
from adalora_repro.records.selection import Run, metrics_of, run_of
from adalora_repro.reports.predictions import Examples, read_examples
from adalora_repro.reports.significance import MEASURES, RESAMPLES, NoTest, bootstrap, mcnemar, same_examples
from adalora_repro.reports.spec import CHECKPOINTS, Report, Request
from adalora_repro.reports.text import fixed, piped, plural, signed

if TYPE_CHECKING:
    from numpy.typing import NDArray

MCNEMAR, BOOTSTRAP = "McNemar, exact", f"paired bootstrap, {RESAMPLES:,} resamples"
ROUNDING = 1e-6  # points: predictions and record may differ by so much
AFTER = f"""\
p is two-sided and not corrected for the number of metrics; the interval is a percentile bootstrap over examples
({RESAMPLES:,} resamples, seed 0). Both are about this pair of runs: what other seeds would give they do not say.
"""


@dataclass(frozen=True)
class Pair:
    """One metric's examples in two runs: arrays (examples,), see ``predictions.Examples``."""

    measure: str
    labels: NDArray[Any]
    ours: NDArray[Any]
    theirs: NDArray[Any]
    scale: float

    def test(self) -> tuple[str, float, float, float]:
        """(name, p, low, high): McNemar's p where every example is right or wrong, otherwise the paired bootstrap's.

        The interval is the bootstrap's, of ours - theirs in points.
        """
        low, high, p = bootstrap(self.measure, self.labels, self.ours, self.theirs)
        if self.measure == "accuracy":
            return MCNEMAR, mcnemar(self.ours == self.labels, self.theirs == self.labels), *self.points(low, high)
        return BOOTSTRAP, p, *self.points(low, high)

    def points(self, low: float, high: float) -> tuple[float, float]:
        return self.scale * low, self.scale * high


def pair_up(metric: str, select: str, ours: Run, theirs: Run) -> Pair:
    """The examples of two runs, one by one.

    Raises:
        NoTest: they were evaluated on different examples, or the stored predictions are not those that were scored.
    """
    if not same_examples(ours.record, theirs.record):
        raise NoTest("evaluated on different examples")
    sides = [read_examples(run, select, metric) for run in (ours, theirs)]
    if sides[0].names != sides[1].names:
        raise NoTest("evaluated on different examples")
    import numpy as np

    for examples, run in zip(sides, (ours, theirs), strict=True):
        measured = examples.scale * measure_once(examples)
        if not abs(measured - examples.score) <= ROUNDING:  # nor is it where it is no number
            raise NoTest(
                f"{run.path}: {metric} of the predictions is {measured:.4f}, in the record {examples.score:.4f}"
            )
    labels, a, b = (np.array(values) for values in (sides[0].labels, sides[0].values, sides[1].values))
    return Pair(sides[0].measure, labels, a, b, sides[0].scale)


def measure_once(examples: Examples) -> float:
    import numpy as np

    return float(MEASURES[examples.measure](np.array(examples.labels), np.array(examples.values)))


def read_run(name: str, select: str) -> Run:
    """A finished run, by its record or its folder, at a checkpoint.

    Raises:
        InputError: there is none, it is damaged, or it has no such checkpoint.
    """
    path = Path(name) / RECORD_NAME if Path(name).is_dir() else Path(name)
    try:
        record = run_record.read(path)
    except FileNotFoundError:
        raise InputError(f"no record '{path}': name a run's folder or its {RECORD_NAME}") from None
    except RecordError as error:
        raise InputError(str(error)) from None
    if record.status != "ok":
        raise InputError(f"{path}: the run is {record.status}; only finished ones can be compared")
    if not metrics_of(record, select):
        raise InputError(f"{path}: no evaluation at the final budget (no '{select}'); --select final is there")
    return run_of(path, record, select)


def compare(first: str, second: str, select: str) -> str:
    """Every metric that two runs of one task have: figures, difference, interval, p.

    Raises:
        InputError: not two finished runs of one task.
    """
    a, b = runs = read_run(first, select), read_run(second, select)
    if a.key["task"] != b.key["task"]:
        raise InputError(f"{second}: task {b.key['task']}, but {first}: task {a.key['task']}; compare runs of one task")
    rows = [["metric", "test", "A", "B", "A - B", "95% interval", "p"]]
    rows += [compared(name, select, a, b) for name in a.scores if name in b.scores]
    for name in (name for name in a.held_out if name in b.held_out):
        rows.append([f"{name}, held-out split", "not tested", *figures(a.held_out[name], b.held_out[name]), "", ""])
    lines = [f"{letter}: {described(run)}" for letter, run in zip("AB", runs, strict=True)]
    lines += [f"checkpoint {select}; metrics in percent", "", *piped(rows), "", *AFTER.splitlines()]
    return "".join(f"{clean(line)}\n" for line in lines)


def described(run: Run) -> str:
    key, record = run.key, run.record
    steps = plural(key["total_steps"], "step")
    warning = f"; {reason}" if (reason := outdated(record)) else ""
    degenerate = ", degenerate (the same prediction for every example)" * record.degenerate
    words = f"{key['method']} {key['budget']}, lr {lr_text(key['lr'])}, {steps}, seed {key['seed']}{degenerate}"
    return f"{words}: {run.path}{warning}"


def figures(a: float, b: float) -> list[str]:
    return [fixed(a), fixed(b), signed(a - b)]


def compared(metric: str, select: str, ours: Run, theirs: Run) -> list[str]:
    """One line of the table; without a test it says why."""
    shown = figures(ours.scores[metric], theirs.scores[metric])
    try:
        test, p, low, high = pair_up(metric, select, ours, theirs).test()
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
