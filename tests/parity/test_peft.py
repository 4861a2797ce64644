"""Parity with HF PEFT: equal losses and scalings, and with protocol=released equal masks."""

import pytest
import torch
from omegaconf import OmegaConf
from tiny_runs import built
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, get_linear_schedule_with_warmup

from adalora_repro.methods import lora
from adalora_repro.models.sites import find_sites
from adalora_repro.training.batches import training_batches
from adalora_repro.training.loop import step
from adalora_repro.training.runner import make_optimizer

peft = pytest.importorskip("peft")


def test_fifty_steps_of_training_have_the_losses_of_peft():
    """The same initial tensors and batches, no dropout, in double precision: our model, optimizer and schedule beside
    PEFT's model with torch's plain AdamW, the gradient's norm clipped by torch."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 2}
    config = BertConfig(vocab_size=50, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes)
    ours = BertForSequenceClassification(config).double()
    theirs = BertForSequenceClassification(config).double()
    theirs.load_state_dict(ours.state_dict())
    method = lora.Method(lora.Options("lora", "lora", r=4, alpha=32.0, init="kaiming"), "paper")
    sites = find_sites(ours)
    method.inject(ours, sites)
    matrices = [site.path for site in method.options.matrices(sites)]
    head = ["bert.pooler", "classifier"]
    peft_config = peft.LoraConfig(target_modules=matrices, r=4, lora_alpha=32, modules_to_save=head)
    model = peft.get_peft_model(theirs, peft_config, autocast_adapter_dtype=False).double()
    with torch.no_grad():
        for path in matrices:
            adapted = model.base_model.model.get_submodule(path)
            adapted.lora_A["default"].weight.copy_(ours.get_submodule(path).lora_A)
            assert not adapted.lora_B["default"].weight.any()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in ours.parameters() if p.requires_grad)

    optim = OmegaConf.create({"lr": 1e-2, "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8})
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizers = make_optimizer(ours, optim), torch.optim.AdamW(groups, lr=1e-2, foreach=False)
    schedules = [get_linear_schedule_with_warmup(optimizer, 5, 50) for optimizer in optimizers]
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(50):
        tokens = torch.randint(5, 50, (16, 12), generator=generator)
        labels = (tokens[:, 0] > 27).long()
        pair = []
        for net, optimizer, schedule in zip((ours.train(), model.train()), optimizers, schedules, strict=True):
            loss = net(input_ids=tokens, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for p in net.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            pair.append(loss.item())
        losses.append(pair)
    assert max(abs(a - b) for a, b in losses) < 1e-5
    assert sum(a for a, _ in losses[-10:]) < 0.8 * sum(a for a, _ in losses[:10])  # it learns: noise is not compared


def test_ranks_of_their_own_are_scaled_as_peft_s_patterns_say():
    """LoRA at one rank for each matrix, all scaled by alpha over the mean rank; rank 0 is no adapter at all."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 20}
    ours = BertForSequenceClassification(BertConfig(num_hidden_layers=1, **sizes)).eval()
    theirs = BertForSequenceClassification(ours.config).eval()
    theirs.load_state_dict(ours.state_dict())
    pattern = {"encoder.0.q": 1, "encoder.0.k": 5, "encoder.0.v": 0}
    options = lora.Options("lora", "lora", alpha=8.0, rank_pattern=pattern, targets=["q", "k", "v"])
    lora.Method(options, "paper").inject(ours, find_sites(ours))
    config = peft.LoraConfig(  # the mean rank is 2, the scaling 4
        target_modules=["query", "key"], rank_pattern={"query": 1, "key": 5}, alpha_pattern={"query": 4, "key": 20}
    )
    model = peft.get_peft_model(theirs, config).eval()
    names = [f"bert.encoder.layer.0.attention.self.{name}" for name in ("query", "key")]
    with torch.no_grad():
        for name in names:
            layer, adapted = ours.get_submodule(name), model.base_model.model.get_submodule(name)
            layer.lora_B.normal_()
            adapted.lora_A["default"].weight.copy_(layer.lora_A)
            adapted.lora_B["default"].weight.copy_(layer.lora_B)
    assert type(ours.bert.encoder.layer[0].attention.self.value) is nn.Linear
    tokens = torch.randint(0, 20, (3, 6))
    torch.testing.assert_close(ours(tokens).logits, model(tokens).logits)


