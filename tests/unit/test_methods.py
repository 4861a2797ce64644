"""Every method on every tiny backbone: one table of expectations (count, identity, gradients, plan)."""

import copy
from functools import cache

import pytest
import torch
from hydra import compose

from adalora_repro import methods
from adalora_repro.config import resolve as plan
from adalora_repro.errors import InputError
from adalora_repro.lowrank import LoRALinear
from adalora_repro.models import backbones, inject
from adalora_repro.models.sites import Site, find_sites, head_parameters

BACKBONES = ("tiny-deberta", "tiny-bert", "tiny-roberta", "tiny-bart")
TWO = ("tiny-deberta", "tiny-bart")
METHODS = ("full", "bitfit", "houlsby", "pfeiffer", "lora", "adalora")
#: one for each way to do something else; the others differ from them in numbers (tests/conf/test_ablations_yaml.py)
ABLATIONS = ("lora_qv", "lora_regu", "prune_lora", "svd_lora", "adalora_random", "adalora_gradient", "adalora_uniform")
#: of HF PEFT; the first ones start exactly at the backbone
PEFT_EXACT = ("peft_lora", "peft_adalora", "rslora", "eva", "vera", "ia3", "loha")
PEFT_NEAR = ("dora", "pissa", "oft")
EVERY = [(method, backbone) for method in METHODS for backbone in BACKBONES]
EVERY += [(method, backbone) for method in (*ABLATIONS, *PEFT_EXACT, *PEFT_NEAR) for backbone in TWO]
LOW_RANK = [pair for pair in EVERY if pair[0] in ("lora", "adalora", *ABLATIONS)]
FROM_PEFT = [pair for pair in EVERY if pair[0] in (*PEFT_EXACT, *PEFT_NEAR)]
# width 32, feed-forward 64: a bottleneck of 8, and a rank of 2 (AdaLoRA starts at 4) at budgets 0.3M and 0.26%
HOULSBY, PFEIFFER = 2 * 32 * 8 + 8 + 32, 2 * 32 * 16 + 16 + 32
PER_RANK = {"encoder": 4 * 64 + 2 * 96, "decoder": 8 * 64 + 2 * 96}
BART_RANK = 2 * (PER_RANK["encoder"] + PER_RANK["decoder"])
EXPECTED = {  # trained parameters of the method, head apart; of our methods on encoders: tests/conf/test_compose.py
    ("tiny-deberta", "peft_lora"): 2 * 2 * PER_RANK["encoder"],
    ("tiny-deberta", "peft_adalora"): 4 * (2 * PER_RANK["encoder"] + 12),
    ("tiny-deberta", "dora"): 2 * 2 * PER_RANK["encoder"] + 2 * (5 * 32 + 64),  # and d_out norms
    ("tiny-deberta", "pissa"): 2 * 2 * PER_RANK["encoder"],
    ("tiny-deberta", "vera"): 2 * (5 * 32 + 64) + 12 * 8,
    ("tiny-deberta", "ia3"): 2 * (32 + 32 + 64),
    ("tiny-deberta", "loha"): 2 * 2 * PER_RANK["encoder"],
    ("tiny-deberta", "oft"): 2 * (5 * 32 + 64) * 7 // 2,  # blocks of 8: 28 for every 8 inputs
    ("tiny-bart", "lora_qv"): 11 * 4 * 2 * 64,
    ("tiny-bart", "prune_lora"): 4 * BART_RANK,
    ("tiny-bart", "svd_lora"): 2 * (BART_RANK + 32),
    ("tiny-bart", "houlsby"): (2 * 2 + 2 * 3) * HOULSBY,
    ("tiny-bart", "pfeiffer"): 4 * PFEIFFER,
    ("tiny-bart", "lora"): 2 * BART_RANK,
    ("tiny-bart", "adalora"): 4 * (BART_RANK + 32),
}


pytestmark = pytest.mark.usefixtures("hydra")


