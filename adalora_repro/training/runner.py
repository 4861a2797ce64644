"""One run from plan to record: its folder, its parts, resuming, and how it ended. The loop itself is ``train.py``."""

from __future__ import annotations

import errno
import gc
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from signal import SIGUSR2
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, set_seed
from omegaconf import OmegaConf
from transformers import get_linear_schedule_with_warmup

from adalora_repro import methods
from adalora_repro.config.plan import Plan
from adalora_repro.config.resolve import finished, settle
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, InputError
from adalora_repro.models import backbones, inject, speedups
from adalora_repro.records import provenance, run_record
from adalora_repro.records.lock import Lock, LostLockError
from adalora_repro.tasks import load_family
from adalora_repro.training import checkpoint
from adalora_repro.training.console import Interrupted, StopSignal, check_meeting_point, complain, launched, tell
from adalora_repro.training.distributed import LostError, World
from adalora_repro.training.loop import Loop, NonFiniteLossError, figures, run_loop

#: how long a process waits for another: the main one may tokenize the data meanwhile
PATIENCE = timedelta(hours=3)
CONFIG = "config.yaml"
ERROR = "error.txt"  # the traceback of a run that failed
SKIPPED = "skipped.json"  # the bad rows that were left out, by split, one line each
SIZES = ("params", "b_0", "b_T", "n", "r", "d", "wider", "widths")
BUDGET_FIELDS = (*SIZES, "t_i", "t_f", "delta_t", "mask_events", "gamma")


def execute(plan: Plan) -> int:
    """Trains, or goes on where the run was interrupted, and writes the record; returns the exit code.

    Raises:
        InputError: something a user can put right; what was on disk before is untouched.
    """
    stop = StopSignal()
    try:
        with stop.installed():
            world = World(_accelerator(plan.cfg))
            with _held(plan.folder, world) as lock:
                code = _execute_held(plan, stop, world, lock)
    except Interrupted as signal:
        tell(f"adalora-run: {signal}, nothing was lost: the same command starts it")
        code = signal.exit_code
    except LostLockError as error:
        complain(f"failed: {error}; this one stops and writes nothing more")
        if launched()[1] == 1:
            return stop.exit_code or EXIT_FAILED  # asked to stop: no next job
        raise SystemExit(EXIT_FAILED) from None  # perhaps in this process alone
    except LostError as error:
        complain(f"failed: {error}: the same command starts it")
        raise SystemExit(EXIT_FAILED) from None
    except OSError as error:
        if not _disk_full(error):
            raise
        complain(
            f"error: no space left in {plan.folder}; what was saved there is whole: free some space and repeat the "
            "command to go on"
        )
        return EXIT_BAD_INPUT
    if code not in (EXIT_FAILED, EXIT_BAD_INPUT):  # to be requeued would not help these
        try:
            stop.hand_on()
        except Exception as error:  # submitit's: as often as max_num_timeout allows, or scontrol does not answer
            complain(f"not requeued: {error}; the same command goes on")
    return code


