"""The models on the meta device against transformers' own models: same parameters, same shapes, same sites."""

import pytest
import torch
from omegaconf import OmegaConf
from task_configs import CONF, task_config, with_backbone

from adalora_repro.models import backbones, meta_models
from adalora_repro.models.sites import find_sites, head_parameters

BACKBONES = sorted(path.stem for path in (CONF / "backbone").glob("*.yaml") if path.stem != "auto")
TASKS = {"rte": "two labels", "mnli": "three labels", "stsb": "regression", "squad": "spans", "xsum": "seq2seq"}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("task", TASKS)
def test_a_meta_model_is_the_model_of_transformers(backbone, task, monkeypatch):
    cfg = with_backbone(task_config(task), backbone)
    if (task == "xsum") != ("bart" in backbone):  # no plan gets here; transformers would have a head, or say why not
        assert meta_models.build(dict(cfg.backbone.architecture), cfg.task.auto_model, 2) is None
        return
    ours = backbones.meta_model(cfg)
    assert isinstance(ours, meta_models.MetaModel)
    monkeypatch.setattr(meta_models, "build", lambda *_: None)
    theirs = backbones.meta_model(cfg)
    assert not isinstance(theirs, meta_models.MetaModel)

    def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
        return {name: tuple(p.shape) for name, p in model.named_parameters()}

    assert shapes(ours) == shapes(theirs)
    assert find_sites(ours) == find_sites(theirs)
    assert set(head_parameters(ours)) == set(head_parameters(theirs))
    for site in find_sites(ours):
        mine, yours = ours.get_submodule(site.path), theirs.get_submodule(site.path)
        assert type(mine).__name__ == type(yours).__name__


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "t5"},
        {"conv_kernel_size": 3},
        {"share_att_key": False},
        {"relative_attention": False},
        {"norm_rel_ebd": "none"},
        {"position_buckets": -1},
        {"embedding_size": 16},
    ],
)
def test_an_architecture_that_is_not_spelled_out_is_left_to_transformers(change):
    architecture = OmegaConf.to_container(with_backbone(task_config("rte"), "tiny-deberta").backbone.architecture)
    assert meta_models.build(architecture, "AutoModelForSequenceClassification", 2) is not None
    assert meta_models.build(architecture | change, "AutoModelForSequenceClassification", 2) is None
