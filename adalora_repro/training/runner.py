"""One run from plan to record: its folder, its parts, resuming, and how it ended. The loop itself is ``loop.py``."""

from __future__ import annotations

import errno
import gc
import os
import sys
import traceback
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from signal import SIGUSR2
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, set_seed

from adalora_repro import methods
from adalora_repro.config.plan import Plan
from adalora_repro.config.resolve import already_done, finished, settle
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, InputError, errno_of, one_line
from adalora_repro.models import backbones, inject, sites, speedups
from adalora_repro.records import provenance, run_record
from adalora_repro.records.lock import Lock, LostFolderError
from adalora_repro.tasks import load_family
from adalora_repro.training import checkpoint, folder, kept, trackers
from adalora_repro.training.batches import first_batches
from adalora_repro.training.distributed import LostError, Processes, launched
from adalora_repro.training.folder import figures
from adalora_repro.training.loop import run_loop
from adalora_repro.training.progress import complain, say, stage
from adalora_repro.training.signals import Interrupted, StopSignal
from adalora_repro.training.state import NonFiniteLossError, RunState

#: how long a process waits for another: the main one may be tokenizing the data
PATIENCE = timedelta(hours=3)
DISK_FULL, DISK_LOST = (errno.ENOSPC, errno.EDQUOT), (errno.EIO, errno.ESTALE)
NO_BF16 = "this CPU has no bf16 instructions: train.precision=bf16 "
BF16_IN_FP32 = f"{NO_BF16}multiplies in fp32 and is no faster than train.precision=fp32"
SLOW_BF16 = f"{NO_BF16}with train.compile is many times slower than fp32; train.compile=none is not"


# -- the whole run --------------------------------------------------------------------------------------------------


def execute(plan: Plan) -> int:
    """Trains, or resumes an interrupted run, and writes the record; returns the exit code.

    Raises:
        InputError: something a user can put right; what was on disk before is untouched.
    """
    stop = StopSignal()
    try:
        with stop.installed():
            processes = Processes(_accelerator(plan.cfg))
            with folder.leased(plan.folder, processes) as lock:
                code = _execute_leased(plan, stop, processes, lock)
    except Interrupted as signal:
        say(f"adalora-run: {signal}: stopped outside training, nothing is lost; repeat the command to continue")
        code = signal.exit_code
    except InputError:
        raise
    except Exception as error:
        if errno_of(error) in DISK_FULL:
            complain(
                f"error: no space left in {plan.folder}; what was saved there is whole: free some space and repeat the "
                "command to go on"
            )
            return EXIT_BAD_INPUT
        if not isinstance(error, LostFolderError | LostError) and errno_of(error) not in DISK_LOST:
            raise
        complain(f"failed: {error}; this process stops and writes nothing more")
        if launched()[1] == 1:
            return stop.exit_code or EXIT_FAILED  # after a signal a sweep starts no further run
        raise SystemExit(EXIT_FAILED) from None  # perhaps in this process alone
    if code not in (EXIT_FAILED, EXIT_BAD_INPUT):  # requeueing would not help these
        try:
            stop.hand_on()
        except Exception as error:  # submitit's: as often as max_num_timeout allows, or scontrol does not answer
            complain(f"not requeued: {error}; the same command resumes the run")
    return code


def _execute_leased(plan: Plan, stop: StopSignal, processes: Processes, lock: Lock | None) -> int:
    # another process may have finished the run since run.py looked
    if not plan.cfg.force and (score := processes.on_main(lambda: finished(plan))):
        print(already_done(plan, score))
        return EXIT_OK
    provenance.reset_peak_memory()
    run = build(plan, processes)  # if this fails, nothing on disk has changed
    if lock is not None:
        run.check_folder = lock.check
    resumed = _resume(run)
    record = folder.new_record(run, resumed)
    if not resumed:
        initialize(run)
    processes.on_main(lambda: _prepare(run, resumed))  # every process has read the checkpoint when the main one is here
    together = True  # whether all processes of the run are at this point
    with stop.deferred():
        try:
            run_loop(run, stop, publish=lambda: folder.write_record(run, record, "running"))
            processes.on_main(lambda: _keep_model(run))
            status, error, code = "ok", None, EXIT_OK
        except Interrupted as signal:
            again = "without force=true the same command" if plan.cfg.force else "the same command"
            requeued = "goes on if its job is requeued; " if signal.signum == SIGUSR2 else ""
            status, error, code = "cancelled", f"{signal}: {requeued}{again} resumes it", signal.exit_code
            together = signal.agreed
        except Exception as problem:
            if errno_of(problem) in DISK_FULL or isinstance(problem, LostFolderError):
                raise
            trace = traceback.format_exc()
            together = problem is processes.common or isinstance(problem, NonFiniteLossError)
            status, error, code = "failed", f"{type(problem).__name__}: {problem}".splitlines()[0], EXIT_FAILED
        folder.write_record(run, record, status, error)
        if status == "ok" and processes.main:
            _finish(run, record)
    if status == "failed":
        _report_failure(run, f"{error}", trace, together)
    elif status == "cancelled":
        say(f"adalora-run: {status}: {error}  ({run.plan.folder})")
    else:
        code = stop.exit_code  # a signal after the last step ends a sweep, not the run
    if processes.size == 1:
        return code
    if not together:  # the others may be anywhere: this process starts no further run
        raise SystemExit(code)
    with suppress(LostError):  # a launcher ends all processes when one fails; the record is written by now
        code = processes.largest(code)
    return code


