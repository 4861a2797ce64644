"""What the files of ablations and controls compose to: the method they vary, and nothing else changed."""

from typing import Any

import pytest
from hydra import compose
from omegaconf import OmegaConf
from plans import resolved
from task_configs import CONF

from adalora_repro.config import resolve as planning
from adalora_repro.config.origins import origins

pytestmark = pytest.mark.usefixtures("hydra")

#: method -> the one it varies, and the settings that differ
VARIED: dict[str, tuple[str, dict[str, Any]]] = {
    "adalora_sensitivity": ("adalora", {"method.score": "sensitivity"}),
    "adalora_magnitude": ("adalora", {"method.score": "magnitude"}),
    "adalora_random": ("adalora", {"method.score": "random"}),
    "adalora_gradient": ("adalora", {"method.score": "gradient"}),
    "adalora_uniform": ("adalora", {"method.allocation": "uniform"}),
    "adalora_gamma0": ("adalora", {"method.gamma": 0.0}),
    "prune_lora": ("adalora", {"method.module": "prune_lora", "method.gamma": 0.0}),
    "lora_init_r": ("lora", {"method.r": 4}),
    "lora_qv": ("lora", {"method.r": 9, "method.targets": ["q", "v"]}),
    "lora_regu": ("lora", {"method.module": "lora_regu"}),
    "svd_lora_init_r": ("svd_lora", {"method.r": 4}),
}
TASKS = ["cola", "mnli", "squad", "squad_v2"]  # tests/golden has the identity of every method of every task


def settings(method: str, task: str, *words: str) -> dict[str, Any]:
    plan = resolved(f"task={task}", f"method={method}", "budget=0.16%", *words)
    assert plan.key["budget"] == "0.16%"
    return plan.settings


@pytest.mark.parametrize("protocol", ["paper", "released"])
@pytest.mark.parametrize("method", VARIED)
def test_an_ablation_differs_from_what_it_varies_in_what_it_is_about(method: str, protocol: str) -> None:
    base, constant = VARIED[method]
    for task in ("cola", "squad_v2"):
        own, other = (settings(name, task, f"protocol={protocol}") for name in (method, base))
        of_task = {"method.gamma": settings("adalora", task, f"protocol={protocol}")["method.gamma"]}
        differs = constant | of_task if method == "lora_regu" else constant  # R has the weight that AdaLoRA's has
        changed = {name for name in own.keys() | other.keys() if own.get(name) != other.get(name)}
        assert changed == {*differs, "method.name"}
        assert {name: own[name] for name in differs} == differs
        assert own["method.name"] == method


@pytest.mark.parametrize("task", TASKS)
def test_what_is_taken_from_adalora_s_recipe_is_the_task_s(task: str) -> None:
    recipe = OmegaConf.load(CONF / "tuned" / f"{task}_adalora.yaml")
    regularized, svd, lora, plain = (
        settings(method, task) for method in ("lora_regu", "svd_lora", "lora_at_adalora", "lora")
    )
    for name in ("method.gamma", "method.alpha", "optim.lr"):
        assert svd[name] == OmegaConf.select(recipe, name)
    assert plain["method.alpha"] == recipe.method.alpha
    assert regularized == plain | {
        "method.name": "lora_regu",
        "method.module": "lora_regu",
        "method.gamma": recipe.method.gamma,
    }
    assert lora == plain | {"method.name": "lora_at_adalora", "optim.lr": recipe.optim.lr}


LORA = ("lora", "lora_at_adalora", "lora_init_r", "lora_qv", "lora_regu")  # lora_rank_pattern: test_transplant.py


@pytest.mark.parametrize("protocol", ["paper", pytest.param("released", marks=pytest.mark.slow)])
def test_a_starts_gaussian_on_deberta_v3_alone(protocol: str) -> None:
    """docs/deviations.md, row 16; a run without the setting keeps the identity it had before the setting existed."""
    runs = {method: ("task=rte", "budget=0.16%", f"method={method}") for method in (*LORA, "prune_lora")}
    cases = [(words, backbone) for words in runs.values() for backbone in ("deberta-v3-base", "minilm")]
    for words, backbone in (*cases, (("task=xsum", "budget=0.26%", "method=lora"), "bart-large")):
        plan = resolved(*words, f"backbone={backbone}", f"protocol={protocol}")
        assert plan.cfg.method.init == ("normal" if backbone == "deberta-v3-base" else "kaiming")
        assert plan.settings.get("method.init", "normal") == plan.cfg.method.init
        assert "backbone.lora_init" not in plan.settings


def test_a_budget_s_own_roles_are_not_fewer_matrices() -> None:
    def budget(*words: str) -> str:
        return str(resolved("task=cola", "method=lora_qv", *words).key["budget"])

    assert budget() == budget("method.targets=[q,v]") == "0.3M"
    assert budget("method.targets=[q]") == "r9-q"
    assert budget("method.layers=[0]") == "r9-0"
    assert budget("method.targets=[v,k]", "method.layers=[2,0]") == "r9-k.v-0.2"  # in whichever order
    assert budget("method.r=3") == "r3"


@pytest.mark.parametrize(
    ("method", "setting", "origin"),
    [
        ("prune_lora", "method.t_i", "conf/tuned/cola_adalora.yaml:14 (paper, Table 8)"),
        ("prune_lora", "method.gamma", "conf/method/prune_lora.yaml:"),
        ("prune_lora", "method.beta1", "conf/method/adalora.yaml:"),
        ("adalora_random", "method.init_r", "budget (conf/method/adalora.yaml:"),
        ("svd_lora", "optim.lr", "conf/tuned/cola_adalora.yaml:9 (paper, Table 8)"),
        ("lora_at_adalora", "optim.lr", "conf/tuned/cola_adalora.yaml:9 (paper, Table 8)"),
        ("lora_at_adalora", "method.alpha", "conf/tuned/cola_adalora.yaml:17 (released script)"),
        ("lora_regu", "method.init", "conf/backbone/deberta-v3-base.yaml:8 (as in the released code"),
        ("lora_regu", "method.init_std", "conf/method/lora.yaml:"),
        ("lora_qv", "method.targets", "budget (conf/method/lora_qv.yaml:"),
    ],
)
def test_the_plan_says_from_which_file_a_value_is(method: str, setting: str, origin: str) -> None:
    for protocol in ("paper", "released") if setting == "optim.lr" else ("paper",):
        words = ["task=cola", f"method={method}", f"protocol={protocol}"]
        choices = compose("config", words, return_hydra_config=True).hydra.runtime.choices
        found = origins(planning.resolve(compose("config", words), choices))[setting]
        script = "conf/script/released_cola_adalora.yaml:7 (released script"
        assert found.startswith(script if protocol == "released" else origin)


def test_a_task_without_a_recipe_has_defaults_and_asks_for_phases() -> None:
    """``task.name`` of one's own with a file: here the recipe is taken away."""
    words = ["task=cola", "~tuned@recipe", "~tuned"]
    assert resolved(*words, "method=svd_lora").settings["method.gamma"] == 0.1
    plan = resolved(*words, "method=adalora_gamma0")
    assert plan.settings["method.t_i"] is None
    with pytest.raises(
        planning.InputError, match=r"method\.t_i, method\.t_f, method\.delta_t: not set.*method\.schedule"
    ):
        planning.count(plan)
