"""methods/peft.py and peft_adalora.py: any tuner of HF PEFT trains, resumes, is kept and loaded by PEFT alone."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import plans
import pytest
import torch
import transformers
from omegaconf import OmegaConf
from own_models import config_of, save
from tiny_runs import built, inputs_of, logits

from adalora_repro import methods
from adalora_repro.errors import InputError
from adalora_repro.models import backbones, inject
from adalora_repro.models.sites import find_sites
from adalora_repro.training import kept
from adalora_repro.training.batches import first_batches, training_batches
from adalora_repro.training.loop import step
from adalora_repro.training.runner import initialize
from adalora_repro.training.state import RunState

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("hydra")

METHODS = ("peft_lora", "peft_adalora", "dora", "rslora", "pissa", "eva", "vera", "ia3", "loha", "oft")
#: loads what was kept where this project cannot be imported, and stores the logits
ALONE = """
import sys
sys.modules["adalora_repro"] = None
import peft, torch, transformers
base, inputs, auto, *adapters = sys.argv[1:]
for adapter in adapters:
    model = getattr(transformers, auto).from_pretrained(base)
    model = peft.PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        torch.save(model(**torch.load(inputs)).logits, adapter + "/logits.pt")
"""


def run_of(method: str, folder: Path, *words: str, backbone: str = "tiny-bert") -> RunState:
    task = ["task=sst2"]
    if backbone == "tiny-bart":
        task = ["task=xsum", "task.max_length=32", "task.max_target_length=8"]
    size = {"vera": ["method.r=8"], "ia3": []}.get(method, ["budget=0.26%" if "task=xsum" in task else "budget=0.3M"])
    return built(folder, *task, f"backbone={backbone}", f"method={method}", *size, *words)


def trained_for(run: RunState, steps: int) -> list[float]:
    """The losses of the next steps."""
    before = len(run.losses)
    for _, batches in zip(range(steps), training_batches(run), strict=False):
        step(run, batches)
    return [loss.item() for loss in run.losses[before:]]


def changed(run: RunState) -> RunState:
    """All trained parameters leave their values; AdaLoRA ends with its masks."""
    trained_for(run, run.plan.total_steps)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in inject.trained(run.model).values():
            noise = 0.1 * torch.randn_like(parameter)
            parameter.add_(noise if parameter.all() else noise * (parameter != 0))
    return run


# --- kept and loaded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["tiny-bert", "tiny-deberta", "tiny-bart"])
def test_what_is_kept_is_the_model_for_us_and_for_peft_alone(backbone: str, tmp_path: Path) -> None:
    """PEFT loads its methods and our own in one process that cannot import this project."""
    expected = {}
    for method in (*METHODS, "lora", "adalora"):
        run = changed(run_of(method, tmp_path, backbone=backbone))
        inputs, folder = inputs_of(run), tmp_path / method / "model"
        folder.parent.mkdir()
        summary = run.method.summary()
        kept.keep(run.model, run.plan.cfg, folder, "adapter", run.method)
        assert run.method.summary() == summary
        expected[folder] = logits(run.model, inputs)
        model, _ = kept.load(folder)
        assert torch.allclose(logits(model, inputs), expected[folder], atol=1e-5), method
        assert not hasattr(model, "peft_config")  # merged: a plain model
    transformers.set_seed(run.plan.cfg.seed)
    backbones.load_model(run.plan.cfg).save_pretrained(tmp_path / "base")
    torch.save(inputs, tmp_path / "inputs.pt")
    paths = [str(tmp_path / "base"), str(tmp_path / "inputs.pt"), run.plan.cfg.task.auto_model, *map(str, expected)]
    subprocess.run([sys.executable, "-W", "ignore", "-c", ALONE, *paths], check=True, capture_output=True, cwd=tmp_path)
    for folder, ours in expected.items():
        theirs = torch.load(folder / "logits.pt", weights_only=True)
        assert torch.allclose(theirs, ours, atol=1e-5), folder.parent.name
    distinct = torch.stack(list(expected.values())[: len(METHODS)]).flatten(1).unique(dim=0)
    assert len(distinct) == len(METHODS)


def test_export_as_a_whole_checkpoint_and_for_another_backbone(tmp_path: Path) -> None:
    run = changed(run_of("dora", tmp_path))
    kept.keep(run.model, run.plan.cfg, tmp_path / "model", "adapter", run.method)
    kept.write_export(tmp_path, tmp_path / "whole", "merged")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole")
    inputs = inputs_of(run)
    assert torch.allclose(logits(model, inputs), logits(run.model, inputs), atol=1e-5)
    config = tmp_path / "model" / kept.CONFIG
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("intermediate_size: 64", "intermediate_size: 48"), encoding="utf-8")
    with pytest.raises(InputError, match="the backbone is another one"):
        kept.load(tmp_path)


# --- training and resuming --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dora", "pissa", "eva", "vera", "peft_adalora"])
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(method: str, tmp_path: Path) -> None:
    """Before and after T - t_f, where PEFT drops the averages of its scores."""
    words = ["optim.lr=0.01", "optim.warmup_steps=0"]
    if method == "peft_adalora":
        words += ["method.schedule=absolute", "method.t_i=1", "method.t_f=4", "method.delta_t=1"]
    whole = run_of(method, tmp_path, *words)
    initialize(whole)
    files = {}
    losses: list[float] = []
    for steps in (3, 5, 2):
        losses += trained_for(whole, steps)
        whole.train_s += steps
        files[whole.t] = file = io.BytesIO()
        torch.save(whole.state_dict(), file)
    for t, file in files.items():
        other = run_of(method, tmp_path, *words)
        file.seek(0)
        other.load_state_dict({k: v for k, v in torch.load(file, weights_only=True).items() if k != "format"})
        assert (other.t, other.train_s) == (t, t)
        assert trained_for(other, 10 - t) == losses[t:]
        assert other.tokens == whole.tokens
        inputs = inputs_of(whole)
        assert torch.equal(logits(other.model, inputs), logits(whole.model, inputs))
        assert other.method.summary() == whole.method.summary()


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_eva_starts_from_the_inputs_of_every_matrix_and_other_methods_read_no_batch(
    model_type: str, tmp_path: Path
) -> None:
    folder = save(tmp_path / model_type, config_of(model_type), padding=model_type == "bert")
    run = built(tmp_path, "backbone=auto", f"backbone.path={folder}", "method=eva", "budget=0.3M")
    before = {name: p.detach().clone() for name, p in inject.trained(run.model).items()}
    stream = torch.get_rng_state()
    initialize(run)
    assert torch.equal(torch.get_rng_state(), stream)  # the run's random numbers are those of other methods
    moved = {name for name, p in inject.trained(run.model).items() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_A" in name}
    first = next(iter(run.method.layers().values()))
    seen: list[torch.Tensor] = []
    hook = first.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with torch.no_grad():
        for batch in first_batches(run):
            run.task.loss(run.model.eval(), batch)
            seen[-1] = seen[-1][batch["attention_mask"].bool()]
    hook.remove()
    inputs = torch.cat(seen)
    rows = first.lora_A["default"].weight.detach()
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-4, rtol=0)
    centred = inputs - inputs.mean(0)
    captured = (centred @ rows.T).square().sum() / centred.square().sum()
    best = torch.linalg.svdvals(centred).square()
    assert captured > 0.95 * best[: len(rows)].sum() / best.sum()

    other = run_of("peft_lora", tmp_path)
    other.method.prepare(pytest.fail, pytest.fail)
    with pytest.raises(InputError, match=r"eva_config\.rho must be 1"):
        plans.counted("task=sst2", "backbone=tiny-bert", "data=sample", "method=eva", "method.options.eva_config.rho=2")


def test_processes_start_from_the_initial_values_of_the_main_one(tmp_path: Path) -> None:
    run = run_of("eva", tmp_path)
    given: list[Any] = []
    run.processes.from_main = lambda tensors: given.extend(map(torch.clone, tensors))
    initialize(run)
    assert all(map(torch.equal, given, inject.trained(run.model).values()))
    assert len(given) == len(inject.trained(run.model))


# --- AdaLoRA of PEFT --------------------------------------------------------------------------------------------------


def test_the_regularizer_is_pefts_own_and_no_part_of_a_loss(tmp_path: Path) -> None:
    run = run_of("peft_adalora", tmp_path, "method.gamma=0.3")
    batch = next(iter(first_batches(run)))
    words = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    run.model.eval()
    plain, with_it = run.model(**words).loss, run.method.tuner(**words).loss
    torch.testing.assert_close(with_it - plain, run.method.regularizer(), atol=1e-5, rtol=1e-5)
    assert run.method.regularizer().requires_grad
    torch.testing.assert_close(run.task.loss(run.model, batch)[0], plain)
    assert run_of("peft_adalora", tmp_path, "method.gamma=0").method.regularizer() is None


def test_steps_after_the_masks_may_be_the_first(tmp_path: Path) -> None:
    """``measure=cost`` makes few of a run's steps."""
    run = run_of("peft_adalora", tmp_path)
    run.t = run.plan.total_steps - 1
    trained_for(run, 1)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [method for method in METHODS if method != "ia3"])
