"""What a user adds: a size for any method, a task without a budget. Methods of their own: tests/cli/test_adding.py."""

import sys
from pathlib import Path

import plans
import pytest
from omegaconf import DictConfig

from adalora_repro.config.dry_run import SweepPlan
from adalora_repro.config.plan import Plan
from adalora_repro.config.resolve import count, resolve
from adalora_repro.errors import InputError
from adalora_repro.methods import module_of, modules

pytestmark = pytest.mark.usefixtures("hydra")


def composed(*words: str) -> DictConfig:
    return plans.composed("task=cola", "backbone=tiny-bert", "data=sample", *words)


def test_sizes_are_options_by_budget() -> None:
    cfg = composed("method=lora")
    cfg.method.sizes = {"0.3M": 2}
    with pytest.raises(InputError, match=r"method\.sizes must hold options per budget, \{0\.3M: \{r: 2\}\}, not"):
        resolve(cfg)


def test_modules_are_those_that_define_a_method() -> None:
    assert {"full", "bitfit", "lora", "adalora", "houlsby"} <= set(modules())
    assert not {"base", "equal_counts", "_svd", "_adapter"} & set(modules())
    for name in ("base", "nope"):
        with pytest.raises(InputError, match=f"unknown method.module '{name}'.*; valid: adalora, bitfit"):
            module_of(name)
    for name in ("nowhere.at_all", "json.decoder"):
        with pytest.raises(InputError, match=f"method.module={name}: no module with a class Method"):
            module_of(name)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("def f(:", r"SyntaxError: invalid syntax \(broken.py, line 1\); python -c 'import mine.broken' shows where"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("class Method: ...\nclass Options: ...", "no module with a class Method and a dataclass Options"),
    ],
)
def test_a_module_that_fails_is_one_line(
    text: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "broken.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("mine", "mine.broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(InputError, match=f"method.module=mine.broken: {problem}"):
        module_of("mine.broken")


@pytest.mark.parametrize(("task", "label"), [("squad", "0.08%"), ("cnn_dailymail", "0.13%"), ("cola", "0.3M")])
def test_the_default_budget_follows_the_task(task: str, label: str) -> None:
    assert plans.resolved(f"task={task}", "method=lora").key["budget"] == label


def test_a_task_of_one_s_own_has_the_smallest_budget_of_its_family() -> None:
    cfg = composed("method=lora", "task.budgets=nlg", "task.more_budgets=[]")
    assert resolve(cfg).key["budget"] == "0.13%"
    with pytest.raises(InputError, match=r"budget '0\.3M' does not exist for task 'cola'; valid: 0\.13%"):
        resolve(cfg, overrides=["budget=0.3M"])


def test_a_sweep_counts_each_variant_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[Plan] = []
    monkeypatch.setattr("adalora_repro.config.dry_run.count", lambda plan: counted.append(plan) or count(plan))
    sweep = SweepPlan()
    words = [(f"seed={seed}", f"optim.lr={lr}") for seed in (0, 1) for lr in (1e-3, 2e-3)]
    lines = [sweep.line(resolve(composed("method=lora", *each))) for each in words]
    assert len(counted) == 1
    assert lines[0].startswith("T 1,175, ")
    assert all(line.endswith("to do") for line in lines)
    assert sweep.total().startswith("total: 4 runs, 0 done, 4 to do; no time estimate")
