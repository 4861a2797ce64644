"""The training loop; it knows only the Method and Task protocols.

One optimizer step t (from 0), in this order:

    forward -> task loss -> backward (once per micro-batch) -> regularizer's gradient -> clip
    -> method.before_update(t) -> optimizer.step -> scheduler.step -> method.after_update(t) -> zero_grad -> t += 1

Nothing in a step waits for the device: losses are kept as tensors and looked at when something is logged or saved, so a
non-finite loss is found, with its step, before it can enter a checkpoint or a record.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import get_linear_schedule_with_warmup
from transformers.trainer_pt_utils import get_length_grouped_indices

from adalora_repro import backbones, checkpoint, inject, methods, provenance, records
from adalora_repro.console import Interrupted, Progress, StopSignal
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, InputError
from adalora_repro.tasks import load_family

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adalora_repro.methods.base import BaseMethod
    from adalora_repro.plan import Plan
    from adalora_repro.tasks.base import Batch, Task, TaskData


HEARTBEAT_S = 60.0  # a running record is renewed at least this often, at the next logged step


class NonFiniteLossError(ArithmeticError):
    """The loss of a step is NaN or infinite; the message names the step."""


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
    accelerator: Accelerator
    t: int = 0
    losses: list[Tensor] = field(default_factory=list)  # of the steps since the last look, on the device
    looked: list[float] = field(default_factory=list)  # of the steps since the last log line, on the host
    best: dict[str, Any] | None = None
    final: dict[str, Any] | None = None
    train_s: float = 0.0
    eval_s: float = 0.0
    tokens: int = 0
    log_bytes: int = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "hash": self.plan.key["hash"],
            "t": self.t,
            "model": {name: p.detach() for name, p in inject.trained(self.model).items()},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "method": self.method.state_dict(),
            "rng": checkpoint.rng_state(),
            "loop": {name: getattr(self, name) for name in self._plain},
        }

    _plain = ("looked", "best", "final", "train_s", "eval_s", "tokens", "log_bytes")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, parameter in inject.trained(self.model).items():
                parameter.copy_(state["model"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.method.load_state_dict(state["method"])
        for name in self._plain:
            setattr(self, name, state["loop"][name])
        self.t = state["t"]
        checkpoint.set_rng_state(state["rng"])

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


# -- one run, from plan to record ----------------------------------------------------------------------------------


def train(plan: Plan) -> int:
    """Trains, or goes on where the run was interrupted, and writes the record; returns the exit code.

    Raises:
        InputError: something a user can put right; what was on disk before is untouched.
    """
    stop = StopSignal()
    try:
        with stop.installed(), _held(plan.folder):
            return _train_held(plan, stop)
    except Interrupted as signal:
        print(f"adalora-run: {signal}, nothing was lost: the same command starts it", file=sys.stderr)
        return signal.exit_code
    except OSError as error:
        if not _disk_full(error):
            raise
        print(
            f"adalora-run: error: no space left in {plan.folder}; what was saved there is whole: free some space and "
            "repeat the command to go on",
            file=sys.stderr,
        )
        return EXIT_BAD_INPUT


def _train_held(plan: Plan, stop: StopSignal) -> int:
    loop = build(plan)  # nothing on disk has changed when this fails
    folder = plan.folder
    state, problems = (None, []) if plan.cfg.force else checkpoint.load(folder, plan.key["hash"])
    for problem in problems:
        print(f"adalora-run: {problem}", file=sys.stderr)
    if state is None:
        _set_aside(folder)
    else:
        loop.load_state_dict(state)
        print(f"resuming {folder} at step {loop.t:,} of {plan.total_steps:,}", file=sys.stderr)
    record = records.RunRecord(
        key=plan.key,
        primary_metric=loop.task.primary_metric,
        params=plan.params,
        budget={k: v for k, v in plan.method.items() if not k.startswith("alpha")} or None,
        data=loop.data.provenance,
        settings=plan.settings,
        environment=provenance.environment(loop.accelerator.device),
    )
    nested = OmegaConf.create()
    for name, value in plan.settings.items():
        OmegaConf.update(nested, name, value)
    records.write_atomic(folder / "config.yaml", OmegaConf.to_yaml(nested).encode())
    try:
        with stop.deferred():
            run_loop(loop, record, stop)
        status, error, code = "ok", None, EXIT_OK
    except Interrupted as signal:
        again = "without force=true the same command" if plan.cfg.force else "the same command"
        status, error, code = "cancelled", f"{signal}: {again} resumes it", signal.exit_code
    except Exception as problem:
        if _disk_full(problem):
            raise
        (folder / "error.txt").write_text(traceback.format_exc())
        status, error, code = "failed", f"{type(problem).__name__}: {problem}".splitlines()[0], EXIT_FAILED
    _write(loop, record, status, error)
    if status == "ok":
        checkpoint.remove(folder)
        (folder / "error.txt").unlink(missing_ok=True)  # of an earlier try
        figures = ", ".join(f"{name} {value:.4f}" for name, value in record.final["metrics"].items())  # type: ignore[index]
        print(f"done: {figures}  ({folder / records.RECORD_NAME})")
    else:
        print(f"adalora-run: {status}: {error}  ({folder})", file=sys.stderr)
    return code


def _disk_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The run's folder, ours alone: a lock that dies with its process.

    Raises:
        InputError: the folder cannot be written, or another process trains there.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(f"results.dir: cannot write {error.filename}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process is training this run") from None
        except OSError:
            pass  # a file system without locks: two writers then differ in nothing but time
        try:
            yield
        finally:
            (folder / ".lock").unlink(missing_ok=True)
            with suppress(OSError):  # what failed before it wrote anything leaves nothing
                for path in made:
                    path.rmdir()


def _set_aside(folder: Path) -> None:
    """A start from step 0 (``force=true``, or nothing to resume) keeps what an earlier try left, under numbered names."""
    number = 1 + len(list(folder.glob("metrics.old-*.json")))
    for name in (records.RECORD_NAME, "log.jsonl"):
        path = folder / name
        if path.exists():
            path.rename(path.with_suffix(f".old-{number}{path.suffix}"))
    checkpoint.remove(folder)


def build(plan: Plan) -> Loop:
    """Data, model, method and optimizer of a plan, on their device.

    Raises:
        InputError: data or backbone cannot be had or are not what the plan counted.
    """
    cfg = plan.cfg
    AcceleratorState._reset_state(reset_partial_state=True)  # the run before in a sweep may have had another precision
    accelerator = Accelerator(
        cpu=cfg.train.device == "cpu", mixed_precision={"fp32": "no", "bf16": "bf16"}[cfg.train.precision]
    )
    if cfg.train.device == "cuda" and accelerator.device.type != "cuda":
        raise InputError("train.device=cuda, but torch finds no GPU here; train.device=auto uses the CPU")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()  # a log file wants lines
    task = load_family(cfg)
    set_seed(cfg.seed)
    data = task.load(backbones.load_tokenizer(cfg))
    model = backbones.load_model(cfg)
    method = methods.load(cfg)
    method.inject(model, backbones.find_sites(model))
    counted = inject.count_trained(model)
    if counted != {"method": plan.params["at_init"], "head": plan.params["head"]}:
        raise InputError(
            f"backbone '{cfg.backbone.name}' is not the architecture of conf/backbone: {counted} trained parameters, "
            f"planned {plan.params['at_init']:,} and {plan.params['head']:,}"
        )
    if math.ceil(len(data.train) / cfg.train.batch_size) != plan.steps_per_epoch:
        raise InputError(f"the train split has {len(data.train):,} rows, which is not what the plan's T was made from")
    if cfg.backbone.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = make_optimizer(model, cfg.optim)
    model, optimizer = accelerator.prepare(model, optimizer)
    scheduler = get_linear_schedule_with_warmup(optimizer, cfg.optim.warmup_steps, plan.total_steps)
    method.on_train_start(plan.total_steps)
    return Loop(plan, model, method, task, data, optimizer, scheduler, accelerator)


def make_optimizer(model: torch.nn.Module, optim: Any) -> torch.optim.AdamW:
    """AdamW on what trains; vectors (biases, norms) do not decay, as in transformers' Trainer. One fused call a step."""
    parameters = list(inject.trained(model).values())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)