def test_the_largest_size_that_has_no_more_than_a_number_of_parameters(method: str, tmp_path: Path) -> None:
    """One step of the size costs at most this many."""
    words = ["budget.match=params", "budget.params=5000"]
    run = built(tmp_path, "task=sst2", f"method={method}", *words)
    assert inject.count_trained(run.model)["method"] == run.plan.params["at_init"]
    step_of_size = {"vera": 12, "loha": 1792, "oft": 224 * 16, "peft_adalora": 97}.get(method, 920)
    assert 5000 - step_of_size < run.plan.params["method"] <= 5000


def test_ranks_from_a_json_file_have_the_scaling_of_our_lora(tmp_path: Path) -> None:
    names = run_of("lora", tmp_path).method.ranks
    ranks = {name: rank % 4 for rank, name in enumerate(names)}
    file = tmp_path / "ranks.json"
    file.write_text(json.dumps(ranks), encoding="utf-8")
    word = f"method.rank_pattern={file}"
    ours = built(tmp_path, "task=sst2", "method=lora", "method.init=kaiming", word)
    for method, factor in (("peft_lora", 1.0), ("rslora", (sum(ranks.values()) / len(ranks)) ** 0.5)):
        run = built(tmp_path, "task=sst2", f"method={method}", word)
        assert run.plan.key["budget"] == ours.plan.key["budget"] == f"ranks{sum(ranks.values())}"
        assert run.method.summary()["rank_pattern"] == ranks == ours.method.ranks
        assert run.plan.params == ours.plan.params
        for name, layer in run.method.layers().items():
            assert layer.scaling["default"] == pytest.approx(factor * ours.method.layers[name].scaling)
    file.write_text(json.dumps({"encoder.0.q": 2}), encoding="utf-8")
    with pytest.raises(InputError, match=r"method\.rank_pattern does not fit: encoder\.0\.k and 10"):
        built(tmp_path, "task=sst2", "method=peft_lora", word)
    with pytest.raises(InputError, match="VeraConfig has one size for all matrices"):
        loaded("VeraConfig", size="r", rank_pattern=ranks)