@cache
def resolved(backbone: str, method: str, *overrides: str) -> plan.Plan:
    """Encoders classify, BART writes summaries: on the budgets of these tasks that have the same sizes."""
    task = ["task=xsum", "budget=0.26%"] if backbone == "tiny-bart" else ["task=rte", "budget=0.3M"]
    if method == "vera":  # the sizes of its budgets are for large models
        task = [*task[:1], "budget=0.13%" if backbone == "tiny-bart" else task[1], "method.r=8"]
    options = [*task, f"backbone={backbone}", f"method={method}", "data=sample", "train.max_steps=40"]
    given = {o.partition("=")[0] for o in overrides}
    options = [o for o in options if o.partition("=")[0] not in given]
    return plan.resolve(compose("config", [*options, "method.schedule=scaled", *overrides]))


@cache
def loaded(backbone: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """The backbone with the weights of seed 0, and the state of the random numbers after them."""
    torch.manual_seed(0)
    return backbones.load_model(resolved(backbone, "full").cfg).eval(), torch.get_rng_state()


def injected(backbone: str, method: str, *overrides: str):
    """The model with the method, the model without it, and the method."""
    plain, state = loaded(backbone)
    model = copy.deepcopy(plain)
    chosen = methods.load(resolved(backbone, method, *overrides).cfg)
    torch.set_rng_state(state)
    chosen.inject(model, find_sites(model))
    return model.eval(), plain, chosen


def inputs(backbone: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 261, (3, 12), generator=generator)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if backbone == "tiny-bart":
        batch["decoder_input_ids"] = torch.randint(5, 261, (3, 7), generator=generator)
    return batch


def labels(backbone: str) -> torch.Tensor:
    if backbone == "tiny-bart":
        return torch.randint(5, 261, (3, 7), generator=torch.Generator().manual_seed(1))
    return torch.tensor([0, 1, 0])


@pytest.mark.parametrize(("method", "backbone"), EVERY)
def test_count_is_the_plan_and_gradients_reach_exactly_what_trains(backbone, method):
    counted = plan.count(resolved(backbone, method))
    model, plain, chosen = injected(backbone, method)
    assert inject.count_trained(model) == {"method": counted.params["at_init"], "head": counted.params["head"]}
    assert all(p.requires_grad for p in head_parameters(model).values())
    family = "tiny-bart" if backbone == "tiny-bart" else "tiny-deberta"
    if (family, method) in EXPECTED:
        assert counted.params["at_init"] == EXPECTED[family, method]
    if method == "full":
        assert counted.params["total"] == inject.count(plain.parameters())

    chosen.on_train_start(40)
    with torch.no_grad():  # away from the zero start, where half of the low-rank gradients vanish
        for parameter in inject.trained(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model(**inputs(backbone), labels=labels(backbone)).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    silent = [n for n, p in inject.trained(model).items() if not p.grad.any()]
    cancels = "k_proj.bias" if backbone == "tiny-bart" else "key"  # a key's bias cancels in softmax
    assert all("embeddings" in name or cancels in name for name in silent), silent


@pytest.mark.parametrize(("method", "backbone"), LOW_RANK + FROM_PEFT)
def test_low_rank_methods_start_bit_identical_or_rewrite_weights_up_to_rounding(backbone, method):
    model, plain, _ = injected(backbone, method)
    batch = inputs(backbone)
    rounding = {"atol": 1e-6, "rtol": 1e-5} if method in PEFT_NEAR else {"atol": 0, "rtol": 0}
    torch.testing.assert_close(model(**batch).logits, plain(**batch).logits, **rounding)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", ["houlsby", "pfeiffer"])
def test_adapters_start_near_the_identity_and_exactly_on_it_without_their_output(backbone, method):
    """Both protocols have the same adapters."""
    model, plain, _ = injected(backbone, method)
    batch = inputs(backbone)
    torch.testing.assert_close(model(**batch).logits, plain(**batch).logits, atol=0.05, rtol=0)
    assert not torch.equal(model(**batch).logits, plain(**batch).logits)
    released, _, _ = injected(backbone, method, "protocol=released")
    assert torch.equal(model(**batch).logits, released(**batch).logits)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".up." in name:
                parameter.zero_()
    assert torch.equal(model(**batch).logits, plain(**batch).logits)


def test_houlsby_s_adapters_sit_where_the_paper_put_them():
    """Pfeiffer's: tests/oracle/test_pfeiffer.py."""
    houlsby, _, _ = injected("tiny-bert", "houlsby")
    layer = houlsby.bert.encoder.layer[0]
    for place in (layer.attention.output.dropout, layer.output.dropout):  # before the residual and LayerNorm
        assert [type(m).__name__ for m in place] == ["Dropout", "Adapter"]
        assert place[1].activation is torch.nn.functional.silu


def test_bitfit_trains_every_bias_of_the_backbone_and_nothing_else_there():
    model, _, _ = injected("tiny-deberta", "bitfit")
    for name, parameter in model.base_model.named_parameters():
        assert parameter.requires_grad == name.endswith("bias"), name
    assert model.base_model.embeddings.LayerNorm.bias.requires_grad
    assert model.classifier.weight.requires_grad


def test_berts_pooler_is_part_of_the_head():
    model, _, _ = injected("tiny-bert", "lora")
    assert {name.rpartition(".")[0] for name in head_parameters(model)} == {"bert.pooler.dense", "classifier"}


@pytest.mark.parametrize("method", ["lora", "lora_regu", "lora_qv", "prune_lora"])
def test_a_starts_as_init_says(method):
    """Kaiming on every backbone but DeBERTaV3-base: U(-1/√d_in, 1/√d_in), which is 3.7 to 5.1 times 0.02 here."""
    for words, normal in ((), False), (("method.init=normal",), True), (("backbone.lora_init=normal",), True):
        _, _, chosen = injected("tiny-bert", method, *words)
        for layer in chosen.layers.values():
            assert not layer.lora_B.any()
        for width in {layer.base.in_features for layer in chosen.layers.values()}:
            same = [layer.lora_A.flatten() for layer in chosen.layers.values() if layer.base.in_features == width]
            entries, bound = torch.cat(same), width**-0.5
            assert entries.std().item() == pytest.approx(0.02 if normal else bound / 3**0.5, rel=0.15)
            assert normal or 0.95 * bound < entries.abs().max() <= bound


def test_targets_and_layers_choose_the_matrices():
    model, _, _ = injected("tiny-deberta", "lora", "method.targets=[q,v]", "method.layers=[1]")
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    prefix = "deberta.encoder.layer.1.attention.self"
    assert adapted == [f"{prefix}.query_proj", f"{prefix}.value_proj"]


def test_a_renamed_module_is_an_error_not_a_smaller_method():
    model, _, _ = injected("tiny-bert", "full")
    attention = model.bert.encoder.layer[1].attention.self
    attention.renamed = attention.query
    del attention.query
    with pytest.raises(InputError, match=r"no module '.*layer.1.attention.self.query' for role 'q'"):
        find_sites(model)


def test_site_names_do_not_depend_on_the_backbone():
    names = {}
    for backbone in ("tiny-deberta", "tiny-bert", "tiny-roberta"):
        model, _, _ = injected(backbone, "full")
        names[backbone] = [site.name for site in find_sites(model)]
    assert names["tiny-deberta"] == names["tiny-bert"] == names["tiny-roberta"]
    assert Site("q", "encoder", 3, "x").name == "encoder.3.q"


def test_summarization_head_is_tied_and_counts_as_backbone():
    counted = plan.count(resolved("tiny-bart", "lora"))
    assert counted.params["head"] == 0
    model, plain, _ = injected("tiny-bart", "lora")
    assert model.lm_head.weight is model.model.shared.weight
    assert not model.lm_head.weight.requires_grad
    assert counted.params["backbone"] == inject.count(plain.parameters())