def _execute_held(plan: Plan, stop: StopSignal, world: World, lock: Lock | None) -> int:
    # by another process, since run.py looked
    if not plan.cfg.force and (score := world.on_main(lambda: finished(plan))):
        print(f"already done: {plan.folder} ({score}); force=true runs it again")
        return EXIT_OK
    provenance.reset_peak_memory()
    loop = build(plan, world)  # nothing on disk has changed when this fails
    plan, folder = loop.plan, plan.folder
    state, problems = (None, []) if plan.cfg.force else checkpoint.load(folder, plan.key["hash"], loop.load_state_dict)
    for note in plan.notes:  # not before: a refusal is one line
        tell(f"adalora-run: note: {note}")
    if plan.provisional:
        tell(
            f"adalora-run: note: {len(loop.data.train):,} training examples, {plan.steps_per_epoch:,} steps an epoch, "
            f"T = {plan.total_steps:,}"
        )
    for problem in problems:
        tell(f"adalora-run: {problem}")
    if len({*world.gathered([None if state is None else state["t"]])}) > 1:
        raise InputError(f"{folder}: the processes read different checkpoints; all of them need the same results.dir")
    if state is not None:
        tell(f"resuming {folder} at step {loop.t:,} of {plan.total_steps:,}")
    record = run_record.RunRecord(
        key=plan.key,
        primary_metric=loop.task.primary_metric,
        params=plan.params,
        budget={name: plan.method[name] for name in BUDGET_FIELDS if name in plan.method} or None,
        data=loop.data.provenance,
        settings=plan.settings,
        environment=provenance.environment(world.accelerator.device) | {"processes": world.size},
    )

    def prepare() -> None:  # every process has read the checkpoint when the main one gets here
        if lock is not None:
            lock.check()
        if state is None and (saved := _set_aside(folder)):
            tell(
                f"starting {folder} over at step 0 of {plan.total_steps:,}; the checkpoints that were there stay until "
                f"you remove them: {', '.join(saved)}"
            )
        _write_settings(loop)
        loop.before_write = before_write

    def before_write() -> None:
        if lock is not None and lock.check() and finished(plan):
            raise LostLockError(f"another process took over and finished {folder}")
        if not (folder / CONFIG).exists():
            tell(f"adalora-run: note: {folder} was removed: made again, with its log and settings")
            _write_settings(loop)
            if loop.best is not None and not (folder / "best").exists():
                tell(f"adalora-run: note: {folder}: the predictions of step {loop.best['step']} in best/ are lost")

    def write(status: str, error: str | None = None) -> None:
        if world.main:
            loop.before_write()
            _write(loop, record, status, error)

    world.on_main(prepare)
    together = True  # all processes of the run get here
    try:
        with stop.deferred():
            run_loop(loop, stop, publish=lambda: write("running"))
        status, error, code = "ok", None, stop.exit_code or EXIT_OK  # asked to stop in the last step: no next job
    except Interrupted as signal:
        again = "without force=true the same command" if plan.cfg.force else "the same command"
        requeued = "goes on if its job is requeued; " if signal.signum == SIGUSR2 else ""
        status, error, code = "cancelled", f"{signal}: {requeued}{again} resumes it", signal.exit_code
        together = signal.agreed
    except Exception as problem:
        if _disk_full(problem) or isinstance(problem, LostLockError):
            raise
        trace, together = traceback.format_exc(), problem is world.common or isinstance(problem, NonFiniteLossError)
        status, error, code = "failed", f"{type(problem).__name__}: {problem}".splitlines()[0], EXIT_FAILED
    write(status, error)
    if status == "failed" and world.main:  # after the record, which must not depend on it
        with suppress(OSError):
            (folder / ERROR).write_text(trace, encoding="utf-8", errors="backslashreplace")
    if status == "failed" and not together:  # perhaps in this process alone
        complain(f"{status}: {error}  ({folder})", trace)
    elif status != "ok":
        tell(f"adalora-run: {status}: {error}  ({folder})")
    elif world.main:
        checkpoint.remove(folder)
        (folder / ERROR).unlink(missing_ok=True)  # of an earlier try
        assert record.final is not None
        print(f"done: {figures(plan.measured, record.final)}  ({folder / run_record.RECORD_NAME})")
        if loop.constant:
            same = ", ".join(f"{split}: {prediction}" for split, prediction in loop.constant.items())
            tell(f"adalora-run: note: degenerate: the last evaluation gave every example the same prediction ({same})")
    if world.size == 1:
        return code
    if not together:  # the others may be anywhere: no next job
        raise SystemExit(code)
    with suppress(LostError):  # a launcher ends all processes when one fails: the main one has written by now
        code = max(world.largest(code))
    return code


def _disk_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def _held(folder: Path, world: World) -> Iterator[Lock | None]:
    """The run's folder, for the processes of this run alone: a lock that the main one has and that dies with it.

    Yields:
        The lock in the main process, None in the others.

    Raises:
        InputError: the folder cannot be written, or another process trains there.
    """
    with ExitStack() as stack:
        locks: list[Lock] = []
        world.on_main(lambda: locks.append(stack.enter_context(_locked(folder))))
        yield locks[0] if locks else None


@contextmanager
def _locked(folder: Path) -> Iterator[Lock]:
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    lock = Lock(folder)
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.take(lambda line: tell(f"adalora-run: {line}"))
        except OSError as error:
            raise InputError(f"results.dir: cannot write {error.filename or folder}: {error.strerror}") from None
        yield lock
    finally:
        lock.release()
        with suppress(OSError):  # what failed before it wrote anything leaves nothing
            for parent in made:
                parent.rmdir()


def _write_settings(loop: Loop) -> None:
    nested = OmegaConf.create()
    for name, value in run_record.stated(loop.plan.settings).items():
        OmegaConf.update(nested, name, value)
    run_record.write_atomic(loop.plan.folder / CONFIG, OmegaConf.to_yaml(nested).encode())
    if loop.data.skipped:
        run_record.write_files(loop.plan.folder, {SKIPPED: loop.data.skipped})


def _set_aside(folder: Path) -> list[str]:
    """A start from step 0 (``force=true``, nothing to resume) keeps what an earlier try left, under numbered names.

    Returns:
        The new names of its checkpoints: they may be large, and nothing removes them.
    """
    taken = [re.fullmatch(r"[\w.]+\.old-(\d+)(\.\w+)?", path.name) for path in folder.iterdir()]
    number = 1 + max((int(match[1]) for match in taken if match), default=0)
    saved = []
    # checkpoints go first: none may be resumed without its log; the record goes last: it names the rest
    for name in (*checkpoint.FILES, "log.jsonl", "final", "best", SKIPPED, ERROR, run_record.RECORD_NAME):
        path = folder / name
        if path.exists():
            kept = path.rename(path.with_suffix(f".old-{number}{path.suffix}"))
            saved += [kept.name] if name in checkpoint.FILES else []
    return saved


