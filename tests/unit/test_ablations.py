"""Ablations and controls in torch: properties and edge cases (equations: tests/oracle)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from adalora_repro.errors import InputError
from adalora_repro.lowrank import BudgetSchedule, LoRALinear, RankAllocator, SVDLinear, orthogonality_penalty
from adalora_repro.methods import lora_regu, svd_lora
from adalora_repro.models.sites import find_sites
from benchmarks.operations import CountOperations

SCHEDULE = BudgetSchedule(12, 6, 2, 6, 20)


def layers_of(kind: type[LoRALinear] | type[SVDLinear], r: int = 4) -> dict[str, LoRALinear | SVDLinear]:
    torch.manual_seed(0)
    return {f"m{k}": kind(nn.Linear(6, 5 + k), r, alpha=8.0) for k in range(3)}


def drive(allocator: RankAllocator, steps: range, gradient: float = 1.0) -> None:
    for t in steps:
        generator = torch.Generator().manual_seed(t)
        parameters = [p for layer in allocator.layers.values() for p in layer.parameters() if p.requires_grad]
        for p in parameters:
            p.grad = gradient * torch.randn(p.shape, generator=generator)
        if allocator.protocol == "paper":
            allocator.observe(t)
        with torch.no_grad():
            for p in parameters:
                p -= 0.01 * p.grad
        if allocator.protocol == "released":
            allocator.observe(t)
        allocator.allocate(t)


@pytest.mark.parametrize("protocol", ["paper", "released"])
def test_a_uniform_allocation_leaves_the_same_rank_everywhere(protocol):
    def uneven() -> dict[str, SVDLinear]:
        layers = layers_of(SVDLinear)
        with torch.no_grad():
            layers["m2"].lora_B.mul_(50)
        return layers

    allocator = RankAllocator(uneven(), SCHEDULE, 1, protocol=protocol, allocation="uniform")
    free = RankAllocator(uneven(), SCHEDULE, 1, protocol=protocol)
    for t in range(20):
        drive(allocator, range(t, t + 1))
        ranks = allocator.rank_pattern().values()
        assert max(ranks) - min(ranks) <= 1
    drive(free, range(20))
    assert set(allocator.rank_pattern().values()) == {2}
    assert free.rank_pattern()["m2"] == 4


@pytest.mark.parametrize("protocol", ["paper", "released"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"allocation": "uniform"},
        {"score": "random"},
        {"score": "gradient"},
        {"max_params": 50},
        {"max_params": 50, "allocation": "uniform"},
    ],
    ids=str,
)
def test_no_step_of_an_allocator_copies_from_the_host(protocol, options):
    layers = {name: layer.to("meta") for name, layer in layers_of(SVDLinear).items()}
    allocator = RankAllocator(layers, SCHEDULE, 1, protocol=protocol, **options)
    for layer in layers.values():
        for p in layer.parameters():
            p.grad = torch.empty_like(p) if p.requires_grad else None
    with CountOperations() as counted:
        for t in range(20):
            allocator.observe(t)
            allocator.allocate(t)
    assert counted.waits == 0, counted.counts


@pytest.mark.parametrize("protocol", ["paper", "released"])
def test_random_scores_follow_from_the_seed_alone(protocol):
    def ended(seed: int, gradient: float = 1.0, cut: int | None = None) -> list[list[bool]]:
        def fresh() -> RankAllocator:
            return RankAllocator(layers_of(SVDLinear), SCHEDULE, 3, score="random", protocol=protocol, seed=seed)

        allocator = fresh()
        drive(allocator, range(20 if cut is None else cut), gradient)
        if cut is not None:  # goes on in another process
            resumed = fresh()
            for name, layer in allocator.layers.items():
                resumed.layers[name].load_state_dict(layer.state_dict())
            resumed.load_state_dict(allocator.state_dict())
            drive(resumed, range(cut, 20), gradient)
            allocator = resumed
        assert allocator.budget == 6
        return [(layer.lora_E != 0).flatten().tolist() for layer in allocator.layers.values()]

    assert ended(0) == ended(0, gradient=7.0) == ended(0, cut=9)
    assert ended(0) != ended(1)


def test_a_pruned_doublet_is_zero_whole_and_gets_no_gradient():
    layers = layers_of(LoRALinear)
    allocator = RankAllocator(layers, SCHEDULE, 1)
    drive(allocator, range(20))
    assert sum(allocator.rank_pattern().values()) == allocator.budget == 6
    for name, layer in layers.items():
        rows, columns = layer.lora_A.any(1), layer.lora_B.any(0)
        assert torch.equal(rows, columns)
        assert int(rows.sum()) == allocator.rank_pattern()[name]
        layer.zero_grad()
        layer(torch.randn(7, 6)).square().sum().backward()
        assert not layer.lora_A.grad[~rows].any()
        assert not layer.lora_B.grad[:, ~rows].any()


def test_masked_puts_whole_doublets_back():
    layers = layers_of(LoRALinear)
    allocator = RankAllocator(layers, BudgetSchedule(12, 5, 0, 4, 40), 6)
    drive(allocator, range(15))  # three steps after the mask at t = 12
    trained = [p.detach().clone() for layer in layers.values() for p in (layer.lora_A, layer.lora_B)]
    with allocator.masked():
        assert sum(int(layer.lora_A.any(1).sum()) for layer in layers.values()) == allocator.budget < 12
    after = [p for layer in layers.values() for p in (layer.lora_A, layer.lora_B)]
    assert all(torch.equal(a, b) for a, b in zip(trained, after, strict=True))


def test_doublets_have_no_magnitude_and_unknown_allocations_are_refused():
    with pytest.raises(ValueError, match="doublets have no λ"):
        RankAllocator(layers_of(LoRALinear), SCHEDULE, 1, score="magnitude")
    with pytest.raises(ValueError, match="unknown allocation 'even'; valid: global, uniform"):
        RankAllocator(layers_of(SVDLinear), SCHEDULE, 1, allocation="even")


def test_the_released_penalty_of_lora_is_finite_at_the_start_and_undefined_at_rank_1():
    layers = layers_of(LoRALinear)
    value = orthogonality_penalty(layers, "mean_cosine")
    value.backward()
    assert math.isfinite(value.item())
    for layer in layers.values():  # B = 0 is orthogonal to itself, with no direction to turn to
        assert torch.isfinite(layer.lora_A.grad).all()
        assert not layer.lora_B.grad.any()
    with pytest.raises(ValueError, match="rank r of at least 2"):
        orthogonality_penalty(layers_of(LoRALinear, r=1), "mean_cosine")
    assert orthogonality_penalty(layers_of(LoRALinear, r=1)).isfinite()  # eq. (4) has no such gap


def test_lora_regu_refuses_rank_1_with_the_released_penalty_alone():
    options = lora_regu.Options("lora_regu", "lora_regu", r=1)
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    model = BertForSequenceClassification(config)
    with pytest.raises(InputError, match=r"\(method\.r=1\) has none"):
        lora_regu.Method(options, "released").inject(model, find_sites(model))
    assert lora_regu.Method(options, "paper").form == "sum_squared"
    assert (
        lora_regu.Method(lora_regu.Options("lora_regu", "lora_regu", r=1, gamma=0.0), "released").regularizer() is None
    )


def test_svd_lora_regularizes_as_adalora_does_and_never_prunes():
    for protocol, form in (("paper", "sum_squared"), ("released", "mean_norm")):
        method = svd_lora.Method(svd_lora.Options("svd_lora", "svd_lora", r=4, gamma=0.5), protocol)
        method.layers = layers_of(SVDLinear)
        method.on_train_start(20)
        assert torch.equal(method.regularizer(), 0.5 * orthogonality_penalty(method.layers, form))
        assert method.summary() == {"rank_pattern": {"m0": 4, "m1": 4, "m2": 4}}
        assert method.at_final_budget(0)
        assert method.state_dict() == {}
        with pytest.raises(ValueError, match="keeps no state"):
            method.load_state_dict({"mask": 1})
        assert set(method.curve(0)) == {"orthogonality_P", "orthogonality_Q"}
