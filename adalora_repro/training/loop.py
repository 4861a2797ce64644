"""The training loop; it knows only the Method and Task protocols.

One optimizer step t (from 0), in this order:

    forward -> task loss -> backward (accumulate) -> regularizer's gradient, once per optimizer step -> clip
    -> method.before_update(t) -> optimizer.step -> scheduler.step -> method.after_update(t) -> zero_grad -> t += 1

Nothing in a step waits for the device: losses stay tensors until something is logged or saved. A non-finite loss is
then reported with its step, before it can enter a checkpoint or a record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adalora_repro.training.batches import training_batches
from adalora_repro.training.evaluate import evaluate_before, evaluate_due, save
from adalora_repro.training.folder import Log
from adalora_repro.training.progress import Progress, Watch
from adalora_repro.training.signals import StopSignal
from adalora_repro.training.state import RunState

if TYPE_CHECKING:
    from adalora_repro.tasks.base import Batch


# -- from the first step to the last --------------------------------------------------------------------------------


def run_loop(run: RunState, stop: StopSignal, publish: Callable[[], None]) -> None:
    """Steps t … T - 1 with logging, evaluation and checkpoints; ``publish`` records how far the run is.

    Raises:
        NonFiniteLossError: a loss is not finite.
        Interrupted: asked to stop; a checkpoint of the step is saved.
        LostFolderError: the run's folder was removed, or another process has it.
    """
    cfg, key, total = run.plan.cfg.train, run.plan.key, run.plan.total_steps
    title = f"{key['task']} {key['method']} {key['budget']}"
    with closing(Log(run)) as log, closing(Progress(title, run.t, total)) as progress:
        watch = Watch(progress, stop, publish, run.processes)
        evaluate_before(run, log, watch)
        began = time.perf_counter()
        for batches in training_batches(run):
            # -- one optimizer step -------------------------------------------------------------------------------
            last = run.t + 1 == total
            run.log_due = last or (run.t + 1) % cfg.log_steps == 0
            grad_norm = step(run, batches)
            progress.update(run.t)

            # -- what is due after it -----------------------------------------------------------------------------
            run.evaluation_due = last or run.t % run.plan.eval_steps == 0
            stopping = not last and watch.stopping()
            save_due = stopping or (not last and run.t % cfg.save_steps == 0)
            look_due = run.log_due or run.evaluation_due or save_due
            if not (look_due or watch.due()):
                continue
            if look_due:  # not for a heartbeat alone: each process has its own, and a failure must reach all
                run.look()  # waits for the device, so that times are right; a non-finite loss ends the run here
            run.train_s += time.perf_counter() - began
            if run.log_due:
                log_step(run, grad_norm, log, progress)
            if run.evaluation_due:
                evaluate_due(run, log, watch)
            if save_due:
                save(run, log)
                if stopping:
                    stop.check()
                watch.publish()
            watch.beat()
            began = time.perf_counter()


# -- one optimizer step ---------------------------------------------------------------------------------------------


def step(run: RunState, batches: list[Batch]) -> Tensor:
    """One optimizer step on this process's micro-batches; returns the gradient's norm before clipping.

    If a log line is due, sets ``run.task_norm`` to the norm of the task loss's gradient, without the regularizer's.
    """
    model, method, optimizer, processes = run.model, run.method, run.optimizer, run.processes
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    model.train()

    mean = backward(run, batches, parameters)
    penalty = method.regularizer()
    if run.log_due and penalty is not None:
        run.task_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if penalty is not None:
        add_gradient(penalty, parameters)
    grad_norm = processes.accelerator.clip_grad_norm_(parameters, run.plan.cfg.optim.max_grad_norm)
    assert grad_norm is not None
    method.before_update(run.t)
    optimizer.step()
    run.scheduler.step()
    method.after_update(run.t)
    optimizer.zero_grad()
    run.losses.append(mean)
    run.t += 1
    if run.log_due and penalty is None:
        run.task_norm = grad_norm
    return grad_norm


def backward(run: RunState, batches: list[Batch], parameters: Sequence[torch.nn.Parameter]) -> Tensor:
    """Gradients of the task loss, a mean over all terms of the step, of all processes; returns that loss."""
    called = run.model if run.compiled is None else run.compiled
    processes, accelerator = run.processes, run.processes.accelerator
    whole = len(batches) == 1 and processes.size == 1
    losses: list[Tensor] = []
    terms = 0
    for batch in batches:
        with run.products():
            with accelerator.autocast():
                loss, n = run.task.loss(called, batch)
            # the mean over all examples of the step: a micro-batch is weighted by its number of terms
            accelerator.backward(loss if whole else loss * n)
        losses.append(loss.detach() if whole else loss.detach() * n)
        terms += n
    if whole:
        return losses[0]
    # of a small batch a process may have no example
    total = torch.stack(losses or [torch.zeros((), device=run.device)]).sum()
    count: Any = float(terms)
    if processes.size > 1:
        total, count = processes.add_up(parameters, torch.stack([total, torch.full_like(total, count)]))
    torch._foreach_div_([p.grad for p in parameters if p.grad is not None], count)
    return total / count


def add_gradient(loss: Tensor, parameters: Sequence[torch.nn.Parameter]) -> None:
    """Adds the gradient of ``loss`` to those of ``parameters`` in one call; hooks of ``backward`` do not run."""
    totals, added = [], []
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
        if gradient is not None and parameter.grad is None:
            parameter.grad = gradient
        elif gradient is not None:
            totals.append(parameter.grad)
            added.append(gradient)
    if added:
        torch._foreach_add_(totals, added)


# -- a line of the log ----------------------------------------------------------------------------------------------


@torch.no_grad()
def log_step(run: RunState, grad_norm: Tensor, log: Log, progress: Progress) -> None:
    assert run.task_norm is not None
    loss = sum(run.looked) / len(run.looked)
    penalty = run.method.regularizer()
    line = {
        "t": run.t,
        "loss": loss,
        "regularizer": None if penalty is None else penalty.item(),
        "lr": run.scheduler.get_last_lr()[0],
        "grad_norm": float(grad_norm),
        "grad_norm_task": float(run.task_norm),
    }
    run.looked = []
    log.append(line | run.method.curve(run.t - 1))
    progress.line(run.t, f"loss {loss:.4f}")