# --- a YAML alone, and what is wrong in one ---------------------------------------------------------------------------


def loaded(tuner: str, **values: Any) -> Any:
    method = {"name": "own", "module": "peft", "schedule": "absolute", "tuner": tuner, "sizes": None, **values}
    cfg = {"method": method, "budget": {"match": "label"}, "protocol": {"name": "paper"}}
    return methods.load(OmegaConf.create(cfg))


@pytest.mark.parametrize("init", ["pissa_niter_4", "lora_ga"])
def test_initial_values_that_peft_would_change_are_refused(init: str) -> None:
    with pytest.raises(InputError, match=rf"method\.options\.init_lora_weights={init} (changes|takes)"):
        loaded("LoraConfig", size="r", r=2, options={"init_lora_weights": init})


def bert() -> Any:
    config = transformers.BertConfig(
        hidden_size=32, num_attention_heads=4, intermediate_size=64, num_hidden_layers=1, vocab_size=50
    )
    return transformers.BertForSequenceClassification(config).eval()


def test_modules_that_peft_fills_in_and_could_not_load_are_refused() -> None:
    model = bert()
    with pytest.raises(InputError, match="`feedforward_modules` should be a subset of `target_modules`"):
        loaded("IA3Config").inject(model, find_sites(model))


@pytest.mark.parametrize("tuner", ["LoKrConfig", "HRAConfig", "FourierFTConfig", "RandLoraConfig", "LNTuningConfig"])
def test_another_tuner_of_peft_is_a_yaml_alone(tuner: str) -> None:
    """Its file would hold what ``loaded`` says."""
    size = {"FourierFTConfig": {"options": {"n_frequency": 10}}, "LNTuningConfig": {}}.get(tuner, {"size": "r", "r": 4})
    model = bert()
    method = loaded(tuner, **size)
    method.inject(model, find_sites(model))
    counts = inject.count_trained(model)
    assert counts["method"] > 0
    assert counts["head"] == 32 * 33 + 2 * 33
    tokens = torch.arange(5, 15)[None]
    model(tokens, labels=torch.tensor([1])).loss.backward()