def _resume(run: RunState) -> bool:
    """Loads the newest checkpoint that fits; returns whether there was one.

    Raises:
        InputError: the processes read different ones; or as in ``checkpoint.load``.
    """
    plan = run.plan
    state: dict[str, Any] | None = None
    problems: list[str] = []
    if not plan.cfg.force:
        state, problems = checkpoint.load(plan.folder, plan.key["hash"], run.load_state_dict)
    for note in plan.notes:  # not earlier: an input error is one line
        say(f"adalora-run: note: {note}")
    if plan.provisional:
        say(
            f"adalora-run: note: {len(run.data.train):,} training examples, {plan.steps_per_epoch:,} steps an epoch, "
            f"T = {plan.total_steps:,}"
        )
    for problem in problems:
        say(f"adalora-run: {problem}")
    if len({*run.processes.gathered([None if state is None else state["t"]])}) > 1:
        raise InputError(
            f"{plan.folder}: the processes read different checkpoints; all of them need the same results.dir"
        )
    if state is not None:
        say(f"resuming {plan.folder} at step {run.t:,} of {plan.total_steps:,}")
    return state is not None


def initialize(run: RunState) -> None:
    """Initial values: those that a method takes from data, and in every process those of the main one, because a seed
    gives other random numbers on another kind of CPU."""
    run.model.eval()
    with torch.no_grad(), run.products(), run.processes.accelerator.autocast():
        run.method.prepare(lambda: first_batches(run), lambda batch: run.task.loss(run.model, batch))
    run.processes.from_main(inject.trained(run.model).values())


def _prepare(run: RunState, resumed: bool) -> None:
    """The folder before the first step, in the main process."""
    run.check_folder()
    run_record.remove_unfinished(run.plan.folder)
    if not resumed and (saved := folder.set_aside(run.plan.folder)):
        say(
            f"starting {run.plan.folder} over at step 0 of {run.plan.total_steps:,}; the checkpoints that were there "
            f"stay until you remove them: {', '.join(saved)}"
        )
    folder.write_settings(run)


def _report_failure(run: RunState, error: str, trace: str, together: bool) -> None:
    """Called after the record is written, which must not depend on it."""
    if run.processes.main:
        with suppress(OSError):
            (run.plan.folder / folder.ERROR).write_text(trace, encoding="utf-8", errors="backslashreplace")
    line = f"failed: {error}  ({run.plan.folder})"
    if together:
        say(f"adalora-run: {line}")
    else:  # perhaps it failed in this process alone
        complain(line, trace)


def _keep_model(run: RunState) -> None:
    if run.plan.keeps != "none":
        run.check_folder()
        with run.method.masked():
            kept.keep(run.model, run.plan.cfg, run.plan.folder / kept.FOLDER, run.plan.keeps, run.method)


def _finish(run: RunState, record: run_record.RunRecord) -> None:
    if run.plan.keeps != "none":
        kept.write_card(run.plan.folder / kept.FOLDER, record, run.plan.cfg, run.plan.overrides)
    checkpoint.remove(run.plan.folder)
    (run.plan.folder / folder.ERROR).unlink(missing_ok=True)  # of an earlier try
    assert record.final is not None
    print(f"done: {figures(run.plan.measured, record.final)}  ({run.plan.folder / run_record.RECORD_NAME})")
    if run.constant:
        same = ", ".join(f"{split}: {prediction}" for split, prediction in run.constant.items())
        say(f"adalora-run: note: degenerate: the last evaluation gave every example the same prediction ({same})")


# -- its parts ------------------------------------------------------------------------------------------------------


