"""What an optimizer step of one method costs beside another's (the paper's Table 15): ``measure=cost``.

Training alone: ``loop.step`` on batches that are on the device already, no evaluation, no checkpoint. Both methods step
on the same batches, one right after the other, and take turns at being first, so that other load affects both.

- The batches represent an epoch of the task: its first epoch in order of size, cut into ``cost.steps`` equal parts; of
  each part the middle one.
- The steps represent a run: the middles of K equal parts of its T steps, in which those that choose anew what is kept
  come last. So each phase of a schedule and the allocation have their share, to a whole step.
- Peak memory is that of the method alone: one step on the smallest batch, which creates the optimizer's state, and one
  on the largest batch of the epoch. On a GPU the allocator counts it in this process; a CPU needs a process of its own.
"""

from __future__ import annotations

import json
import math
import pickle
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from adalora_repro.config import catalog
from adalora_repro.config.identity import cost_key
from adalora_repro.config.plan import Plan
from adalora_repro.errors import EXIT_FAILED, EXIT_OK, InputError, expanded
from adalora_repro.metrics.resampling import CONFIDENCE, bootstrap
from adalora_repro.models import backbones
from adalora_repro.records import cost_record, provenance
from adalora_repro.training import runner
from adalora_repro.training.batches import on_device, parts_of, steps_of
from adalora_repro.training.distributed import launched
from adalora_repro.training.loop import step
from adalora_repro.training.progress import Progress, complain, say, stage
from adalora_repro.training.signals import Interrupted, StopSignal
from adalora_repro.training.state import NonFiniteLossError, RunState

if TYPE_CHECKING:
    from adalora_repro.tasks.base import Batch

RESAMPLES = 2000
LINES = 20  # about so many are printed of a measurement, however long
#: settings that other fields of the key hold, or that change nothing
ELSEWHERE = {
    *("task", "method", "budget", "backbone", "backbone.weights", "backbone.path", "data", "protocol", "optim.lr"),
    *("train.precision", "train.padding", "train.group_by_length", "train.device", "train.num_workers"),
    *("train.eval_steps", "train.save_steps", "train.log_steps", "measure", "seed", "force", "dry_run"),
    *("save", "track"),
}
ELSEWHERE_GROUPS = ("cost.", "data.", "eval.", "results.", "hydra")
NOT_MEASURED = "not measured"
Seconds = NDArray[np.float64]


def execute(plans: Sequence[Plan]) -> int:
    """Measures the first plan's method beside the others' and files the record; returns the exit code.

    Raises:
        InputError: something a user can put right; nothing is filed.
    """
    if launched()[1] > 1:
        raise InputError("measure=cost measures one process; start it without torchrun or accelerate launch")
    stop = StopSignal()
    try:
        with stop.installed():
            record = measure(plans)
    except Interrupted as signal:
        say(f"adalora-run: {signal}, nothing is filed: a measurement starts anew")
        return signal.exit_code
    except (NonFiniteLossError, torch.OutOfMemoryError) as error:
        complain(f"failed: {type(error).__name__}: {error}")
        return EXIT_FAILED
    print("\n".join(lines_of(record)))
    results = plans[0].cfg.results.dir
    try:
        print(f"done: {cost_record.write(record, expanded(results))}")
    except OSError as error:
        raise InputError(f"results.dir={results}: {error.strerror}; the figures above are not filed") from None
    return EXIT_OK


def measure(plans: Sequence[Plan]) -> cost_record.CostRecord:
    """The whole measurement."""
    first = runner.build(plans[0])
    for note in first.plan.notes:  # not earlier: an input error is one line
        say(f"adalora-run: note: {note}")
    loops = [first, *(runner.build(plan, first.processes) for plan in plans[1:])]
    settled, device = [run.plan for run in loops], first.device
    cfg, lengths, data = first.plan.cfg, first.data.train["length"][:], first.data.provenance
    steps = [parts_of(first, rows, lengths) for rows in steps_of(first, 0, lengths)]
    sizes = [padded_sizes(parts, lengths, first) for parts in steps]
    chosen = [steps[i] for i in middles([sum(parts) for parts in sizes], cfg.cost.steps, cfg.seed)]
    environment = provenance.environment(device)
    tokenizer = backbones.tokenizer_name(cfg, first.task.tokenizer)
    pairs = measure_pairs(loops, chosen, lengths)
    del loops, first  # frees the GPU's memory, whose peak is measured next
    runner.free_device(device)
    peaks = [max(parts) for parts in sizes]
    ends = [steps[peaks.index(min(peaks))], steps[peaks.index(max(peaks))]]
    memory = [peak_of(plan, ends, device) for plan in settled]
    epoch = official_epoch(settled[0], len(lengths), data["rows"])
    names = [plan.key["method"] for plan in settled]
    return cost_record.CostRecord(
        key=cost_key(cfg, settled[0].key)
        | {"typed": typed(settled[0].overrides), "tokenizer": tokenizer}
        | {name: environment[name] for name in ("device", "threads")},
        methods={
            name: {"budget": plan.key["budget"], "params": plan.params}
            | figures(pairs, name, epoch["steps"])
            | {"peak_memory": peak["peak"], "settings": plan.settings}
            for name, plan, peak in zip(names, settled, memory, strict=True)
        },
        pairs=pairs,
        ratio=ratios(pairs, *names) if len(names) > 1 else None,
        epoch=epoch,
        memory_of=next((peak["of"] for peak in memory if peak["of"]), NOT_MEASURED),
        environment=environment,
        data=data,
        created=time.time(),
    )


