"""Two runs over the same examples: which test fits a metric, and ``adalora-report compare``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_repro.errors import InputError
from adalora_repro.records import run_record
from adalora_repro.records.revisions import outdated
from adalora_repro.records.run_record import RECORD_NAME, RecordError, RunRecord
from adalora_repro.records.selection import held_out_of, metrics_of
from adalora_repro.reports.base import CHECKPOINTS, Report, Request, lr_text
from adalora_repro.reports.layout import fixed, plural, signed
from adalora_repro.reports.predictions import Examples, in_points, points, read_examples
from adalora_repro.reports.render import pad
from adalora_repro.reports.significance import MEASURES, RESAMPLES, NoTest, bootstrap, bootstrap_p, interval, mcnemar
from adalora_repro.terminal import clean

if TYPE_CHECKING:
    from numpy.typing import NDArray

MCNEMAR, BOOTSTRAP = "McNemar, exact", f"paired bootstrap, {RESAMPLES:,} resamples"
ROUNDING = 1e-6  # points: predictions and record may differ by so much
#: of a record's ``data``: what says which examples these are
EVALUATION_DATA = {"source", "rows", "sha256", "rows_sha256", "skipped"}
EVALUATION_DATA |= {"hub", "hub_config", "revision", "generator", "seed"}
AFTER = f"""\
p is two-sided and not corrected for the number of metrics; the interval is a percentile bootstrap over examples
({RESAMPLES:,} resamples, seed 0). Both are about this pair of runs: what other seeds would give they do not say.
"""

Record = tuple[Path, RunRecord]


@dataclass(frozen=True)
class Pair:
    """One metric's examples in two runs: arrays (examples,), see ``predictions.Examples``."""

    measure: str
    labels: NDArray[Any]
    ours: NDArray[Any]
    theirs: NDArray[Any]
    scale: float

    @cached_property
    def differences(self) -> NDArray[Any]:
        """Resampled, ours - theirs in points."""
        return self.scale * bootstrap(self.measure, self.labels, self.ours, self.theirs)

    def test(self) -> tuple[str, float]:
        """(name, p): McNemar's where every example is right or wrong, otherwise the paired bootstrap."""
        if self.measure == "accuracy":
            return MCNEMAR, mcnemar(self.ours == self.labels, self.theirs == self.labels)
        return BOOTSTRAP, bootstrap_p(self.differences)


def pair_up(metric: str, select: str, ours: Record, theirs: Record) -> Pair:
    """The examples of two runs, one by one.

    Raises:
        NoTest: they were evaluated on different examples, or what is there of them is not what was scored.
    """
    if not same_examples(ours[1], theirs[1]):
        raise NoTest("evaluated on different examples")
    found = [read_examples(*record, select, metric) for record in (ours, theirs)]
    if found[0].names != found[1].names:
        raise NoTest("evaluated on different examples")
    import numpy as np

    for examples, (path, _) in zip(found, (ours, theirs), strict=True):
        measured = examples.scale * measure_once(examples)
        if not abs(measured - examples.score) <= ROUNDING:  # nor is it where it is no number
            raise NoTest(f"{path}: {metric} of the predictions is {measured:.4f}, in the record {examples.score:.4f}")
    labels, a, b = (np.array(values) for values in (found[0].labels, found[0].values, found[1].values))
    return Pair(found[0].measure, labels, a, b, found[0].scale)


def measure_once(examples: Examples) -> float:
    """The measure of the examples themselves: a draw in which each of them came once."""
    import numpy as np

    weights = np.ones((1, len(examples.values)))
    return float(MEASURES[examples.measure](weights, np.array(examples.labels), np.array(examples.values))[0])


def same_examples(ours: RunRecord, theirs: RunRecord) -> bool:
    """Whether two runs were evaluated on the same data.

    Local files are compared by their rows where both records have the sums of them, otherwise by their bytes.
    """
    data = [evaluated_on(record) for record in (ours, theirs)]
    sums = [one.pop("rows_sha256", None) for one in data]
    if None not in sums:
        data = [one | {"sha256": rows} for one, rows in zip(data, sums, strict=True)]
    return data[0] == data[1]


