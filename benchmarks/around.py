"""What an epoch spends beside its steps: loading batches, logging, checkpoints, evaluation.

    python -m benchmarks.around                                        # generated SST-2, MiniLM
    python -m benchmarks.around task=cola data=local data.dir=DIR      # any words of adalora-run

One real run of one epoch with AdaLoRA, whose functions are timed from outside. Tokenization is of all splits, as in a
first run; later ones read its cache. The rest of the start (imports, model) is ``benchmarks.startup``'s. MiniLM's step
is a fifth of DeBERTaV3-base's, so that these shares are large ones; ``ms`` are of the host, and say what a faster
device would have to wait for.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

from adalora_repro.tasks import load_family
from adalora_repro.training import loop as training_loop
from adalora_repro.training import runner
from benchmarks.results import parser, print_table, start, write
from benchmarks.runs import planned

WORDS = ["task=sst2", "method=adalora", "budget=0.3M", "backbone=minilm", "data=sample", "data.sample_rows=4000"]
WORDS += ["data.sample_validation_rows=200", "method.schedule=scaled", "train.precision=bf16", "train.epochs=1"]
WORDS += ["train.device=cpu"]  # on another the clock would have to wait for it
PARTS = {"step": "step", "_log_step": "log lines", "_evaluate": "evaluation", "_save": "checkpoints"}
TOKENIZING = "reading, tokenizing (a first run)"
LOADING, REST = "loading batches", "the rest (progress, signals, lock)"


def main() -> int:
    arguments = parser(__doc__, model=False)
    arguments.add_argument("words", nargs="*", help="of adalora-run")
    args = start(arguments)
    seconds: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    inside: list[str] = []  # the parts that call each other just now: a checkpoint within an evaluation is its own

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any, **options: Any) -> Any:
            began = time.perf_counter()
            inside.append(name)
            try:
                return function(*inputs, **options)
            finally:
                inside.pop()
                passed = time.perf_counter() - began
                seconds[name] += passed
                if inside:
                    seconds[inside[-1]] -= passed
                calls[name] += 1

        return call

    def batches(loop: training_loop.Loop) -> Iterator[Any]:
        ready = original(loop)
        fetch = timed(LOADING, lambda: next(ready, None))
        yield from iter(fetch, None)

    def family(cfg: Any) -> Any:
        task = load_family(cfg)
        task.load = timed(TOKENIZING, task.load)  # type: ignore[method-assign]
        return task

    original = training_loop.training_batches
    with contextlib.ExitStack() as stack:
        for function, name in PARTS.items():
            stack.enter_context(patch.object(training_loop, function, timed(name, getattr(training_loop, function))))
        stack.enter_context(patch.object(training_loop, "training_batches", batches))
        stack.enter_context(patch.object(runner, "run_loop", timed(REST, training_loop.run_loop)))
        stack.enter_context(patch.object(runner, "load_family", family))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        chosen = {word.partition("=")[0] for word in args.words}
        words = [*(word for word in WORDS if word.partition("=")[0] not in chosen), *args.words]
        plan = planned([*words, f"results.dir={folder}", f"data.cache_dir={folder}/cache"])
        code = runner.execute(plan)
    if code:
        return code
    whole = sum(seconds.values()) - seconds[TOKENIZING]
    beside = whole - seconds["step"]
    write(args, f"around_{plan.key['task']}", {"words": words, "seconds": seconds, "calls": calls})
    rows = []
    for name in ("step", LOADING, *(part for part in PARTS.values() if part != "step"), REST):
        each = f"{1000 * seconds[name] / calls[name]:.2f}" if calls.get(name) else ""
        share = f"{seconds[name] / whole:.2%}"
        rows.append([name, str(calls.get(name, "")), each, f"{seconds[name]:.2f}", share])
    rows.append(["all beside the steps", "", "", f"{beside:.2f}", f"{beside / whole:.2%}"])
    share = f"{seconds[TOKENIZING] / whole:.2%}"
    rows.append([TOKENIZING, "", "", f"{seconds[TOKENIZING]:.2f}", f"({share})"])
    print_table([f"{plan.key['task']}, one epoch", "calls", "ms each", "s", "share of the epoch"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
