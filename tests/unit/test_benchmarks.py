"""The benchmarks run, at the size of a toy, and write what they print."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adalora_repro.training.batches import epoch_order
from benchmarks.contenders import Contender
from benchmarks.lengths import lengths_of, padded, sampled_epoch, tensors
from benchmarks.results import ratio, write

ROOT = Path(__file__).parents[2]
QUICK: dict[str, list[str]] = {
    "step": ["--shape", "tiny-deberta", "--rounds", "2", "--batch", "2", "--precision", "bf16"],
    "memory": ["--shape", "tiny-deberta", "--tokens", "8", "--batch", "2", "--only", "ours", "--precision", "fp32"],
    "operations": ["--shape", "tiny-bert"],
}


@pytest.mark.parametrize("name", QUICK)
def test_it_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = QUICK[name]
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [name, *words, "--out", str(tmp_path)])
    assert module.main() == 0
    (written,) = tmp_path.glob("*.json")
    content = json.loads(written.read_text(encoding="utf-8"))
    assert content["command"] == " ".join(["python -m", f"benchmarks.{name}", *words])
    assert content["environment"]["versions"]["torch"]
    assert all(math.isfinite(number) for number in numbers(content))
    out = capsys.readouterr().out
    assert out.count("\n|") >= 2  # a table with something in it
    assert "nan" not in out


@pytest.mark.slow
def test_the_accelerator_s_script_runs_every_part(tmp_path: Path) -> None:
    environment = os.environ | {"TINY": "1", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "benchmarks" / "accelerator.sh"), str(tmp_path / "out")]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    summary = (tmp_path / "out" / "summary.txt").read_text(encoding="utf-8")
    assert done.returncode == 0, summary + done.stderr
    assert summary in done.stdout
    parts = re.findall(r"^== (\w+): (\w+), \d+ s$", summary, re.M)
    names = ["step", "cost", "memory", "tests", "bart", "cost_bf16"]
    assert parts == [(name, "done") for name in names]
    assert {path.stem for path in (tmp_path / "out").glob("*.json")} >= {"memory", "step_mnli_cpu", "step_xsum_cpu"}
    assert summary.count("AdaLoRA") >= 2, "Table 15 in both precisions"
    assert len(list((tmp_path / "out").glob("cost*/cost/**/*.json"))) == 2


def test_a_run_with_other_options_does_not_replace_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ([], ["--task", "qqp"], []):
        monkeypatch.setattr(sys, "argv", ["/some/where/step.py", *words, "--out", str(tmp_path)])
        write(Namespace(out=tmp_path, device="cpu"), "step", {"words": words})
    written = {path.name: json.loads(path.read_text(encoding="utf-8"))["words"] for path in tmp_path.iterdir()}
    assert written == {"step.json": [], "step_task_qqp.json": ["--task", "qqp"]}


def numbers(content: Any) -> list[float]:
    if isinstance(content, dict | list):
        inside = content.values() if isinstance(content, dict) else content
        return [number for value in inside for number in numbers(value)]
    return [content] if isinstance(content, int | float) else []


def test_a_ratio_is_the_median_of_pairs_within_its_interval() -> None:
    generator = np.random.default_rng(0)
    below = generator.uniform(1, 9, 50)  # the machine was up to nine times slower for both of a pair
    found = ratio((1.5 * below * generator.normal(1, 0.02, 50)).tolist(), below.tolist())
    assert found["low"] < found["value"] < found["high"]
    assert found["value"] == pytest.approx(1.5, rel=0.02)
    assert found["high"] - found["low"] < 0.05


@pytest.mark.parametrize(("task", "tokens"), [("mnli", 46.3), ("qqp", 36.0)])
def test_a_few_grouped_batches_have_the_tokens_of_the_epoch(task: str, tokens: float) -> None:
    order = epoch_order(lengths := lengths_of(task), 32, 0, group=True)
    whole = [padded([lengths[row] for row in rows]) for rows in order]
    assert sum(whole) / len(whole) == pytest.approx(tokens, rel=0.01)  # docs/performance.md
    assert sum(map(padded, sampled_epoch(lengths, 32, 8))) / 8 == pytest.approx(tokens, rel=0.03)


def test_a_batch_has_its_lengths_and_padding() -> None:
    batch = tensors([3, 5], seed=0)
    assert batch["attention_mask"].sum(1).tolist() == [3, 5]
    assert batch["input_ids"].shape == (2, 8)
    assert not batch["input_ids"][~batch["attention_mask"].bool()].any()


@pytest.mark.parametrize("method", ["lora", "adalora"])
@pytest.mark.parametrize("shape", ["tiny-bert", "tiny-deberta"])
def test_peft_trains_as_many_parameters_as_we_do(shape: str, method: str) -> None:
    made = [Contender(who, method, shape=shape, rank=2).model for who in ("ours", "peft")]
    ours, peft = ({name: p.numel() for name, p in model.named_parameters() if p.requires_grad} for model in made)
    assert sum(ours.values()) == sum(peft.values())
    adapted = [sum("lora_A" in name for name in names) for names in (ours, peft)]
    assert adapted[0] == adapted[1] > 0