# -- the loop ------------------------------------------------------------------------------------------------------


def run_loop(loop: Loop, record: records.RunRecord, stop: StopSignal) -> None:
    """Steps t … T - 1 with logging, evaluation and checkpoints."""
    cfg, total = loop.plan.cfg.train, loop.plan.total_steps
    eval_steps = cfg.eval_steps or loop.plan.steps_per_epoch
    key = loop.plan.key
    progress = Progress(f"{key['task']} {key['method']} {key['budget']}", loop.t, total)
    log_path = loop.plan.folder / "log.jsonl"
    log_path.touch()
    os.truncate(log_path, min(loop.log_bytes, log_path.stat().st_size))  # lines after the checkpoint are written again
    try:
        with log_path.open("a") as log:
            _write(loop, record, "running")
            for batches in training_batches(loop):
                began = time.perf_counter()
                grad_norm = step(loop, batches)
                loop.train_s += time.perf_counter() - began
                progress.update(loop.t)
                if loop.t % cfg.log_steps == 0 or loop.t == total:
                    _log_step(loop, grad_norm, log, progress)
                    if time.time() - record.progress["updated"] > HEARTBEAT_S:
                        _write(loop, record, "running")
                if loop.t % eval_steps == 0 or loop.t == total:
                    _evaluate(loop, log, progress)
                if loop.t % cfg.save_steps == 0 and loop.t < total:
                    _save(loop, log)
                    _write(loop, record, "running")
                try:
                    stop.check()
                except Interrupted:
                    _save(loop, log)
                    raise
    finally:
        progress.close()


