"""How long a planned run takes and how much memory it needs: from finished runs and measurements of cost like it."""

from __future__ import annotations

import glob
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora_repro.config.catalog import resource
from adalora_repro.errors import expanded
from adalora_repro.records import cost_record, run_record
from adalora_repro.records.cost_record import CostRecord
from adalora_repro.records.selection import device_of, device_text

if TYPE_CHECKING:
    from adalora_repro.config.plan import Plan

#: settings on which the time of a step depends, beside backbone, task and method. Two are left out: the budget, which
#: matters little, and train.attention: ``eager`` took at most 1.5 times as long as ``cropped``
STEP = (
    *("train.batch_size", "train.grad_accumulation", "train.precision", "train.padding", "train.group_by_length"),
    *("train.compile", "backbone.gradient_checkpointing", "method.targets", "method.layers"),
    *("task.max_length", "task.max_target_length"),
)
EVALUATION = ("train.eval_steps", "eval.max_examples", "eval.batch_size", "task.num_beams")


@dataclass(frozen=True)
class Measured:
    """What a record says of the optimizer steps of one method.

    Attributes:
        device: see ``selection.device_text``.
        seconds: of a step, the mean over ``steps``; with ``evaluated`` they include the evaluations.
        peak: bytes of memory; None if it was not measured.
    """

    record: Path
    budget: str
    device: str
    seconds: float
    steps: int
    evaluated: bool
    peak: float | None

    def hours(self, total_steps: float) -> float:
        """Of a run of T steps."""
        return self.seconds * total_steps / 3600

    def __str__(self) -> str:
        evaluations = "with" if self.evaluated else "without"
        peak = "" if self.peak is None else f", peak memory {self.peak / 1e9:.2f} GB"
        path = self.record.relative_to(Path.cwd()) if self.record.is_relative_to(Path.cwd()) else self.record
        return f"{self.seconds:.3g} s a step {evaluations} evaluations{peak}: mean of {self.steps:,} steps in {path}"


def estimates(plan: Plan) -> list[Measured]:
    """Of each device the measurement that is nearest to a counted plan.

    Nearest: of the same budget, then with evaluations; of several the one with the median time.
    """
    wanted = {evaluated: _work(plan.key, plan.settings, plan.params, evaluated) for evaluated in (False, True)}
    devices: dict[str, dict[tuple[bool, bool], list[Measured]]] = defaultdict(lambda: defaultdict(list))
    for one, work in _measured(plan):
        if work == wanted[one.evaluated]:
            devices[one.device][one.budget == plan.key["budget"], one.evaluated].append(one)
    nearest = [sorted(ranked[max(ranked)], key=lambda one: one.seconds) for _, ranked in sorted(devices.items())]
    return [ones[(len(ones) - 1) // 2] for ones in nearest]


def of_cost(path: Path, record: CostRecord, method: str) -> Measured:
    """One method of a measurement of cost."""
    own = record.methods[method]
    device = device_text(record.key, record.memory_of)
    return Measured(path, own["budget"], device, own["mean_s"], len(record.pairs), False, own["peak_memory"])


def _measured(plan: Plan) -> Iterator[tuple[Measured, list[Any]]]:
    """What the folder of results and the published records have of the plan's backbone, task and method."""
    backbone, task, method = (glob.escape(str(plan.key[name])) for name in ("backbone", "task", "method"))
    results, published = expanded(plan.cfg.results.dir), resource("results") / "published"
    readers = {
        f"runs/{backbone}/{task}/{method}/*/*/{run_record.RECORD_NAME}": _of_run,
        f"cost/{backbone}/{task}/*/*/{cost_record.RECORD_NAME}": _of_cost,
    }
    for pattern, read in readers.items():
        for path in (*results.glob(pattern), *published.rglob(pattern)):
            with suppress(run_record.RecordError, OSError):  # reports name the files that cannot be read
                yield from read(path, plan.key["method"])


def _of_run(path: Path, _: str) -> Iterator[tuple[Measured, list[Any]]]:
    record = run_record.read(path)
    if record.status != "ok" or not record.final or not {"train_s", "eval_s"} <= record.time.keys():
        return
    device, steps = device_of(record), max(1, record.final["step"])
    for evaluated in (False, True):
        seconds = (record.time["train_s"] + evaluated * record.time["eval_s"]) / steps
        one = Measured(path, record.key["budget"], device, seconds, steps, evaluated, record.memory.get("peak"))
        yield one, _work(record.key, record.settings, record.params, evaluated)


def _of_cost(path: Path, method: str) -> Iterator[tuple[Measured, list[Any]]]:
    record = run_record.read_json(path, cost_record.validate)
    if own := record.methods.get(method):
        work = _work(record.key, own.get("settings", {}), own.get("params", {}), evaluated=False)
        yield of_cost(path, record, method), work


def _work(key: Mapping[str, Any], settings: Mapping[str, Any], params: Mapping[str, int], evaluated: bool) -> list[Any]:
    """What two runs of a backbone, task and method must share to take equally long on one device.

    The hub's data of a task and local files of it count as the same; generated text does not, nor do other files of
    one's own.
    """
    settings = run_record.stated(settings)
    data = [key["data"] == "sample", settings.get("task.hub") or settings.get("data.fingerprint")]
    names = (*STEP, *(EVALUATION if evaluated else ()))
    return [params.get("backbone"), *data, *(settings.get(name) for name in names)]