def evaluated_on(record: RunRecord) -> dict[str, Any]:
    """What identifies the examples that a run was evaluated on: its data without the training and held-out splits."""
    trained = ("train", "holdout")
    told = {
        name: {split: part for split, part in value.items() if split not in trained}
        if isinstance(value, dict)
        else value
        for name, value in record.data.items()
        if name in EVALUATION_DATA
    }
    return told | {name: record.key[name] for name in ("task", "max_examples")}


def read_run(name: str, select: str) -> Record:
    """The record of a finished run, by its file or its folder.

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
    return path, record


def compare(first: str, second: str, select: str) -> str:
    """Every metric that two runs of one task have: figures, difference, interval, p.

    Raises:
        InputError: not two finished runs of one task.
    """
    runs = [read_run(name, select) for name in (first, second)]
    tasks = [record.key["task"] for _, record in runs]
    if tasks[0] != tasks[1]:
        raise InputError(f"{second}: task {tasks[1]}, but {first}: task {tasks[0]}; compare runs of one task")
    metrics = [metrics_of(record, select) for _, record in runs]
    rows = [["metric", "test", "A", "B", "A - B", "95% interval", "p"]]
    rows += [compared(name, select, *runs) for name in metrics[0] if name in metrics[1]]
    rows += held_out_rows(select, *runs)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    lines = [f"{letter}: {described(*run)}" for letter, run in zip("AB", runs, strict=True)]
    lines += [f"checkpoint {select}; in percent where a metric is a share", "", *(pad(row, widths) for row in rows)]
    return "".join(f"{clean(line)}\n" for line in [*lines, "", *AFTER.splitlines()])


def described(path: Path, record: RunRecord) -> str:
    key = record.key
    steps = plural(key["total_steps"], "step")
    warning = f"; {reason}" if (reason := outdated(record)) else ""
    degenerate = ", degenerate (the same prediction for every example)" * record.degenerate
    run = f"{key['method']} {key['budget']}, lr {lr_text(key['lr'])}, {steps}, seed {key['seed']}{degenerate}"
    return f"{run}: {path}{warning}"


def held_out_rows(select: str, ours: Record, theirs: Record) -> list[list[str]]:
    """The metrics that both runs have on a held-out split; they are shown but not tested."""
    a, b = (held_out_of(record, select) for _, record in (ours, theirs))
    rows = []
    for name in (name for name in a if name in b):
        pair = [in_points(record, values[name]) for (_, record), values in ((ours, a), (theirs, b))]
        figures = [fixed(pair[0]), fixed(pair[1]), signed(pair[0] - pair[1])]
        rows.append([f"{name}, held-out split", "not tested", *figures, "", ""])
    return rows


def compared(metric: str, select: str, ours: Record, theirs: Record) -> list[str]:
    """One line of the table; without a test it says why."""
    a, b = (points(record, select, metric) for _, record in (ours, theirs))
    figures = [fixed(a), fixed(b), signed(a - b)]
    try:
        pair = pair_up(metric, select, ours, theirs)
    except NoTest as reason:
        return [metric, f"not tested: {reason}", *figures, "", ""]
    low, high = interval(pair.differences)
    test, p = pair.test()
    return [metric, test, *figures, f"{signed(low)} to {signed(high)}", f"{p:.3g}"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, which in (("first", "A"), ("second", "B")):
        parser.add_argument(name, metavar=f"RUN_{which}", help="a run's folder or its metrics.json")
    parser.add_argument("--select", choices=CHECKPOINTS, default="final", help="checkpoint (default: %(default)s)")


def make(request: Request) -> tuple[str, list[str]]:
    args = request.args
    return compare(args.first, args.second, args.select), []


REPORT = Report("compare", "two runs of one task, example by example", add_arguments, make, reads="nothing")
