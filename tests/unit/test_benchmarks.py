"""The benchmarks run, at the size of a toy, and write what they print."""

import importlib
import json
import math
import os
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adalora_repro.training.batches import epoch_order
from benchmarks import flex
from benchmarks.contenders import Contender
from benchmarks.lengths import lengths_of, padded, sampled_epoch, tensors
from benchmarks.results import print_goal, ratio, write

ROOT = Path(__file__).parents[2]
QUICK: dict[str, list[str]] = {
    "step": ["--shape", "tiny-deberta", "--rounds", "2", "--batch", "2", "--precision", "bf16"],
    "memory": ["--shape", "tiny-deberta", "--tokens", "8", "--batch", "2"],
    "operations": ["--shape", "tiny-bert"],
    "flex": ["--shape", "tiny-deberta", "--tokens", "8", "--batch", "2", "--rounds", "2"],
    "generation": ["--shape", "tiny-bart", "--batch", "2", "--written", "4", "--rounds", "2"],
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
    names = ["step", "flex", "bart", "generation", "tests", "memory", "cost"]
    assert sorted(parts) == sorted((name, "done") for name in names)
    written = {path.stem for path in (tmp_path / "out").glob("*.json")}
    assert written == {"step_mnli_cpu", "flex_cpu", "step_xsum_cpu", "generation_cpu", "memory"}
    assert len(list((tmp_path / "out").glob("cost/**/cost.json"))) == 1
    assert re.search(r"AdaLoRA +\| ours", summary), "Table 15"
    assert re.search(r"\d+ skipped", summary), "the tests marked gpu"
    for goal in ("tiny-deberta, mnli, step", "tiny-bart, xsum, step", "dense, fp32, error of gradient", "peak memory"):
        assert re.search(rf"^goal: {goal}.*: (met|missed)$", summary, re.M), goal


def test_a_run_with_other_options_does_not_replace_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ([], ["--task", "qqp"], []):
        monkeypatch.setattr(sys, "argv", ["/some/where/step.py", *words, "--out", str(tmp_path)])
        write(Namespace(out=tmp_path, device="cpu"), "step", {"words": words})
    written = {path.name: json.loads(path.read_text(encoding="utf-8"))["words"] for path in tmp_path.iterdir()}
    assert written == {"step.json": [], "step_task_qqp.json": ["--task", "qqp"]}


@pytest.mark.parametrize(
    ("figure", "goal", "outcome"),
    [(1.03, "<= 1.03", "met"), (1.04, "<= 1.03", "missed"), (1.3, ">= 1.3", "met"), (1.2, ">= 1.3", "missed")],
)
def test_a_goal_is_met_or_missed(figure: float, goal: str, outcome: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_goal("time", figure, goal)
    print_goal("time", {"value": figure, "low": 1.0, "high": 2.0}, goal)
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"goal: time: {figure}, goal {goal}: {outcome}"
    assert second == f"goal: time: {figure:.3f} [1.000, 2.000], goal {goal}: {outcome}"


def test_relative_positions_as_a_score_modification_are_deberta_s() -> None:
    def other_head(*qkv: torch.Tensor, score_mod: Callable[..., torch.Tensor], scale: float) -> torch.Tensor:
        return flex.dense(*qkv, lambda score, row, head, i, j: score_mod(score, row, head.flip(1), i, j), scale)

    args = Namespace(shape="tiny-deberta", device="cpu", batch=3)
    errors = flex.errors_of({"eager": None, "dense": flex.dense, "other": other_head}, args, tokens=40)
    assert set(errors["dense fp32"]) == {"logits", "gradient"}
    assert max(errors["dense fp32"].values()) < 1e-6
    assert min(errors["other fp32"].values()) > 1e-3


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
    made = [Contender(who, method, shape=shape).model for who in ("ours", "peft")]
    ours, peft = ({name: p.numel() for name, p in model.named_parameters() if p.requires_grad} for model in made)
    assert sum(ours.values()) == sum(peft.values())
    adapted = [sum("lora_A" in name for name in names) for names in (ours, peft)]
    assert adapted[0] == adapted[1] > 0