# -- batches and steps ---------------------------------------------------------------------------------------------


def padded_sizes(parts: Sequence[Sequence[int]], lengths: Sequence[int], run: RunState) -> list[int]:
    """The size by which micro-batches are ordered: tokens, padding included, up to rounding."""
    flat = run.plan.cfg.train.padding == "max_length"
    return [len(rows) * (1 if flat else max(lengths[row] for row in rows)) for rows in parts]


def middles(sizes: Sequence[int], count: int, seed: int) -> list[int]:
    """Indices of ``count`` batches: the middles of equal parts of all batches in order of size, shuffled.

    Their mean size is much closer to that of all than a random sample's. With fewer batches than ``count`` some occur
    several times.
    """
    chosen = in_equal_parts(sorted(range(len(sizes)), key=sizes.__getitem__), count)
    random.Random(seed).shuffle(chosen)
    return chosen


def in_equal_parts(ordered: Sequence[int], count: int) -> list[int]:
    """The middles of ``count`` equal parts."""
    return [ordered[(2 * k + 1) * len(ordered) // (2 * count)] for k in range(count)]


def steps_over_a_run(total_steps: int, count: int, allocates: Callable[[int], bool]) -> list[int]:
    """``count`` of the steps 0 … T - 1, see the head of this module.

    In order of t alone they could all miss the allocation: it is periodic, too.
    """
    return in_equal_parts(sorted(range(total_steps), key=allocates), count)


def official_epoch(plan: Plan, examples: int, rows: Mapping[str, int]) -> dict[str, int]:
    """Examples and optimizer steps of an epoch of the task's official training split, or of these rows if unknown.

    A row may give several examples (windows over long contexts): as many as these rows gave on average.
    """
    official = round(plan.cfg.task.rows.get("train", rows["train"]) * examples / rows["train"])
    return {"examples": official, "steps": math.ceil(official / plan.cfg.train.batch_size)}


def typed(words: Sequence[str]) -> str:
    """The settings of the command line that the rest of the key does not hold, as one line."""
    keys = {word: word.lstrip("+~").partition("=")[0] for word in words}
    return " ".join(
        sorted(w for w, key in keys.items() if key not in ELSEWHERE and not key.startswith(ELSEWHERE_GROUPS))
    )


# -- time ----------------------------------------------------------------------------------------------------------


def measure_pairs(
    loops: Sequence[RunState], chosen: Sequence[list[list[int]]], lengths: Sequence[int]
) -> list[dict[str, Any]]:
    """A step of every method on each batch (a list of micro-batches); returns ``CostRecord.pairs``."""
    first, cost = loops[0], loops[0].plan.cfg.cost
    names = [run.plan.key["method"] for run in loops]
    times = [steps_over_a_run(run.plan.total_steps, cost.steps, run.method.allocates) for run in loops]
    pairs: list[dict[str, Any]] = []
    with closing(Progress(f"cost of {' and '.join(names)}", 0, cost.warmup_steps + cost.steps)) as progress:
        for number in range(-cost.warmup_steps, cost.steps):
            parts = chosen[number % cost.steps]
            rows = list(chain.from_iterable(parts))
            batches = list(on_device(first, first.data.train, parts, 0))
            seconds = {}
            for run, steps in list(zip(loops, times, strict=True))[:: 1 if number % 2 == 0 else -1]:
                run.t = steps[number % cost.steps]  # before the first the last ones: an allocation is warmed up, too
                seconds[run.plan.key["method"]] = timed(run, batches)
            done = number + cost.warmup_steps + 1
            progress.update(done)
            if number % max(1, cost.steps // LINES) == 0:
                progress.line(done, "  ".join(f"{name} {seconds[name]:.3f} s" for name in names))
            if number >= 0:
                pairs.append(
                    {
                        "t": first.t - 1,  # a step has counted itself
                        "examples": len(rows),
                        "tokens": sum(lengths[row] for row in rows),
                        "padded_tokens": sum(batch["input_ids"].numel() for batch in batches),
                        "order": list(seconds),
                        "seconds": {name: seconds[name] for name in names},
                    }
                )
    return pairs


def timed(run: RunState, batches: list[Batch]) -> float:
    """Seconds of an optimizer step, from an idle device to an idle device.

    Raises:
        NonFiniteLossError: the loss is not finite.
    """
    wait_for(run.device)
    began = time.perf_counter()
    step(run, batches)
    wait_for(run.device)
    seconds = time.perf_counter() - began
    run.look()
    return seconds


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -- memory --------------------------------------------------------------------------------------------------------


def peak_of(plan: Plan, batches: Sequence[list[list[int]]], device: torch.device) -> dict[str, Any]:
    """``provenance.peak_memory`` of a step of the plan's method on each of ``batches``.

    ``peak`` is None if that fails (the largest batch may not fit); the times measured are kept.
    """
    name = plan.key["method"]
    if device.type == "cuda":
        try:
            return peak_here(plan, batches)
        except torch.OutOfMemoryError as error:
            return no_peak(name, str(error))
    with stage(f"peak memory of {name}, in a process of its own"):
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=pickle.dumps((catalog.added_folders(), plan, batches)),
            capture_output=True,
            check=False,
            start_new_session=True,  # Ctrl-C reaches this process only, which ends that one
        )
    if done.returncode != EXIT_OK:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return no_peak(name, " ".join([f"its process ended with code {done.returncode}", *reason]))
    peak: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return peak


def no_peak(name: str, why: str) -> dict[str, Any]:
    say(f"adalora-run: note: peak memory of {name} is not measured: {why}")
    return {"peak": None, "of": None}


def peak_here(plan: Plan, batches: Sequence[list[list[int]]]) -> dict[str, Any]:
    run = runner.build(plan)
    runner.free_device(run.device)  # from the model of an earlier call
    provenance.reset_peak_memory()
    for parts in batches:
        timed(run, list(on_device(run, run.data.train, parts, 0)))
    return provenance.peak_memory(run.device)


def answer() -> None:
    """The child process of ``peak_of``."""
    folders, plan, batches = pickle.load(sys.stdin.buffer)
    for folder in folders:
        catalog.add_folder(str(folder))
    print(json.dumps(peak_here(plan, batches), allow_nan=False))


# -- figures -------------------------------------------------------------------------------------------------------


def figures(pairs: Sequence[Mapping[str, Any]], name: str, epoch_steps: int) -> dict[str, float]:
    """Of one method: seconds per step and per epoch, and tokens per second (without padding)."""
    seconds = seconds_of(pairs, name)
    mean = float(seconds.mean())
    return {
        "median_s": float(np.median(seconds)),
        "mean_s": mean,
        "epoch_s": mean * epoch_steps,
        "tokens_per_s": sum(pair["tokens"] for pair in pairs) / float(seconds.sum()),
    }


def ratios(pairs: Sequence[Mapping[str, Any]], name: str, against: str) -> dict[str, Any]:
    """The time of ``name`` over that of ``against``: ``CostRecord.ratio``."""
    ours, theirs = seconds_of(pairs, name), seconds_of(pairs, against)
    return {
        "median": interval(ours, theirs, median_of_ratios),
        "epoch": interval(ours, theirs, ratio_of_means),
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
    }


def seconds_of(pairs: Sequence[Mapping[str, Any]], name: str) -> Seconds:
    """One number a pair."""
    return np.array([pair["seconds"][name] for pair in pairs])


def median_of_ratios(ours: Seconds, theirs: Seconds, axis: int = -1) -> Any:
    """Robust to pairs that other load on the machine disturbed."""
    return np.median(ours / theirs, axis=axis)


def ratio_of_means(ours: Seconds, theirs: Seconds, axis: int = -1) -> Any:
    """The ratio of the times of an epoch, which the steps represent."""
    return ours.mean(axis=axis) / theirs.mean(axis=axis)


def interval(ours: Seconds, theirs: Seconds, statistic: Callable[..., Any]) -> dict[str, float | None]:
    """A statistic of pairs and its percentile bootstrap interval, always from the same random numbers."""
    value = float(statistic(ours, theirs))
    if len(ours) < 2:
        return {"value": value, "low": None, "high": None}
    ends = bootstrap((ours, theirs), statistic, RESAMPLES).confidence_interval
    return {"value": value, "low": float(ends.low), "high": float(ends.high)}


def lines_of(record: cost_record.CostRecord) -> list[str]:
    """What the program prints at the end: a line per method, and the ratio."""
    lines = []
    for name, method in record.methods.items():
        peak = method["peak_memory"]
        memory = NOT_MEASURED if peak is None else f"{peak / 1e9:.3f} GB ({record.memory_of})"
        lines.append(
            f"{name} {method['budget']}: {method['mean_s']:.4g} s a step, {method['epoch_s'] / 60:,.4g} min an epoch "
            f"of {record.epoch['examples']:,} examples, {method['tokens_per_s']:,.0f} tokens a second, "
            f"peak memory {memory}"
        )
    if record.ratio is not None:
        median, epoch = ratio_text(record.ratio["median"]), ratio_text(record.ratio["epoch"])
        compared = f"{record.key['method']} / {record.key['against']}"
        lines.append(f"{compared}: {median} median of {len(record.pairs)} pairs, {epoch} time per epoch")
    return lines


def ratio_text(ratio: Mapping[str, float | None]) -> str:
    ends = "" if ratio["low"] is None else f" [{ratio['low']:.3f}, {ratio['high']:.3f}]"
    return f"{ratio['value']:.3f}{ends}"


if __name__ == "__main__":
    answer()
