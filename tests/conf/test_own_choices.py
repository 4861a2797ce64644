"""What a user adds: a method in a module of their own, a size for any method, a task without a budget, a backbone."""

from __future__ import annotations

import sys
from pathlib import Path

import plans
import pytest
from omegaconf import DictConfig, OmegaConf

from adalora_repro.config.dry_run import SweepPlan
from adalora_repro.config.plan import Plan
from adalora_repro.config.resolve import count, resolve
from adalora_repro.errors import InputError
from adalora_repro.methods import module_of, modules

pytestmark = pytest.mark.usefixtures("hydra")

MODULE = """
from dataclasses import dataclass

from adalora_repro.methods import lora


@dataclass
class Options(lora.LowRankOptions):
    width: int = 0


class Method(lora.Method):
    def __init__(self, options, protocol):
        known = dict(name=options.name, module=options.module, alpha=options.alpha, r=options.width)
        super().__init__(lora.Options(**known), protocol)
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "my_method.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    monkeypatch.delitem(sys.modules, "my_package.my_method", raising=False)
    return "my_package.my_method"


def composed(*words: str) -> DictConfig:
    return plans.composed("task=cola", "backbone=tiny-bert", "data=sample", *words)


def own(module: str, *words: str) -> DictConfig:
    method = {
        "name": "mine",
        "module": module,
        "schedule": "absolute",
        "width": None,
        "alpha": 16.0,
        "sizes": {"0.3M": {"width": 2}},
    }
    cfg = composed("method=lora", *words)
    OmegaConf.update(cfg, "method", method, merge=False)
    return cfg


def test_a_method_in_a_module_of_one_s_own(own_module: str) -> None:
    plan = count(resolve(own(own_module)))
    lora = count(resolve(composed("method=lora")))
    assert plan.key["method"] == "mine"
    assert plan.key["budget"] == "0.3M"
    assert plan.params == lora.params
    assert plan.settings["method.module"] == own_module


def test_any_method_fills_a_number_of_parameters(own_module: str) -> None:
    """LoRA of rank r has the same parameters per rank: the largest r that does not exceed them."""
    per_rank = count(resolve(composed("method=lora"))).params["method"] // 2
    for ranks in (1, 3, 10):
        params = (ranks + 1) * per_rank - 1
        plan = count(resolve(own(own_module, "budget.match=params", f"budget.params={params}")))
        assert plan.cfg.method.width == ranks
        assert plan.params["method"] == ranks * per_rank <= plan.method["params"]
        assert plan.key["budget"] == f"params{params}"
    with pytest.raises(InputError, match=f"budget.params must be at least {per_rank}"):
        count(resolve(own(own_module, "budget.match=params", f"budget.params={per_rank - 1}")))
    svd = count(resolve(composed("method=svd_lora", "budget.match=params", "budget.params=5000")))
    assert 0 < svd.params["method"] <= 5000 < svd.params["method"] // svd.cfg.method.r * (svd.cfg.method.r + 1)


def test_modules_are_those_that_define_a_method(own_module: str) -> None:
    assert {"full", "bitfit", "lora", "adalora", "houlsby"} <= set(modules())
    assert not {"base", "equal_counts", "_svd", "_adapter"} & set(modules())
    for name in ("base", "nope"):
        with pytest.raises(InputError, match=f"unknown method.module '{name}'.*; valid: adalora, bitfit"):
            module_of(name)
    for name in ("nowhere.at_all", "json.decoder"):
        with pytest.raises(InputError, match=f"method.module={name}: no module to import that has classes Method"):
            module_of(name)
    assert module_of(own_module).__name__ == own_module


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
    assert sweep.total().startswith("total: 4 runs, 0 done, 4 to do; no estimate of the time")
