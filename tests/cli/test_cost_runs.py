"""adalora-run measure=cost from the command line: two methods in turn, alone, refused, interrupted."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli, at_call, ok

from adalora_repro.cli import report
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_OK, EXIT_TERMINATED
from adalora_repro.models.backbones import WORD_PIECES
from adalora_repro.records import cost_record
from adalora_repro.tasks.glue import Task
from adalora_repro.training import cost

COST = ["measure=cost", "task=sst2", "method=adalora", "budget=0.3M", "train.max_steps=40", "cost.steps=4"]


@pytest.fixture
def quick(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """``tiny`` without the processes that measure memory."""
    monkeypatch.setattr(cost, "peak_of", lambda plan, batches, device: {"peak": 10**9, "of": "resident set"})

    def call(*words: str) -> Any:
        keys = {word.partition("=")[0] for word in words}
        return tiny(*[word for word in COST if word.partition("=")[0] not in keys], *words)

    return call


def only_record() -> cost_record.CostRecord:
    found, refused = cost_record.read_all(Path("results"))
    assert not refused
    ((_, record),) = found
    return record


@pytest.mark.slow
def test_two_methods_in_turn(tiny: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    done = tiny(*COST, "backbone=tiny-deberta", "train.precision=bf16", "train.grad_accumulation=2", "method.gamma=0.2")
    assert done.code == EXIT_OK, done.err
    assert "adalora / lora: " in done.out
    assert done.out.splitlines()[-1] == (
        "done: results/cost/tiny-deberta/sst2/0.3M/adalora-lora-bf16-drawn-random-1/cost.json"
    )
    record = only_record()
    assert [pair["order"] for pair in record.pairs] == [["adalora", "lora"], ["lora", "adalora"]] * 2
    assert [pair["t"] for pair in record.pairs] == [24, 34, 9, 19]  # two allocate: 5 <= t <= 23
    assert all(pair["examples"] == 8 and pair["tokens"] <= pair["padded_tokens"] for pair in record.pairs)
    assert record.ratio == cost.ratios(record.pairs, "adalora", "lora")
    for name, method in record.methods.items():
        assert cost.figures(record.pairs, name, record.epoch["steps"]).items() <= method.items()
        assert 10**8 < method["peak_memory"] < 10**10
    assert record.methods["adalora"]["settings"]["method.gamma"] == 0.2
    assert "method.gamma" not in record.methods["lora"]["settings"]
    assert record.methods["lora"]["settings"]["method.schedule"] == "scaled"
    assert record.epoch == {"examples": 67_349, "steps": 8_419}
    assert record.key["tokenizer"] == "bytes"
    assert record.key["typed"].startswith("method.gamma=0.2 method.schedule=scaled")
    assert {path.name for path in Path("results").iterdir()} == {"cost"}, "a measurement is no run"
    assert report.main(["table15", "--only-filled"]) == EXIT_OK
    assert "  ours  " in capsys.readouterr().out


def test_alone(quick: Cli) -> None:
    done = ok(quick("cost.against=null"))
    assert done.beginning.startswith("sst2 adalora 0.3M on tiny-bert, seed 0, data=sample\ncpu (")
    record = only_record()
    assert record.ratio is None
    assert list(record.methods) == [record.key["method"]]
    assert all(len(pair["seconds"]) == 1 for pair in record.pairs)


def test_any_method_beside_any_other(quick: Cli) -> None:
    """Options of the one are not the other's; what they share is."""
    done = quick(
        "method=adalora", "cost.against=bitfit", "method.delta_t=2", "method.layers=[0]", "train.padding=max_length"
    )
    assert done.code == EXIT_OK, done.err
    record = only_record()
    assert record.key["budget"] == "target_r2-init_r4-0"
    assert record.methods["bitfit"]["budget"] == "bitfit"
    assert record.key["padding"] == "max_length"
    assert all(pair["padded_tokens"] == 8 * 32 for pair in record.pairs)


def test_both_step_on_the_same_batches(quick: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    plain = Task.loss
    monkeypatch.setattr(
        Task, "loss", lambda self, model, batch: (seen.append(batch["input_ids"]), plain(self, model, batch))[1]
    )
    assert quick("cost.steps=3", "cost.warmup_steps=2").code == EXIT_OK
    assert len(seen) == 10
    assert all(torch.equal(first, second) for first, second in zip(seen[::2], seen[1::2], strict=True))


def test_random_weights_need_no_network(quick: Cli) -> None:
    sizes = ("d_model=32", "encoder_layers=1", "decoder_layers=1", "encoder_ffn_dim=32", "decoder_ffn_dim=32")
    words = [f"backbone.architecture.{size}" for size in sizes]
    words += ["backbone=bart-large", "task=xsum", "budget=0.26%", "backbone.weights=random", "cost.steps=2"]
    ok(quick(*words, "cost.warmup_steps=0"))
    record = only_record()
    assert record.key["weights"] == "random"
    assert record.key["tokenizer"] in (WORD_PIECES, "bytes")


def test_dry_run_shows_both_and_leaves_nothing(quick: Cli) -> None:
    done = ok(quick("dry_run=true"))
    assert "folder: results/cost/tiny-bert/sst2/0.3M/adalora-lora-fp32-drawn-random\n" in done.out
    assert "beside: lora 0.3M, 1,792 parameters; 3 + 4 steps of each" in done.out
    assert not Path("results").exists()


def test_a_sweep_of_measurements(quick: Cli) -> None:
    done = ok(quick("-m", "method.gamma=0.1,0.2", "cost.steps=1", "cost.warmup_steps=0"))
    assert "sweep: 2 done" in done.out
    assert "report: adalora-report table15 " in done.out
    assert len(list(Path("results/cost").rglob("cost.json"))) == 2


def test_several_processes_are_refused(quick: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    done = quick()
    assert done.code == EXIT_BAD_INPUT
    assert "measure=cost measures one process" in done.err


def test_interrupted_leaves_nothing(quick: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = at_call(monkeypatch, cost, "step", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    done = quick()
    assert done.code == EXIT_TERMINATED
    assert "nothing is filed" in done.err
    assert steps == [3]
    assert not Path("results").exists()


def test_without_memory_the_times_are_kept(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest batch may not fit, which a process of its own finds out."""
    monkeypatch.setattr(cost.sys, "executable", shutil.which("false"))
    done = ok(tiny(*COST))
    assert "peak memory of adalora is not measured: its process ended with code 1" in done.err
    assert all(method["peak_memory"] is None for method in only_record().methods.values())
    assert report.main(["table15", "--only-filled"]) == EXIT_OK


def test_results_that_cannot_be_written(quick: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(cost_record.run_record, "write_atomic", full)
    done = quick()
    assert done.code == EXIT_BAD_INPUT
    assert "adalora / lora: " in done.out, "what was measured is told"
    assert "No space left on device; the figures above are not filed" in done.err
