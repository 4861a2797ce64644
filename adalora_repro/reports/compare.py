"""Two runs over the same examples, from the predictions beside their records: ``adalora-report compare``."""

from __future__ import annotations

import argparse
import gzip
import io
import zlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from adalora_repro.config.words import lr_text
from adalora_repro.errors import InputError, clean, first_line
from adalora_repro.records import run_record, validation
from adalora_repro.records.revisions import outdated
from adalora_repro.records.run_record import RecordError
from adalora_repro.records.selection import Run, metrics_of, run_of
from adalora_repro.records.validation import NUMBER, TEXT, Check, fields, items
from adalora_repro.reports.significance import MEASURES, RESAMPLES, NoTest, bootstrap, mcnemar, same_examples
from adalora_repro.reports.spec import CHECKPOINTS, Report, Request
from adalora_repro.reports.text import cell_name, fixed, piped, plural, signed, wrapped

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MCNEMAR, BOOTSTRAP = "McNemar", "bootstrap"
ROUNDING = 1e-6  # points: predictions and record may differ by so much
SPLIT = "task.validation."  # and the suffix of the metrics of a split (MNLI: _m, _mm)
UNPACKED = 128 << 20  # most bytes of a file; the n-best lists of SQuAD 2.0 have 40 million
#: family -> file, points of one unit, and for each metric the measure that makes it of the figures in the file
SCORED = {
    "squad": ("nbest.jsonl.gz", 100.0, {"exact": "accuracy", "f1": "mean"}),
    "summarization": ("predictions.jsonl.gz", 1.0, dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), "mean")),
}
AFTER = (
    "McNemar: the exact test, where every example is right or wrong. bootstrap: paired, over examples "
    f"({RESAMPLES:,} resamples, seed 0); the interval is its percentile interval. p is two-sided and not corrected for "
    "the number of metrics. Both are about these two runs: what other seeds would give they do not say."
)


# --- the examples of a run --------------------------------------------------------------------------------------------


class Examples(NamedTuple):
    """One metric's examples in one evaluation.

    Attributes:
        measure: what of ``significance.MEASURES`` makes the metric of them; ``scale`` are points of one unit of it.
        names: what tells that two runs saw the same examples in the same order: ids, or in GLUE the labels.
        labels, values: (examples,); predictions and what they are compared with, or scores and ones.
    """

    measure: str
    scale: float
    names: list[Any]
    labels: NDArray[np.float64]
    values: NDArray[np.float64]


def read_examples(run: Run, select: str, metric: str) -> Examples:
    """The examples of ``metric`` at the checkpoint ``select`` of a run.

    Raises:
        NoTest: the metric has no figure for each example, or there is no file of them that can be read.
    """
    import numpy as np

    folder, settings = run.path.parent / select, run.record.settings
    family = settings.get("task.family")
    if family == "glue":
        splits = {name.removeprefix(SPLIT): of for name, of in settings.items() if name.startswith(SPLIT)}
        for suffix, split in splits.items():
            measure = metric.removesuffix(suffix)
            if metric.endswith(suffix) and measure in MEASURES:
                rows = read_rows(folder / f"predictions.{split}.jsonl.gz", {"label": NUMBER, "prediction": NUMBER})
                labels, values = (np.array([row[name] for row in rows], float) for name in ("label", "prediction"))
                return Examples(measure, 100.0, labels.tolist(), labels, values)
    elif family in SCORED and metric in SCORED[family][2]:
        name, scale, measures = SCORED[family]
        rows = read_rows(folder / name, {"id": TEXT, metric: NUMBER})
        scores = np.array([row[metric] for row in rows], float)
        return Examples(measures[metric], scale, [row["id"] for row in rows], np.ones(len(rows)), scores)
    raise NoTest("no mean over examples, or a record without the family of its task")