def build(plan: Plan, processes: Processes | None = None) -> RunState:
    """Data, model, method and optimizer of a plan, on their device.

    Raises:
        InputError: the data or the backbone cannot be loaded, or differ from what the plan counted.
    """
    cfg = plan.cfg
    speedups.require_compiler(cfg.train.compile)
    trackers.check(list(cfg.track))
    processes = processes or Processes(_accelerator(cfg))
    device = processes.accelerator.device
    free_device(device)
    if not sys.stderr.isatty() or not processes.main:
        datasets.disable_progress_bars()  # they would fill a log file
    task = load_family(cfg)
    set_seed(cfg.seed)

    # -- data -------------------------------------------------------------------------------------------------------
    with stage("tokenizing"):
        tokenizer = backbones.load_tokenizer(cfg)
        backbones.check_lengths(cfg, tokenizer)
        data = processes.main_first(lambda: task.load(tokenizer))
    compiling = cfg.train.compile != "none"
    emulated = device.type == "cpu" and cfg.train.precision == "bf16" and provenance.has_bf16_instructions() is False
    about_bf16 = [SLOW_BF16 if compiling else BF16_IN_FP32] if emulated else []
    lengths = data.train["length"][:] if cfg.task.hub is None and cfg.task.stride is None else []  # of one's own texts
    full = sum(length == task.max_length for length in lengths)
    about_cuts = f"{full:,} of {len(lengths):,} training texts fill task.max_length={task.max_length}: longer are cut"
    notes = (*plan.notes, *backbones.tokenizer_notes(cfg, tokenizer), *about_bf16, *[about_cuts] * (full > 0))
    plan = settle(replace(plan, notes=notes), len(data.train))
    cfg = plan.cfg

    # -- model and method -------------------------------------------------------------------------------------------
    with stage("loading weights"):
        model = backbones.load_model(cfg)
    method = methods.load(cfg)
    method.inject(model, sites.find_sites(model))
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
    if device.type != "cpu":
        speedups.use_4d_masks(model)
        speedups.cache_positions(model)
    if cfg.train.precision == "bf16":
        speedups.store_frozen(model, torch.bfloat16)
        speedups.round_biases(model)

    # -- optimizer --------------------------------------------------------------------------------------------------
    optimizer = make_optimizer(model, cfg.optim)
    # for device and precision only: `Processes` sums the gradients, without a wrapper around the model
    model = processes.accelerator.prepare_model(model, evaluation_mode=True)
    optimizer = processes.accelerator.prepare(optimizer)
    rate = partial(share_of_lr, warmup_steps=cfg.optim.warmup_steps, total_steps=plan.total_steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    method.compiled = compiling
    method.on_train_start(plan.total_steps)
    if processes.rank:
        torch.manual_seed(cfg.seed + processes.rank)  # dropout differs; the initial weights were the same for all
    compiled = None
    if compiling:
        torch.compiler.reset()  # programs of a sweep's earlier runs count towards torch's recompile limit
        compiled = speedups.compiled(model, cfg.train.compile)
    # a compiled program is not seen operation by operation
    products = speedups.Bf16ProductsInFp32 if emulated and not compiling else nullcontext
    return RunState(plan, model, method, task, data, optimizer, scheduler, processes, compiled, products)


def make_optimizer(model: torch.nn.Module, optim: Any) -> torch.optim.AdamW:
    """Fused AdamW over the trainable parameters; vectors (biases, LayerNorm) do not decay, as in transformers."""
    parameters = list(inject.trained(model).values())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)


def share_of_lr(t: int, warmup_steps: int, total_steps: int) -> float:
    """The learning rate of step t over ``optim.lr``: linear from 0 to 1 in the warm-up, then to 0 at T.

    As ``get_linear_schedule_with_warmup`` of transformers, whose module imports PEFT: a second in every run's start.
    """
    if t < warmup_steps:
        return t / max(1, warmup_steps)
    return max(0.0, (total_steps - t) / max(1, total_steps - warmup_steps))


def _accelerator(cfg: Any) -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)  # a sweep's previous run may have had another precision
    _, processes = launched()
    device = cfg.train.device
    for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise InputError(f"accelerate is configured for {name}; for runs give accelerate launch --multi_gpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("train.device=cuda, but torch finds no GPU here; train.device=auto uses the CPU")
    # accelerate would take MPS, where copies of batches may be wrong (pytorch#189690) and the record would say CPU
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    try:
        accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision={"fp32": "no", "bf16": "bf16"}[cfg.train.precision],
            dynamo_backend="no",  # whatever accelerate is configured for: it would also turn TF32 on
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    except (ValueError, RuntimeError) as error:  # MASTER_ADDR, say, is not set
        raise InputError(f"{processes} processes cannot start: {one_line(error)}") from None
    if accelerator.num_processes != processes:
        raise InputError(
            f"{processes} processes were started, but they cannot work together on {accelerator.device.type}; "
            "start one, or several with train.device=cpu"
        )
    return accelerator


def free_device(device: torch.device) -> None:
    """Frees the GPU memory of deleted models: of a sweep's earlier runs, or of the methods measured.

    Hooks and accelerate's wrappers form reference cycles with their model, so only the garbage collector deletes it.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