# --- whole runs: PEFT's tuner through our loop beside our own method --------------------------------------------------

#: our names of the factors -> PEFT's
LORA = {"lora_A": "lora_A.default.weight", "lora_B": "lora_B.default.weight"}
ADALORA = {name: f"{name}.default" for name in ("lora_A", "lora_B", "lora_E")}


def pair_of_runs(folder, method: str, factors: dict[str, str], *words: str):
    """Our method and PEFT's in runs of one configuration, with equal initial values."""
    common = ["task=sst2", "budget=0.3M", "optim.lr=0.01", "optim.warmup_steps=0", "train.max_steps=12", *words]
    ours, theirs = (built(folder, f"method={name}", *common) for name in (method, f"peft_{method}"))
    with torch.no_grad():
        for site, layer in theirs.method.layers().items():
            for mine, name in factors.items():
                layer.get_parameter(name).copy_(getattr(ours.method.layers[site], mine))
    assert theirs.plan.params == ours.plan.params
    return ours, theirs


def steps_of_both(ours, theirs):
    for one, other in zip(training_batches(ours), training_batches(theirs), strict=True):
        for run, batches in ((ours, one), (theirs, other)):
            torch.manual_seed(run.t)  # dropout
            step(run, batches)
        yield float(ours.losses[-1]), float(theirs.losses[-1])


@pytest.mark.parametrize("words", [(), ("method.r=3", "method.targets=[q,ffn_out]"), ("train.grad_accumulation=2",)])
def test_lora_of_peft_is_our_lora_step_for_step(words: tuple[str, ...], tmp_path) -> None:
    size = [word for word in words if word.startswith("method.r")]
    ours, theirs = pair_of_runs(tmp_path, "lora", LORA, *words)
    losses = list(steps_of_both(ours, theirs))
    assert max(abs(one - other) for one, other in losses) < 1e-6
    for site, layer in theirs.method.layers().items():
        for mine, name in LORA.items():
            torch.testing.assert_close(
                layer.get_parameter(name), getattr(ours.method.layers[site], mine), atol=1e-4, rtol=0
            )
    assert len(losses) == 12
    assert bool(size) == (theirs.plan.method["r"] == 3)


@pytest.mark.parametrize("delta_t", [1, 2])  # PEFT masks at T - t_f whether it is due or not
def test_adalora_of_peft_is_ours_with_protocol_released(delta_t: int, tmp_path) -> None:
    """Scores, schedule, masks, regularizer and scaling; PEFT divides by the rank plus 1e-5 (deviations.md, row 13)."""
    words = ["protocol=released", "method.schedule=absolute", "method.t_i=2", "method.t_f=4"]
    words.append(f"method.delta_t={delta_t}")
    ours, theirs = pair_of_runs(tmp_path, "adalora", ADALORA, *words)
    budgets = []
    for one, other in steps_of_both(ours, theirs):
        assert abs(one - other) < 1e-4
        budgets.append(theirs.method.curve(ours.t - 1)["b_t"])
        for site, layer in theirs.method.layers().items():
            mine = ours.method.layers[site].lora_E
            assert torch.equal(mine == 0, layer.lora_E["default"] == 0), (site, ours.t)
    assert ours.method.summary() == theirs.method.summary()
    assert budgets[0] == 48
    assert budgets[-1] == 24
    at_final_budget = ([run.method.at_final_budget(t) for t in range(12)] for run in (ours, theirs))
    assert next(at_final_budget) == next(at_final_budget)
    torch.testing.assert_close(ours.method.regularizer(), theirs.method.regularizer(), atol=1e-4, rtol=1e-4)