def read_rows(path: Path, row: Mapping[str, Check]) -> list[Any]:
    """The rows of a file, each with these fields."""
    try:
        with gzip.open(io.BytesIO(run_record.content_of(path))) as file:
            content = file.read(UNPACKED + 1)
        if len(content) > UNPACKED:
            raise ValueError(f"unpacks to more than {UNPACKED:,} bytes")
        rows = [validation.parse(line) for line in content.splitlines()]
        items(fields(row))(rows, "row")
    except FileNotFoundError:
        raise NoTest(f"no {path.name} beside a record") from None
    except RecordError as error:
        raise NoTest(str(error)) from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise NoTest(f"{path}: {first_line(error)}") from None
    if not rows:
        raise NoTest(f"{path} is empty")
    return rows


def compare_examples(metric: str, select: str, ours: Run, theirs: Run) -> tuple[str, float, float, float]:
    """The test of two runs, example by example.

    Returns:
        Name and p: McNemar's where every example is right or wrong, otherwise the paired bootstrap's. Low and high end
        of the bootstrap's interval of ours - theirs, in points.

    Raises:
        NoTest: they were evaluated on different examples, or the stored predictions are not those that were scored.
    """
    sides = a, b = [read_examples(run, select, metric) for run in (ours, theirs)]
    if not same_examples(ours.record, theirs.record) or a.names != b.names:
        raise NoTest("evaluated on different examples")
    for run, side in zip((ours, theirs), sides, strict=True):
        measured, recorded = side.scale * float(MEASURES[side.measure](side.labels, side.values)), run.scores[metric]
        if not abs(measured - recorded) <= ROUNDING:  # nor is it where it is no number
            raise NoTest(f"{run.path}: {metric} of the predictions is {measured:.4f}, in the record {recorded:.4f}")
    low, high, p = bootstrap(a.measure, a.labels, a.values, b.values)
    name = BOOTSTRAP
    if a.measure == "accuracy":
        name, p = MCNEMAR, mcnemar(a.values == a.labels, b.values == b.labels)
    return name, p, a.scale * low, a.scale * high


# --- the report -------------------------------------------------------------------------------------------------------


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
    untested: dict[str, list[str]] = defaultdict(list)
    for name in (name for name in a.scores if name in b.scores):
        shown = figures(a.scores[name], b.scores[name])
        try:
            test, p, low, high = compare_examples(name, select, a, b)
            rows.append([name, test, *shown, f"{signed(low)} to {signed(high)}", f"{p:.3g}"])
        except NoTest as reason:
            untested[str(reason)].append(name)
            rows.append([name, "not tested", *shown, "", ""])
    for name in (name for name in a.held_out if name in b.held_out):
        rows.append([f"{name}, held-out", "not tested", *figures(a.held_out[name], b.held_out[name]), "", ""])
    lines = [*wrapped(f"A: {described(a)}", "  "), *wrapped(f"B: {described(b)}", "  ")]
    lines += [f"checkpoint {select}; metrics in percent", "", *map(clean, piped(rows)), ""]
    lines += [line for why, names in untested.items() for line in wrapped(f"Not tested: {', '.join(names)}: {why}.")]
    lines += wrapped(AFTER)
    return "\n".join(lines) + "\n"


def described(run: Run) -> str:
    key, record = run.key, run.record
    warning = f"; {reason}" if (reason := outdated(record)) else ""
    degenerate = ", degenerate (the same prediction for every example)" * record.degenerate
    words = f"{cell_name(key)}, lr {lr_text(key['lr'])}, {plural(key['total_steps'], 'step')}, seed {key['seed']}"
    return f"{words}{degenerate}: {run.path}{warning}"


def figures(a: float, b: float) -> list[str]:
    return [fixed(a), fixed(b), signed(a - b)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, which in (("first", "A"), ("second", "B")):
        parser.add_argument(name, metavar=f"RUN_{which}", help="a run's folder or its metrics.json")
    parser.add_argument("--select", choices=CHECKPOINTS, default="final", help="checkpoint (default: %(default)s)")


def make(request: Request) -> str:
    return compare(request.args.first, request.args.second, request.args.select)


REPORT = Report("compare", "Two runs of one task, example by example", add_arguments, make, reads="nothing")