def step(loop: Loop, batches: list[Batch]) -> Tensor:
    """One optimizer step on the micro-batches of its batch; returns the gradient's norm before clipping."""
    model, method, optimizer, accelerator = loop.model, loop.method, loop.optimizer, loop.accelerator
    model.train()
    terms, losses = [], []
    for batch in batches:
        with accelerator.autocast():
            loss, n = loop.task.loss(model, batch)
        # a mean over all examples of the step: micro-batches count by their number of terms
        accelerator.backward(loss if len(batches) == 1 else loss * n)
        losses.append(loss.detach() * n)
        terms.append(n)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if len(batches) > 1:
        torch._foreach_div_([p.grad for p in parameters if p.grad is not None], float(sum(terms)))
    if (penalty := method.regularizer()) is not None:
        penalty.backward()
    grad_norm = accelerator.clip_grad_norm_(parameters, loop.plan.cfg.optim.max_grad_norm)
    method.before_update(loop.t)
    optimizer.step()
    loop.scheduler.step()
    method.after_update(loop.t)
    optimizer.zero_grad()
    loop.losses.append(torch.stack(losses).sum() / sum(terms) if len(batches) > 1 else loss.detach())
    loop.t += 1
    assert grad_norm is not None
    return grad_norm


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, group: bool) -> list[list[int]]:
    """Row numbers of the batches of one epoch, each row once.

    With ``group``, rows of similar length share a batch (little padding); the order of batches is random either way.
    """
    generator = torch.Generator().manual_seed(seed)
    if group:
        order = get_length_grouped_indices(lengths, batch_size, generator=generator)
    else:
        order = torch.randperm(len(lengths), generator=generator).tolist()
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator)]


