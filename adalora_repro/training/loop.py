"""The training loop; it knows only the Method and Task protocols.

One optimizer step t (from 0), in this order:

    forward -> task loss -> backward (once per micro-batch) -> regularizer's gradient -> clip
    -> method.before_update(t) -> optimizer.step -> scheduler.step -> method.after_update(t) -> zero_grad -> t += 1

Nothing in a step waits for the device: losses are kept as tensors and looked at when something is logged or saved, so a
non-finite loss is found, with its step, before it can enter a checkpoint or a record.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adalora_repro.models import inject
from adalora_repro.records import run_record, validation
from adalora_repro.tasks.base import Evaluation
from adalora_repro.terminal import one_line
from adalora_repro.training import checkpoint
from adalora_repro.training.batches import (
    epoch_order,
    evaluation_batches,
    loaded,
    longest_first,
    micro_batches,
    split,
    workers_for,
)
from adalora_repro.training.console import EvaluationStopped, Progress, StopSignal, Watch

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from adalora_repro.config.plan import Plan
    from adalora_repro.methods.base import BaseMethod
    from adalora_repro.tasks.base import Batch, Task, TaskData
    from adalora_repro.training.distributed import World


#: what the loop's own values in a checkpoint must be
LOOP = {
    "looked": validation.items(validation.NUMBER),
    "best": validation.optional(run_record.EVALUATION),
    "final": validation.optional(run_record.EVALUATION),
    "train_s": validation.AMOUNT,
    "eval_s": validation.AMOUNT,
    "tokens": validation.COUNT,
    "log_bytes": validation.COUNT,
    "evaluation_due": validation.FLAG,
}
LONG_EVALUATION = 200  # batches: before so many a checkpoint is saved, for a kill must not cost the steps before


class NonFiniteLossError(ArithmeticError):
    """The loss of a step, or a weight after it, is NaN or infinite; the message names the step."""


@dataclass
class Loop:
    """What changes from step to step; ``state_dict`` and ``load_state_dict`` are what a checkpoint holds."""

    plan: Plan
    model: PreTrainedModel
    method: BaseMethod
    task: Task
    data: TaskData
    optimizer: torch.optim.Optimizer
    scheduler: Any
    world: World
    compiled: Any = None  # ``model`` as a compiler made it, for the training steps; None: as it is
    t: int = 0
    losses: list[Tensor] = field(default_factory=list)  # of the steps since the last look, on the device
    looked: list[float] = field(default_factory=list)  # of the steps since the last log line, on the host
    log_due: bool = False  # in this step ``step`` also measures the norm of the task's gradient
    task_norm: Tensor | None = None  # at the last step where it was measured
    best: dict[str, Any] | None = None
    final: dict[str, Any] | None = None
    constant: dict[str, str] = field(default_factory=dict)  # of the final evaluation, as in ``Evaluation``
    train_s: float = 0.0
    eval_s: float = 0.0
    tokens: int = 0
    log_bytes: int = 0
    evaluation_due: bool = False  # of step t, which was stopped
    before_write: Callable[[], None] = lambda: None  # raises where the folder is no longer this run's

    def state_dict(self) -> dict[str, Any]:
        return {
            "format": checkpoint.VERSION,
            "hash": self.plan.key["hash"],
            "t": self.t,
            "model": {name: p.detach() for name, p in inject.trained(self.model).items()},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "method": self.method.state_dict(),
            "rng": list(self.world.gathered([checkpoint.rng_state()])),
            "loop": {name: getattr(self, name) for name in self._plain},
        }

    _plain = ("looked", "best", "final", "train_s", "eval_s", "tokens", "log_bytes", "evaluation_due")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a state that ``state_dict`` returned and ``checkpoint.load`` read.

        Raises:
            ValueError: the state does not fit: another version of this program or of a library made it. The loop then
                holds neither the old state nor the new one.
        """
        try:
            self._require_shape(state)
            with torch.no_grad():
                for name, parameter in inject.trained(self.model).items():
                    parameter.copy_(state["model"][name])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.method.load_state_dict(state["method"])
            for name in self._plain:
                setattr(self, name, state["loop"][name])
            self.t = state["t"]
            streams = state["rng"] if isinstance(state["rng"], list) else [state["rng"]]  # older checkpoints have one
            if self.world.rank < len(streams):  # additional processes begin new streams
                checkpoint.set_rng_state(streams[self.world.rank])
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            if checkpoint.no_memory(error):
                raise
            raise ValueError(one_line(error)) from None

    def _require_shape(self, state: dict[str, Any]) -> None:
        """Raises ValueError for misfits that torch accepts: it broadcasts, and checks no optimizer's state."""
        like = {
            "hash": "",
            "t": 0,
            "model": {name: parameter.detach() for name, parameter in inject.trained(self.model).items()},
            "optimizer": {"state": None, "param_groups": None},
            "scheduler": None,
            "method": self.method.state_dict(),
            "rng": None,
            "loop": None,
        }
        checkpoint.require_shape(state, like)
        validation.fields({name: LOOP.get(name, validation.ANY) for name in self._plain}, closed=True)(
            state["loop"], "loop", ValueError
        )
        if not 0 <= state["t"] <= self.plan.total_steps or state["scheduler"]["last_epoch"] != state["t"]:
            raise ValueError(f"t is {state['t']}, the scheduler at {state['scheduler']['last_epoch']}")
        ours, theirs = self.optimizer.state_dict()["param_groups"], state["optimizer"]["param_groups"]
        if [group["params"] for group in ours] != [group["params"] for group in theirs]:
            raise ValueError("optimizer.param_groups has other parameters")
        both = [*zip(ours, theirs, strict=True), (self.scheduler.state_dict(), state["scheduler"])]
        for mine, other in both:  # a library may add or remove entries
            common = mine.keys() & other.keys()
            checkpoint.require_shape({name: other[name] for name in common}, {name: mine[name] for name in common})
        parameters = [parameter.detach() for group in self.optimizer.param_groups for parameter in group["params"]]
        for number, moments in state["optimizer"]["state"].items():
            like = {"step": torch.zeros(()), "exp_avg": parameters[number], "exp_avg_sq": parameters[number]}
            checkpoint.require_shape(moments, like, f"optimizer.state[{number}]")
        if state["t"] and not state["optimizer"]["state"]:
            raise ValueError("optimizer.state is empty")

    def look(self) -> None:
        """Fetches the losses of the steps since the last look.

        Raises:
            NonFiniteLossError: one of them is not finite.
        """
        if not self.losses:
            return
        values = torch.stack(self.losses).tolist()
        for step, value in enumerate(values, self.t - len(values)):
            if not math.isfinite(value):
                raise NonFiniteLossError(f"the loss is {value} at step {step}; a lower optim.lr may help")
        self.looked += values
        self.losses = []


