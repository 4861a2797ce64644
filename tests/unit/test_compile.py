"""``train.compile``: one program for all steps, whatever the lengths and masks, that computes what the model does."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny_runs import built, without_dropout
from torch._dynamo.utils import counters

from adalora_repro.errors import InputError
from adalora_repro.models import inject, speedups
from adalora_repro.training import loop as training_loop

SMALL = ("data.sample_rows=64", "train.max_steps=16")
INDUCTOR = "train.compile=inductor"  # a minute, and a C++ compiler: where it is not named, aot_eager's traces do
CROPPED = ["train.attention=cropped", "backbone.architecture.position_buckets=256"]  # of which 128 hold the sentences
CASES = [
    pytest.param("sst2", "tiny-bert", "adalora", "0.3M", [], id="adalora"),
    pytest.param("sst2", "tiny-bert", "adalora", "0.3M", [INDUCTOR], marks=pytest.mark.slow, id="inductor"),
    pytest.param(
        "sst2", "tiny-deberta", "adalora", "0.3M", [*CROPPED, INDUCTOR], marks=pytest.mark.slow, id="cropped, inductor"
    ),
    pytest.param("sst2", "tiny-deberta", "adalora", "0.3M", CROPPED, marks=pytest.mark.slow, id="cropped"),
    pytest.param("xsum", "tiny-bart", "adalora", "2.20%", [], marks=pytest.mark.slow),
    *(
        pytest.param("sst2", "tiny-bert", method, "0.3M", [], marks=pytest.mark.slow, id=method)
        for method in ("lora", "full", "houlsby", "prune_lora")
    ),
]


@pytest.mark.parametrize(("task", "backbone", "method", "budget", "more"), CASES)
def test_one_program_computes_the_steps_of_the_model(
    task: str, backbone: str, method: str, budget: str, more: list[str], tmp_path: Path
) -> None:
    torch._dynamo.reset()
    counters.clear()
    words = [*SMALL, f"task={task}", f"backbone={backbone}", f"method={method}", f"budget={budget}"]
    words += [word for word in more if word != INDUCTOR]
    if INDUCTOR in more and not shutil.which(speedups.COMPILER):
        pytest.skip("needs a C++ compiler")
    plain, chosen = "train.compile=none", INDUCTOR if INDUCTOR in more else "train.compile=aot_eager"
    # dropout draws its random numbers in another order when it is compiled
    loops = [without_dropout(built(tmp_path, *words, compiler)) for compiler in (plain, chosen)]
    widths = set()
    for _ in range(12):  # lengths differ, and masks are due meanwhile
        for loop in loops:
            parts = next(training_loop.training_batches(loop))
            widths |= {part["input_ids"].shape for part in parts}
            training_loop.step(loop, parts)
    assert len(widths) > 1
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1
    plain, compiled = loops
    torch.testing.assert_close(torch.stack(compiled.losses), torch.stack(plain.losses), rtol=1e-4, atol=1e-5)
    assert compiled.method.summary() == plain.method.summary()
    assert list(inject.trained(compiled.model)) == list(inject.trained(plain.model))  # a checkpoint fits both


@pytest.mark.slow  # what is cropped: tests/unit/test_speedups.py
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_batch_too_long_to_be_cropped_has_a_program_of_its_own(tmp_path: Path, precision: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    words = [*SMALL, *CROPPED, "train.compile=aot_eager", f"train.precision={precision}"]
    loop = built(tmp_path, *words, "backbone=tiny-deberta", "method=adalora", "budget=0.3M")
    batch = next(training_loop.training_batches(loop))[0]
    for tokens, programs in ((8, 1), (24, 1), (120, 1), (136, 2), (160, 2), (16, 2)):
        ids = torch.randint(5, 50, (3, tokens))
        made = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": batch["labels"][:1].expand(3)}
        training_loop.step(loop, [made])
        assert counters["stats"]["unique_graphs"] == programs
    assert not counters["graph_break"]


def test_without_a_compiler_it_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "")
    with pytest.raises(InputError, match=r"train\.compile=inductor needs a C\+\+ compiler: no (g|clang)\+\+ here"):
        speedups.require_compiler("inductor")