def test_without_a_size_or_peft_there_is_one_line_and_nothing_else_imports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else can be wrong in a file: tests/conf/test_wrong_values.py."""
    with pytest.raises(InputError, match=r"method\.r is not set"):
        loaded("LoraConfig", size="r")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"need peft: pip install 'adalora-repro\[peft\]'"):
        loaded("LoraConfig", size="r", r=2)
    program = (
        "import sys; from adalora_repro import methods; from adalora_repro.training import runner\n"
        "from transformers import BertForSequenceClassification\n"
        "assert {'peft', 'peft_adalora', 'lora'} <= set(methods.modules())\n"
        "assert 'peft' not in sys.modules"  # a second in every run's start
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("method", METHODS)
def test_mixed_precision_trains_and_is_kept(method: str, tmp_path: Path) -> None:
    """Frozen weights are stored in bf16, what is trained is not; the kept model is of the backbone's own weights."""
    run = run_of(method, tmp_path, "train.precision=bf16", "optim.lr=0.01", "optim.warmup_steps=0")
    initialize(run)
    before = {name: p.detach().clone() for name, p in inject.trained(run.model).items()}
    losses = trained_for(run, 4)
    assert all(0 < loss < 2 for loss in losses)
    after = inject.trained(run.model)
    assert {p.dtype for p in after.values()} == {torch.float32}
    assert any(p.dtype == torch.bfloat16 for p in run.model.parameters())
    assert sum(not torch.equal(p, before[name]) for name, p in after.items()) > len(after) / 2
    kept.keep(run.model, run.plan.cfg, tmp_path / "model", "adapter", run.method)
    model, _ = kept.load(tmp_path)
    inputs = inputs_of(run)
    with run.processes.accelerator.autocast():
        rounded = logits(run.model, inputs).float()
    assert torch.allclose(logits(model, inputs), rounded, atol=0.02)


def test_adalora_of_peft_has_the_triplets_of_ours_at_a_number_of_parameters(tmp_path: Path) -> None:
    words = ["budget.match=params", "budget.params=3000", "optim.lr=0.01", "optim.warmup_steps=0"]
    ours, run = (built(tmp_path, "task=sst2", f"method={name}", *words) for name in ("adalora", "peft_adalora"))
    for name in ("n", "b_0", "b_T", "alpha_over_r"):
        assert run.plan.method[name] == ours.plan.method[name]
    trained_for(run, 10)
    summary, plan = run.method.summary(), run.plan.method
    assert sum(summary["rank_pattern"].values()) == plan["b_T"] == 39
    assert plan["params_min"] <= summary["params"] <= plan["params_max"]