# -- the loop ------------------------------------------------------------------------------------------------------


class Log:
    """``log.jsonl``, kept open: when the file is removed its lines so far are still there, and written again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a+b")

    @property
    def length(self) -> int:
        """Bytes."""
        return self._file.tell()

    def restore(self) -> None:
        """Writes the file again if it was removed."""
        if self._path.exists():
            return
        self._file.seek(0)
        run_record.write_atomic(self._path, self._file.read())
        self._file.close()
        self._file = self._path.open("a+b")

    def append(self, line: dict[str, Any]) -> None:
        """Writes a line; a number that is not finite, which JSON does not have, is written as null."""
        self.restore()
        self._file.write(validation.dump(_finite(line)))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_loop(loop: Loop, stop: StopSignal, publish: Callable[[], None]) -> None:
    """Steps t … T - 1 with logging, evaluation and checkpoints; ``publish`` tells the world how far the run is.

    Raises:
        NonFiniteLossError: a loss is not finite.
        Interrupted: asked to stop; a checkpoint of the step is saved.
    """
    cfg, total = loop.plan.cfg.train, loop.plan.total_steps
    log_path = loop.plan.folder / "log.jsonl"
    if loop.world.main:
        log_path.touch()
        os.truncate(log_path, min(loop.log_bytes, log_path.stat().st_size))  # lines after the checkpoint come again
    key, main = loop.plan.key, loop.world.main
    progress = Progress(f"{key['task']} {key['method']} {key['budget']}", loop.t, total, quiet=not main)
    watch = Watch(progress, stop, publish, loop.world)
    try:
        with closing(Log(log_path if main else Path(os.devnull))) as log:
            _evaluate_before(loop, log, watch)
            began = time.perf_counter()
            for batches in training_batches(loop):
                last = loop.t + 1 == total
                loop.log_due = last or (loop.t + 1) % cfg.log_steps == 0
                grad_norm = step(loop, batches)
                watch.progress.update(loop.t)
                loop.evaluation_due = last or loop.t % loop.plan.eval_steps == 0
                stopping = not last and watch.stopping()
                save_due = stopping or (not last and loop.t % cfg.save_steps == 0)
                look_due = loop.log_due or loop.evaluation_due or save_due
                if not (look_due or watch.due()):
                    continue
                if look_due:  # a heartbeat alone is no place to fail: each process has its own
                    loop.look()  # waits for the device, so the clock is true; nothing spoilt goes past this line
                loop.train_s += time.perf_counter() - began
                if loop.log_due:
                    _log_step(loop, grad_norm, log, watch.progress)
                if loop.evaluation_due:
                    _evaluate(loop, log, watch)
                if save_due:
                    _save(loop, log)
                    if stopping:
                        stop.check()
                    watch.publish()
                watch.beat()
                began = time.perf_counter()
    finally:
        watch.progress.close()


def _evaluate_before(loop: Loop, log: Log, watch: Watch) -> None:
    """Before the first step of this process: the evaluation that stopped the one before; that of step 0, if wished."""
    if loop.evaluation_due:
        _evaluate(loop, log, watch)
    elif loop.plan.cfg.eval.untrained and loop.t == 0:
        try:
            evaluation = evaluate(loop, watch)
        except EvaluationStopped:
            watch.stop.check()
            raise
        _log_evaluation(loop, evaluation, log, watch.progress)


def _save(loop: Loop, log: Log) -> None:
    _check_weights(loop)  # a step may spoil them whose loss was still finite, and no run could go on from there
    loop.log_bytes = log.length
    state = loop.state_dict()

    def save() -> None:
        loop.before_write()
        log.restore()
        checkpoint.save(loop.plan.folder, state)

    loop.world.on_main(save)


def step(loop: Loop, batches: list[Batch]) -> Tensor:
    """One optimizer step on this process's micro-batches; returns the gradient's norm before clipping.

    If a log line is due, sets ``loop.task_norm`` to the norm of the task loss's gradient, without the regularizer's.
    """
    model, method, optimizer, world = loop.model, loop.method, loop.optimizer, loop.world
    called = model if loop.compiled is None else loop.compiled
    model.train()
    whole = len(batches) == 1 and world.size == 1
    losses: list[Tensor] = []
    terms = 0
    for batch in batches:
        with world.accelerator.autocast():
            loss, n = loop.task.loss(called, batch)
        # a mean over all examples of the step: micro-batches count by their number of terms
        world.accelerator.backward(loss if whole else loss * n)
        losses.append(loss.detach() if whole else loss.detach() * n)
        terms += n
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if whole:
        mean = losses[0]
    else:  # a process may have none of a small batch's examples
        mean = torch.stack(losses or [torch.zeros((), device=world.accelerator.device)]).sum()
        count: Any = float(terms)
        if world.size > 1:
            mean, count = world.add_up(parameters, torch.stack([mean, torch.full_like(mean, count)]))
        torch._foreach_div_([p.grad for p in parameters if p.grad is not None], count)
        mean = mean / count
    penalty = method.regularizer()
    if loop.log_due and penalty is not None:
        loop.task_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if penalty is not None:
        add_gradient(penalty, parameters)
    grad_norm = world.accelerator.clip_grad_norm_(parameters, loop.plan.cfg.optim.max_grad_norm)
    method.before_update(loop.t)
    optimizer.step()
    loop.scheduler.step()
    method.after_update(loop.t)
    optimizer.zero_grad()
    loop.losses.append(mean)
    loop.t += 1
    assert grad_norm is not None
    if loop.log_due and penalty is None:
        loop.task_norm = grad_norm
    return grad_norm


def add_gradient(loss: Tensor, parameters: Sequence[torch.nn.Parameter]) -> None:
    """Adds the gradient of ``loss`` to those of ``parameters``: one call for all, and no hook of ``backward`` fires."""
    totals, added = [], []
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
        if gradient is not None and parameter.grad is None:
            parameter.grad = gradient
        elif gradient is not None:
            totals.append(parameter.grad)
            added.append(gradient)
    if added:
        torch._foreach_add_(totals, added)


def training_batches(loop: Loop) -> Iterator[list[Batch]]:
    """This process's micro-batches of every step from ``loop.t`` on; which these are follows from t and the seed."""
    per_epoch = loop.plan.steps_per_epoch
    lengths = loop.data.train["length"][:]
    for epoch in range(loop.t // per_epoch, math.ceil(loop.plan.total_steps / per_epoch)):
        batches = steps_of(loop, epoch, lengths)
        first, last = loop.t - epoch * per_epoch, loop.plan.total_steps - epoch * per_epoch
        steps, ahead = tee(parts_of(loop, rows, lengths) for rows in batches[first:last])  # cut as they are loaded
        ready = _loaded(loop, loop.data.train, chain.from_iterable(ahead), len(batches[first:last]))
        for rows, parts in zip(batches[first:last], steps, strict=True):
            loop.tokens += sum(lengths[row] for row in rows)
            yield [next(ready) for _ in parts]


def steps_of(loop: Loop, epoch: int, lengths: Sequence[int]) -> list[list[int]]:
    """Row numbers of every optimizer step of an epoch; ``lengths`` are the tokens of each row."""
    cfg = loop.plan.cfg
    return epoch_order(lengths, cfg.train.batch_size, cfg.seed * 100_003 + epoch, cfg.train.group_by_length)


def parts_of(loop: Loop, rows: list[int], lengths: Sequence[int]) -> list[list[int]]:
    """This process's rows of a step, in the parts that go through the model one after the other.

    Those of a batch drawn at random are dealt out and cut in order of length, which saves padding and changes nothing
    else: a step's gradient is that of all its rows.
    """
    train, world = loop.plan.cfg.train, loop.world
    if train.group_by_length or train.padding == "max_length":
        return list(world.own(split(rows, train.grad_accumulation * world.size)))
    mine = list(world.own(longest_first(lengths, rows)))
    on_cpu = world.accelerator.device.type == "cpu"
    return micro_batches(mine, lengths, train.grad_accumulation, on_cpu, train.pass_tokens)


def _loaded(loop: Loop, rows: Dataset, batches: Iterable[list[int]], count: int) -> Iterator[Batch]:
    """The batches, of which there are ``count`` or more, on the device."""
    device = loop.world.accelerator.device
    workers = workers_for(loop.plan.cfg.train.num_workers, device, count)
    return loaded(rows, batches, loop.task.collate, device, workers)


def evaluate(loop: Loop, watch: Watch) -> Evaluation:
    """The task's figures of the model as it counts at the budget, on every evaluation split.

    Raises:
        NonFiniteLossError: a weight is not finite: what it would predict or write might look like a result.
    """
    _check_weights(loop)
    loop.model.eval()
    with loop.method.masked(), torch.inference_mode(), loop.world.accelerator.autocast():
        found = {name: loop.world.gathered(_predictions(loop, name, watch)) for name in loop.data.evaluation}
        files: dict[str, Any] = {}  # stay in the main process, which writes them

        def scored() -> Evaluation:
            evaluation = loop.task.metrics(found)
            files.update(evaluation.files)
            return replace(evaluation, files={})

        return replace(loop.world.on_main(scored), files=files)


def _check_weights(loop: Loop) -> None:
    trained = inject.trained(loop.model)
    finite = torch.stack([parameter.isfinite().all() for parameter in trained.values()])
    for name, is_finite in zip(trained, finite.tolist(), strict=True):  # the device is waited for once
        if not is_finite:
            raise NonFiniteLossError(f"{name} is not finite after step {loop.t - 1}; a lower optim.lr may help")


def _predictions(loop: Loop, name: str, watch: Watch) -> Iterator[dict[str, Any]]:
    """This process's batches of predictions on the host, while they are asked for: a task keeps what it needs of them.

    The next batch is under way before one is fetched, so that the device does not wait for the host.
    """
    rows, world = loop.data.evaluation[name], loop.world
    batches = evaluation_batches(rows["length"][:], loop.plan.cfg.eval.batch_size)
    own = world.own(batches)
    ready = zip(_loaded(loop, rows, own, len(own)), own, strict=True)
    before: tuple[dict[str, Tensor], list[int]] | None = None
    for done in range(0, len(batches), world.size):  # as many rounds in each process, for these agree on a stop
        watch.evaluating(name, done, len(batches))
        for batch, index in islice(ready, 1):
            found = loop.task.predict(loop.model, batch)
            if before is not None:
                yield _fetched(*before)
            before = found, index
    if before is not None:
        yield _fetched(*before)


def _fetched(found: dict[str, Tensor], index: list[int]) -> dict[str, Any]:
    return {name: value.cpu().numpy() for name, value in found.items()} | {"index": index}


# -- writing things down -------------------------------------------------------------------------------------------


@torch.no_grad()
def _log_step(loop: Loop, grad_norm: Tensor, log: Log, progress: Progress) -> None:
    assert loop.task_norm is not None
    loss = sum(loop.looked) / len(loop.looked)
    penalty = loop.method.regularizer()
    line = {
        "t": loop.t,
        "loss": loss,
        "regularizer": None if penalty is None else penalty.item(),
        "lr": loop.scheduler.get_last_lr()[0],
        "grad_norm": float(grad_norm),
        "grad_norm_task": float(loop.task_norm),
    }
    loop.looked = []
    loop.before_write()
    log.append(line | loop.method.curve(loop.t - 1))
    progress.line(loop.t, f"loss {loss:.4f}")


def _evaluate(loop: Loop, log: Log, watch: Watch) -> None:
    """Evaluates step t, which is due; a run that is asked to stop meanwhile makes it when it goes on.

    Raises:
        Interrupted: asked to stop; a checkpoint of the step is saved.
    """
    saved = _evaluation_batches(loop) >= LONG_EVALUATION
    if saved:
        _save(loop, log)
    began = time.perf_counter()
    try:
        evaluation = evaluate(loop, watch)
    except EvaluationStopped:
        if not saved:
            _save(loop, log)
        watch.stop.check()
        raise
    loop.eval_s += time.perf_counter() - began
    loop.evaluation_due = False
    primary = loop.task.primary_metric
    entry = evaluation.entry | {"step": loop.t}
    if loop.method.at_final_budget(loop.t - 1) and (
        loop.best is None
        or run_record.figures_to_choose_by(entry)[primary] > run_record.figures_to_choose_by(loop.best)[primary]
    ):
        loop.best = entry
        _write_files(loop, "best", evaluation)
    if loop.t == loop.plan.total_steps:
        loop.final, loop.constant = entry, evaluation.constant
        _write_files(loop, "final", evaluation)
    _log_evaluation(loop, evaluation, log, watch.progress)


def _evaluation_batches(loop: Loop) -> int:
    return sum(math.ceil(len(rows) / loop.plan.cfg.eval.batch_size) for rows in loop.data.evaluation.values())


def _write_files(loop: Loop, name: str, evaluation: Evaluation) -> None:
    def write() -> None:
        loop.before_write()
        run_record.write_files(loop.plan.folder / name, evaluation.files)

    loop.world.on_main(write)


def _log_evaluation(loop: Loop, evaluation: Evaluation, log: Log, progress: Progress) -> None:
    loop.before_write()
    line = {"t": loop.t, "evaluation": evaluation.metrics}
    log.append(line if evaluation.holdout is None else line | {"holdout": evaluation.holdout})
    progress.line(loop.t, figures(loop.plan.measured, evaluation.entry))


def figures(names: Sequence[str], entry: Mapping[str, Any]) -> str:
    """The metrics of these names in an evaluation (such as ``final`` of a record), as text."""

    def text(metrics: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {metrics[name]:.4f}" for name in names if name in metrics)

    return text(entry["metrics"]) + (f"; held out: {text(entry['holdout'])}" if "holdout" in entry else "")