def _accelerator(cfg: Any) -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)  # the run before in a sweep may have had another precision
    _, processes = launched()
    check_meeting_point()
    device = cfg.train.device
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("train.device=cuda, but torch finds no GPU here; train.device=auto uses the CPU")
    # accelerate starts several processes without a GPU only where it is told that there is none
    on_cpu = device == "cpu" or (processes > 1 and not torch.accelerator.is_available())
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision={"fp32": "no", "bf16": "bf16"}[cfg.train.precision],
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if accelerator.num_processes != processes:
        raise InputError(
            f"{processes} processes were started, but they cannot work together on {accelerator.device.type}; "
            "start one, or several with train.device=cpu"
        )
    return accelerator


def free_device(device: torch.device) -> None:
    """Gives back what models that are gone kept of a GPU's memory: earlier runs of a sweep, or the ones measured.

    Hooks and what accelerate wraps refer to their model, so that only the garbage collector ends it.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def build(plan: Plan, world: World | None = None) -> Loop:
    """Data, model, method and optimizer of a plan, on their device.

    Raises:
        InputError: data or backbone cannot be had or are not what the plan counted.
    """
    cfg = plan.cfg
    speedups.require_compiler(cfg.train.compile)
    world = world or World(_accelerator(cfg))
    free_device(world.accelerator.device)
    if not sys.stderr.isatty() or not world.main:
        datasets.disable_progress_bars()  # a log file wants lines
    task = load_family(cfg)
    set_seed(cfg.seed)
    tokenizer = backbones.load_tokenizer(cfg)
    backbones.check_lengths(cfg, tokenizer)
    plan = plan.with_notes(*backbones.tokenizer_notes(cfg, tokenizer))
    on_cpu = world.accelerator.device.type == "cpu"
    if on_cpu and cfg.train.precision == "bf16" and provenance.has_bf16_instructions() is False:
        plan = plan.with_notes(
            "this CPU has no bf16 instructions: train.precision=bf16 is far slower than fp32 here (16 times in one "
            "measurement)"
        )
    data = world.main_first(lambda: task.load(tokenizer))
    plan = settle(plan, len(data.train))
    cfg = plan.cfg
    model = backbones.load_model(cfg)
    method = methods.load(cfg)
    method.inject(model, backbones.find_sites(model))
    counted = inject.count_trained(model)
    if counted != {"method": plan.params["at_init"], "head": plan.params["head"]}:
        raise InputError(
            f"backbone '{cfg.backbone.name}' is not the architecture of conf/backbone: {counted} trained parameters, "
            f"planned {plan.params['at_init']:,} and {plan.params['head']:,}"
        )
    if cfg.backbone.gradient_checkpointing:
        backbones.recompute_activations(model)
    if cfg.train.attention == "cropped":
        speedups.crop_positions(model)
    if world.accelerator.device.type != "cpu":
        speedups.mask_without_looking(model)
        speedups.positions_at_hand(model)
    if cfg.train.precision == "bf16":
        speedups.store_frozen(model, torch.bfloat16)
    optimizer = make_optimizer(model, cfg.optim)
    # device and precision only: gradients are added up by `World`, without a wrapper around the model
    model = world.accelerator.prepare_model(model, evaluation_mode=True)
    optimizer = world.accelerator.prepare(optimizer)
    scheduler = get_linear_schedule_with_warmup(optimizer, cfg.optim.warmup_steps, plan.total_steps)
    method.compiled = cfg.train.compile != "none"
    method.on_train_start(plan.total_steps)
    if world.rank:
        torch.manual_seed(cfg.seed + world.rank)  # other examples, other dropout; the start was the same for all
    compiled = None
    if cfg.train.compile != "none":
        torch.compiler.reset()  # programs of earlier runs of a sweep count against a limit, beyond which none is made
        compiled = speedups.compiled(model, cfg.train.compile)
    return Loop(plan, model, method, task, data, optimizer, scheduler, world, compiled)


def make_optimizer(model: torch.nn.Module, optim: Any) -> torch.optim.AdamW:
    """AdamW on what trains, one fused call a step; vectors (biases, norms) do not decay, as transformers does."""
    parameters = list(inject.trained(model).values())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)


def _write(loop: Loop, record: run_record.RunRecord, status: str, error: str | None = None) -> None:
    """Brings the record up to date with the loop and writes it."""
    record.status, record.error = status, error
    record.best, record.final, record.degenerate = loop.best, loop.final, bool(loop.constant)
    # a device that failed may fail again when asked for ranks or memory: the record is then written without them
    with suppress(Exception) if status == "failed" else nullcontext():
        _measure(loop, record)
    record.progress = {"step": loop.t, "total_steps": loop.plan.total_steps, "updated": time.time()}
    if status == "running":
        record.progress |= {"host": socket.gethostname(), "pid": os.getpid()}
    run_record.write(record, loop.plan.folder)


def _measure(loop: Loop, record: run_record.RunRecord) -> None:
    """Updates the record's ranks, counts, time and memory."""
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
    record.memory = provenance.peak_memory(loop.world.accelerator.device)
