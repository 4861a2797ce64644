"""Every method on a tiny model of every model type that no file of conf/backbone has: three steps each."""

import re
from functools import cache
from types import SimpleNamespace

import plans
import pytest
import torch
import transformers
from own_models import MODELS, SUMMARIZES, config_of, save
from tiny_runs import built, without_dropout
from torch import nn

from adalora_repro import methods
from adalora_repro.config.resolve import count
from adalora_repro.errors import InputError
from adalora_repro.models import backbones, inject, own_backbone, speedups
from adalora_repro.models.sites import find_sites
from adalora_repro.tasks import load_family
from adalora_repro.training.batches import training_batches
from adalora_repro.training.loop import step
from adalora_repro.training.runner import make_optimizer

pytestmark = pytest.mark.usefixtures("hydra")

METHODS = ("full", "bitfit", "houlsby", "pfeiffer", "lora", "adalora", "svd_lora", "lora_qv")
NEW = [name for name in MODELS if name not in ("bert", "roberta", "deberta-v2", "bart")]
NO_BIAS = ("modernbert", "t5", "t5-gated", "llama", "qwen3", "gemma")
PRE_NORM = ("modernbert", "pegasus", "t5", "t5-gated", "llama", "qwen2", "qwen3", "gemma")
FUSED = ("deberta", "modernbert")
REFUSED = {
    **{(name, "bitfit"): "BitFit trains biases, and this .* backbone has none" for name in NO_BIAS},
    **{(name, "pfeiffer"): "has no module for role 'ffn_norm': layers normalize their input" for name in PRE_NORM},
    **{(name, "lora_qv"): "has no module for role 'q': Wq Wk Wv are one matrix, role qkv" for name in FUSED},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("models")
    return cache(lambda name: save(made / name, config_of(name)))


def words(name, method, folder):
    task = ("task=xsum", "budget=0.26%") if name in SUMMARIZES else ("task=rte", "budget=0.3M")
    own = ("backbone=auto", f"backbone.path={folder(name)}", "data=sample", f"method={method}")
    return (*task, *own, "train.max_steps=3", "method.schedule=scaled", "optim.lr=1e-3")


def matrices(model):
    """Every linear layer of the blocks, found by its place; DeBERTa's projections of positions are not adapted."""
    linear = [(name, m) for name, m in model.base_model.named_modules() if isinstance(m, nn.Linear)]
    return [m for name, m in linear if re.search(r"\.\d+\.", name) and ".pos_" not in name]


def batch(name):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 261, (3, 8), generator=generator)
    mask = torch.ones_like(tokens)
    tokens[0, 5:] = mask[0, 5:] = 0
    labels = {"labels": torch.tensor([0, 1, 0])} if name not in SUMMARIZES else {"labels": tokens[:, :6], "terms": 18}
    return {"input_ids": tokens, "attention_mask": mask} | labels


@pytest.mark.parametrize("name", sorted(MODELS.keys() - set(NEW)))
def test_a_saved_model_of_a_type_in_conf_backbone_is_the_one_that_was_counted(name, folder):
    plan = count(plans.resolved(*words(name, "lora", folder)))
    model = backbones.load_model(plan.cfg)
    assert plan.params["backbone"] == inject.count(model.base_model.parameters())
    methods.load(plan.cfg).inject(model, find_sites(model))
    assert inject.count_trained(model) == {"method": plan.params["at_init"], "head": plan.params["head"]}


def test_a_typed_setting_that_the_saved_model_does_not_have_is_refused(folder):
    plan = plans.resolved(*words("bert", "lora", folder), "+backbone.architecture.hidden_dropout_prob=0.5")
    with pytest.raises(InputError, match=r"in its config.json hidden_dropout_prob is 0\.1, not 0\.5"):
        backbones.load_model(plan.cfg)


def test_a_plan_refuses_checkpointing_where_transformers_has_none(folder):
    plan = plans.resolved(*words("mpnet", "lora", folder), "backbone.gradient_checkpointing=true")
    with pytest.raises(InputError, match=r"gradient_checkpointing=true: transformers has none for MPNet"):
        count(plan)


def test_deberta_v1_trains_in_bf16(folder, tmp_path):
    run = built(tmp_path, *words("deberta", "bitfit", folder), "train.precision=bf16")
    step(run, next(iter(training_batches(run))))
    run.look()


@pytest.mark.parametrize("name", MODELS)
def test_masks_as_on_a_gpu_change_no_loss(name, folder):
    cfg = plans.resolved(*words(name, "lora", folder)).cfg
    task, model = load_family(cfg), backbones.load_model(cfg).train()
    without_dropout(SimpleNamespace(model=model))
    before, _ = task.loss(model, batch(name))
    speedups.use_4d_masks(model)
    torch.testing.assert_close(task.loss(model, batch(name))[0], before)


def test_a_draft_takes_no_attention_for_plain():
    """ModernBERT's is local, and a mask of four dimensions would make it global in training on a GPU."""
    model = transformers.AutoModelForSequenceClassification.from_config(config_of("modernbert"))
    assert "plain_masks: false" in own_backbone.draft(model)


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("method", METHODS)
def test_three_steps(name, method, folder):
    plan = plans.resolved(*words(name, method, folder))
    assert plan.key["backbone"] == name
    if reason := REFUSED.get((name, method)):
        with pytest.raises(InputError, match=reason):
            count(plan)
        return
    plan = count(plan)
    torch.manual_seed(0)
    model, chosen = backbones.load_model(plan.cfg), methods.load(plan.cfg)
    every = matrices(model)
    chosen.inject(model, find_sites(model))
    assert inject.count_trained(model) == {"method": plan.params["at_init"], "head": plan.params["head"]}
    if method == "lora":
        assert plan.method["n"] == len(every)
        assert plan.params["method"] == 2 * sum(sum(matrix.weight.shape) for matrix in every)
    if method == "bitfit":  # DeBERTa's q_bias and v_bias among them
        assert all(p.requires_grad for key, p in model.base_model.named_parameters() if key.endswith("bias"))
    before = {key: value.detach().clone() for key, value in inject.trained(model).items()}
    task, optimizer, losses = load_family(plan.cfg), make_optimizer(model, plan.cfg.optim), []
    chosen.on_train_start(plan.total_steps)
    for t in range(plan.total_steps):
        loss, _ = task.loss(model, batch(name))
        penalty = chosen.regularizer()
        (loss if penalty is None else loss + penalty).backward()
        losses.append(loss.item())
        chosen.before_update(t)
        optimizer.step()
        chosen.after_update(t)
        optimizer.zero_grad()
    assert torch.tensor(losses).isfinite().all()
    still = [key for key, value in inject.trained(model).items() if torch.equal(value, before[key])]
    # rows of tokens that do not occur, and what AdaLoRA pruned, is as before
    assert not [key for key in still if not any(part in key for part in ("embed", "shared", "lora_E"))], still