def training_batches(loop: Loop) -> Iterator[list[Batch]]:
    """The micro-batches of every step from ``loop.t`` on; the data position follows from t and the seed alone."""
    cfg, per_epoch = loop.plan.cfg, loop.plan.steps_per_epoch
    lengths = loop.data.train["length"][:]
    for epoch in range(loop.t // per_epoch, math.ceil(loop.plan.total_steps / per_epoch)):
        batches = epoch_batches(lengths, cfg.train.batch_size, cfg.seed * 100_003 + epoch, _grouped(cfg))
        first, last = loop.t - epoch * per_epoch, loop.plan.total_steps - epoch * per_epoch
        for rows, micro_batches in _loader(loop, batches[first:last], cfg.train.grad_accumulation):
            loop.tokens += sum(lengths[row] for row in rows)
            yield micro_batches


def _grouped(cfg: Any) -> bool:
    return bool(cfg.train.padding == "longest")


def _loader(loop: Loop, batches: list[list[int]], parts: int) -> Iterator[tuple[list[int], list[Batch]]]:
    """(rows, micro-batches on the device) per optimizer step."""
    split = [
        [rows[i : i + -(-len(rows) // parts)] for i in range(0, len(rows), -(-len(rows) // parts))] for rows in batches
    ]
    micro = iter(_to_device(loop, loop.data.train, [rows for step_rows in split for rows in step_rows]))
    for rows, step_rows in zip(batches, split, strict=True):
        yield rows, [next(micro) for _ in step_rows]


def _to_device(loop: Loop, rows: datasets.Dataset, batches: list[list[int]]) -> Iterator[Batch]:
    device, workers = loop.accelerator.device, loop.plan.cfg.train.num_workers
    loader: Any = DataLoader(
        rows,  # type: ignore[arg-type]
        batch_sampler=batches,
        collate_fn=loop.task.collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the loader draws a seed for its workers; not from the run's stream
    )
    for batch in loader:
        yield {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def evaluate(loop: Loop) -> dict[str, float]:
    """The metrics of the model as it counts at the budget, on every evaluation split."""
    predictions: dict[str, list[dict[str, Any]]] = {}
    loop.model.eval()
    with loop.method.masked(), torch.inference_mode(), loop.accelerator.autocast():
        for split, rows in loop.data.evaluation.items():
            lengths = rows["length"][:]
            order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)  # little padding
            size = loop.plan.cfg.eval.batch_size
            batches = [order[i : i + size] for i in range(0, len(order), size)]
            found = [loop.task.predict(loop.model, batch) for batch in _to_device(loop, rows, batches)]
            predictions[split] = [
                {name: value.cpu().numpy() for name, value in part.items()} | {"index": index}
                for part, index in zip(found, batches, strict=True)
            ]
    return loop.task.metrics(predictions)  # type: ignore[arg-type]


# -- writing things down -------------------------------------------------------------------------------------------


def _log_step(loop: Loop, grad_norm: Tensor, log: Any, progress: Progress) -> None:
    loop.look()
    loss = sum(loop.looked) / len(loop.looked)
    penalty = loop.method.regularizer()
    line = {
        "t": loop.t,
        "loss": loss,
        "regularizer": None if penalty is None else penalty.item(),
        "lr": loop.scheduler.get_last_lr()[0],
        "grad_norm": float(grad_norm),
    }
    loop.looked = []
    _append(log, line | loop.method.curve(loop.t - 1))
    progress.line(loop.t, f"loss {loss:.4f}")


def _evaluate(loop: Loop, log: Any, progress: Progress) -> None:
    loop.look()  # never evaluate what a non-finite loss has spoilt
    began = time.perf_counter()
    metrics = evaluate(loop)
    loop.eval_s += time.perf_counter() - began
    primary = loop.task.primary_metric
    evaluation = {"metrics": metrics, "step": loop.t}
    if loop.method.at_final_budget(loop.t - 1) and (
        loop.best is None or metrics[primary] > loop.best["metrics"][primary]
    ):
        loop.best = evaluation
    if loop.t == loop.plan.total_steps:
        loop.final = evaluation
    _append(log, {"t": loop.t, "evaluation": metrics})
    progress.line(loop.t, ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


def _append(log: Any, line: dict[str, Any]) -> None:
    log.write(json.dumps(line) + "\n")
    log.flush()


def _save(loop: Loop, log: Any) -> None:
    loop.look()  # a spoilt model must not be saved
    loop.log_bytes = log.tell()
    checkpoint.save(loop.plan.folder, loop.state_dict())


def _write(loop: Loop, record: records.RunRecord, status: str, error: str | None = None) -> None:
    """Brings the record up to date with the loop and writes it."""
    record.status, record.error = status, error
    record.best, record.final = loop.best, loop.final
    summary = loop.method.summary()
    record.rank_pattern = summary.get("rank_pattern")
    if loop.final is not None and "params" in summary:
        record.params = record.params | {
            "method": summary["params"],
            "total": summary["params"] + record.params["head"],
        }
    record.time = {
        "train_s": loop.train_s,
        "eval_s": loop.eval_s,
        "s_per_step": loop.train_s / loop.t if loop.t else 0.0,
        "s_per_epoch": loop.train_s / loop.t * loop.plan.steps_per_epoch if loop.t else 0.0,
        "tokens_per_s": loop.tokens / loop.train_s if loop.train_s else 0.0,
    }
    record.memory = provenance.peak_memory(loop.accelerator.device)
    record.progress = {"step": loop.t, "total_steps": loop.plan.total_steps, "updated": time.time()}
    if status == "running":
        record.progress |= {"host": socket.gethostname(), "pid": os.getpid(), "train_s": loop.train_s}
    records.write(record, loop.plan.folder)
