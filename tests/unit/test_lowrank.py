"""Layers, schedule, scores, allocator and regularizer: properties and edge cases (equations: tests/oracle)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adalora_repro.lowrank import BudgetSchedule, LoRALinear, RankAllocator, SVDLinear, orthogonality_penalty
from adalora_repro.lowrank import importance as imp
from adalora_repro.lowrank.layers import drop_left_factors, share_left_factors
from adalora_repro.lowrank.orthogonality import orthogonality_errors
from adalora_repro.lowrank.schedule import mask_due, masks_due
from adalora_repro.methods import svd_lora
from benchmarks.operations import CountOperations

KINDS = pytest.mark.parametrize("kind", [LoRALinear, SVDLinear])
PROTOCOLS = pytest.mark.parametrize("protocol", ["paper", "released"])


def layers_of(n: int = 3, r: int = 4, seed: int = 0, kind: type = SVDLinear) -> dict[str, LoRALinear | SVDLinear]:
    torch.manual_seed(seed)
    return {f"m{k}": kind(nn.Linear(6, 5), r, alpha=8.0) for k in range(n)}


def trained(layers: dict[str, LoRALinear | SVDLinear]) -> list[nn.Parameter]:
    return [p for layer in layers.values() for p in layer.parameters() if p.requires_grad]


def give_gradients(layers: dict[str, LoRALinear | SVDLinear], seed: int = 0, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in trained(layers):
        p.grad = scale * torch.randn(p.shape, generator=generator)


# -- layers --------------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_increment_is_zero_at_the_start_to_the_last_bit(kind, bias, dtype):
    base = nn.Linear(7, 5, bias=bias, dtype=dtype)
    x = torch.randn(2, 3, 7, dtype=dtype)
    assert torch.equal(kind(base, 4, alpha=16.0)(x), base(x))


@KINDS
def test_forward_delta_and_merge_agree(kind):
    torch.manual_seed(0)
    layer = kind(nn.Linear(7, 5), 3, alpha=6.0)
    with torch.no_grad():
        for name in ("lora_B", "lora_E"):
            if hasattr(layer, name):
                getattr(layer, name).normal_()
    assert layer.scaling == 2.0
    delta = layer.delta_weight()
    assert delta.shape == (5, 7)
    for shape in ((7,), (4, 7), (2, 3, 4, 7)):  # any leading shape, as a linear layer
        x = torch.randn(shape)
        torch.testing.assert_close(layer(x), layer.base(x) + x @ delta.T)
        torch.testing.assert_close(layer.merge()(x), layer(x))
    assert type(layer.merge()) is nn.Linear
    assert not layer.base.weight.requires_grad


def test_svd_delta_is_p_lambda_q_and_scaling_survives_pruning():
    layer = SVDLinear(nn.Linear(7, 5), 3, alpha=6.0)
    with torch.no_grad():
        layer.lora_E.copy_(torch.tensor([[2.0], [0.0], [-1.0]]))
    expected = 2.0 * layer.lora_B @ torch.diag(torch.tensor([2.0, 0.0, -1.0])) @ layer.lora_A
    torch.testing.assert_close(layer.delta_weight(), expected)
    assert layer.scaling == 2.0


def test_initialization_is_gaussian_with_the_given_deviation():
    torch.manual_seed(0)
    layer = SVDLinear(nn.Linear(500, 400), 20, alpha=1.0, init_std=0.1)
    for matrix in (layer.lora_A, layer.lora_B):
        assert matrix.std().item() == pytest.approx(0.1, rel=0.05)
        assert matrix.mean().item() == pytest.approx(0.0, abs=0.005)


def test_shared_left_factors_change_no_output_and_no_gradient():
    layers = layers_of() | {
        "wide": SVDLinear(nn.Linear(6, 9), 4, alpha=8.0),
        "loud": SVDLinear(nn.Linear(6, 5), 4, 3.0),
    }
    with torch.no_grad():
        for layer in layers.values():
            layer.lora_E.normal_()
    x = torch.randn(2, 3, 6)

    def run() -> list[torch.Tensor]:
        for layer in layers.values():
            layer.zero_grad()
        outputs = [layer(x) for layer in layers.values()]
        sum(out.square().sum() for out in outputs).backward()
        return outputs + [p.grad for layer in layers.values() for p in layer.parameters() if p.requires_grad]

    apart = run()
    share_left_factors(list(layers.values()))
    assert all(layer._shared is not None for layer in layers.values())
    for one, other in zip(apart, run(), strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(apart, run(), strict=True):  # a second micro-batch may use the same factors
        torch.testing.assert_close(one, other)


def frozen_in_bf16(layers: dict[str, SVDLinear]) -> None:
    """As ``train.precision=bf16`` keeps them: the frozen weights in bf16, what is trained in fp32."""
    for layer in layers.values():
        layer.base.bfloat16()


@KINDS
def test_a_model_in_bf16_trains_its_increment_in_fp32(kind):
    torch.manual_seed(0)
    layer = kind(nn.Linear(7, 5, dtype=torch.bfloat16), 3, alpha=6.0)
    own = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in own} == {torch.float32}
    for parameter in own:
        nn.init.normal_(parameter)
    x = torch.randn(4, 7, dtype=torch.bfloat16)
    y = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x), y)
    merged = layer.merge()
    assert y.dtype == merged.weight.dtype == torch.bfloat16
    torch.testing.assert_close(merged(x), y, rtol=0.05, atol=0.05)
    before = [parameter.detach().clone() for parameter in own]
    y.float().square().sum().backward()
    torch.optim.SGD(own, lr=1e-6).step()  # far below what bf16 resolves
    assert all((parameter != old).any() for parameter, old in zip(own, before, strict=True))


def test_shared_left_factors_in_bf16_are_those_that_autocast_makes():
    layers = layers_of()
    frozen_in_bf16(layers)
    x = torch.randn(4, 6)
    with torch.no_grad():
        for layer in layers.values():
            layer.lora_E.normal_()

    def results() -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = [layer(x) for layer in layers.values()]
        return [*outputs, *torch.autograd.grad(sum(y.float().square().sum() for y in outputs), trained(layers))]

    alone = results()
    share_left_factors(list(layers.values()))
    assert {layer.left_factor().dtype for layer in layers.values()} == {torch.bfloat16}
    for shared, expected in zip(results(), alone, strict=True):
        torch.testing.assert_close(shared, expected, rtol=1e-6, atol=1e-6)  # ∂Λ is summed in another order


def test_shared_left_factors_are_not_used_after_a_change():
    layers = layers_of(1)
    (layer,) = layers.values()
    share_left_factors([layer])
    with torch.no_grad():
        layer.lora_E.fill_(1.0)
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer(x), layer.base(x) + x @ layer.delta_weight().T)
    share_left_factors([layer])
    torch.testing.assert_close(layer(x), layer.base(x) + x @ layer.delta_weight().T)
    drop_left_factors([layer])
    assert layer._shared is None


# -- schedule ------------------------------------------------------------------------------------------------------


@PROTOCOLS
@given(st.integers(0, 30), st.integers(1, 30), st.integers(1, 40), st.integers(1, 50))
def test_masks_are_counted_without_a_look_at_each_step(protocol, t_i, t_f, between, delta_t):
    schedule = BudgetSchedule(12, 6, t_i, t_f, t_i + between + t_f)
    one_by_one = [t for t in range(schedule.final_step + 1) if mask_due(schedule, delta_t, protocol, t)]
    assert masks_due(schedule, delta_t, protocol) == len(one_by_one)


@pytest.mark.parametrize(("d_in", "r"), [(6, 1), (384, 8), (768, 2)])
def test_kaiming_is_how_torch_starts_a_linear_layer(d_in, r):
    base = nn.Linear(d_in, 5)
    torch.manual_seed(3)
    layer = LoRALinear(base, r, alpha=8.0, init="kaiming")
    torch.manual_seed(3)
    assert torch.equal(layer.lora_A, nn.Linear(d_in, r, bias=False).weight)
    assert not layer.lora_B.any()


# -- allocator -----------------------------------------------------------------------------------------------------


def test_released_threshold_prunes_ties_and_keeps_all_when_nothing_is_to_prune():
    scores = torch.tensor([1.0, 1.0, 1.0, 2.0])
    assert imp.keep_above_threshold(scores, 2).tolist() == [False, False, False, True]
    assert imp.keep_above_threshold(scores, 4).all()


def drive(allocator: RankAllocator, steps: range, lr: float = 0.01, scale: float = 1.0) -> None:
    for t in steps:
        give_gradients(allocator.layers, t, scale)
        if allocator.protocol == "paper":
            allocator.observe(t)
        with torch.no_grad():
            for p in trained(allocator.layers):
                p -= lr * p.grad
        if allocator.protocol == "released":
            allocator.observe(t)
        allocator.allocate(t)


@PROTOCOLS
@pytest.mark.parametrize("score", ["importance", "sensitivity", "gradient", "magnitude"])
@pytest.mark.parametrize("delta_t", [1, 3, 7, 1000])
def test_ends_at_the_final_budget(protocol, score, delta_t):
    layers = layers_of()
    allocator = RankAllocator(layers, BudgetSchedule(12, 5, 2, 6, 20), delta_t, score=score, protocol=protocol)
    drive(allocator, range(20))
    assert allocator.budget == 5
    assert sum(allocator.rank_pattern().values()) == 5
    assert sum(int((layer.lora_E != 0).sum()) for layer in layers.values()) == 5
    assert list(allocator.rank_pattern()) == list(layers)
    first = 14 if protocol == "paper" or 14 % delta_t == 0 else 15  # the released code masks at T - t_f by chance
    assert [t for t in range(20) if allocator.at_final_budget(t)] == list(range(first, 20))


@KINDS
def test_masked_shows_the_model_at_its_budget_and_puts_everything_back(kind):
    layers = layers_of(kind=kind)
    allocator = RankAllocator(layers, BudgetSchedule(12, 5, 0, 4, 40), 6)
    drive(allocator, range(15))  # three steps after the mask at t = 12
    before = [p.detach().clone() for p in trained(layers)]
    pruned = "lora_E" if kind is SVDLinear else "lora_A"
    with allocator.masked():
        assert sum(int(getattr(layer, pruned).any(1).sum()) for layer in layers.values()) == allocator.budget < 12
    with pytest.raises(KeyError), allocator.masked():
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(before, trained(layers), strict=True))


@PROTOCOLS
@pytest.mark.parametrize(("score", "cut"), [*(("importance", cut) for cut in (1, 9, 14, 17)), ("random", 9)])
def test_state_resumes_exactly(protocol, score, cut):
    def fresh() -> RankAllocator:
        return RankAllocator(layers_of(), BudgetSchedule(12, 5, 2, 6, 20), 3, score=score, protocol=protocol)

    whole = fresh()
    drive(whole, range(20))
    first, second = fresh(), fresh()
    drive(first, range(cut))
    for name, layer in first.layers.items():
        second.layers[name].load_state_dict(layer.state_dict())
    second.load_state_dict(first.state_dict())
    drive(second, range(cut, 20))
    assert second.rank_pattern() == whole.rank_pattern()
    for name, layer in whole.layers.items():
        assert torch.equal(layer.lora_E, second.layers[name].lora_E)


def test_state_of_other_layers_is_refused():
    schedule = BudgetSchedule(12, 5, 2, 6, 20)
    allocator = RankAllocator(layers_of(), schedule, 3)
    renamed = {f"x{name}": layer for name, layer in layers_of().items()}
    with pytest.raises(ValueError, match="other layers"):
        allocator.load_state_dict(RankAllocator(renamed, schedule, 3).state_dict())
    for phases, protocol in (((2, 5), "paper"), ((2, 6), "released")):
        other = RankAllocator(layers_of(), BudgetSchedule(12, 5, *phases, 20), 3, protocol=protocol)
        with pytest.raises(ValueError, match="another schedule or protocol"):
            allocator.load_state_dict(other.state_dict())
    wider = {f"m{k}": SVDLinear(nn.Linear(8, 5), 4, alpha=8.0) for k in range(3)}
    with pytest.raises(ValueError, match="shapes"):
        allocator.load_state_dict(RankAllocator(wider, schedule, 3).state_dict())


def test_a_layer_that_a_step_left_out_has_a_gradient_of_zero():
    layers = layers_of()
    allocator = RankAllocator(layers, BudgetSchedule(12, 5, 2, 6, 20), 1, score="gradient")
    give_gradients(layers)
    layers["m1"].zero_grad()
    allocator.observe(0)
    for average in allocator.state_dict()["average"]:
        assert [bool(part.any()) for part in average] == [True, False, True]
    for layer in layers.values():
        layer.zero_grad()
    with pytest.raises(RuntimeError, match="no layer has a gradient"):
        allocator.observe(1)


def test_an_uncertainty_in_bf16_changes_scores_by_no_more_than_its_rounding():
    """Ū is rounded once a step, to 2^-9 of itself at most, and forgets with β2: in all 2^-9 / (1 - β2) = 1.3%."""
    scores = []
    for frozen in (lambda layers: None, frozen_in_bf16):
        layers = layers_of()
        frozen(layers)
        allocator = RankAllocator(layers, BudgetSchedule(12, 6, 0, 1, 40), delta_t=1)
        for t in range(30):
            give_gradients(layers, seed=t)
            allocator.observe(t)
        scores.append(allocator._scores)
    exact, rounded = scores
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=2**-9 / 0.15, atol=0)


def test_allocating_without_observing_is_an_error():
    allocator = RankAllocator(layers_of(), BudgetSchedule(12, 5, 0, 6, 20), 1)
    with pytest.raises(RuntimeError, match=r"observe\(0\)"):
        allocator.allocate(0)


@PROTOCOLS
def test_a_uniform_allocation_leaves_the_same_rank_everywhere(protocol):
    schedule, patterns = BudgetSchedule(12, 6, 2, 6, 20), {}
    for allocation in ("uniform", "global"):
        layers = layers_of()
        with torch.no_grad():
            layers["m2"].lora_B.mul_(50)
        allocator = RankAllocator(layers, schedule, 1, protocol=protocol, allocation=allocation)
        for t in range(20):
            drive(allocator, range(t, t + 1))
            ranks = allocator.rank_pattern().values()
            assert allocation == "global" or max(ranks) - min(ranks) <= 1
        patterns[allocation] = allocator.rank_pattern()
    assert set(patterns["uniform"].values()) == {2}
    assert patterns["global"]["m2"] == 4


def test_levelled_scores_of_a_model_in_bf16_do_not_tie():
    assert len(imp.level(torch.rand(600).bfloat16(), [6] * 100).unique()) == 600


@PROTOCOLS
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
    layers = {f"m{k}": SVDLinear(nn.Linear(6, 5 + k), 4, alpha=8.0).to("meta") for k in range(3)}
    allocator = RankAllocator(layers, BudgetSchedule(12, 6, 2, 6, 20), 1, protocol=protocol, **options)
    for p in trained(layers):
        p.grad = torch.empty_like(p)
    with CountOperations() as counted:
        for t in range(20):
            allocator.observe(t)
            allocator.allocate(t)
    assert counted.waits == 0, counted.counts


@PROTOCOLS
def test_random_scores_follow_from_the_seed_alone(protocol):
    def ended(seed: int, scale: float = 1.0) -> list[list[bool]]:
        schedule = BudgetSchedule(12, 6, 2, 6, 20)
        allocator = RankAllocator(layers_of(), schedule, 3, score="random", protocol=protocol, seed=seed)
        drive(allocator, range(20), scale=scale)
        assert allocator.budget == 6
        return [(layer.lora_E != 0).flatten().tolist() for layer in allocator.layers.values()]

    assert ended(0) == ended(0, scale=7.0)
    assert ended(0) != ended(1)


# -- regularizer ---------------------------------------------------------------------------------------------------


def test_penalty_is_zero_for_orthonormal_factors_and_has_a_finite_gradient_there():
    layer = SVDLinear(nn.Linear(6, 5), 3, alpha=1.0)
    with torch.no_grad():
        layer.lora_A.copy_(torch.eye(3, 6))
        layer.lora_B.copy_(torch.eye(5, 3))
    for form in ("sum_squared", "mean_norm"):
        value = orthogonality_penalty([layer], form)
        value.backward()
        assert value.item() == 0.0
        assert torch.isfinite(layer.lora_A.grad).all()


def test_penalty_is_independent_of_how_layers_are_stacked():
    mixed = [*layers_of().values(), SVDLinear(nn.Linear(9, 4), 2, alpha=1.0), *layers_of(seed=1).values()]
    norms = [orthogonality_penalty([layer], "mean_norm") for layer in mixed]
    torch.testing.assert_close(orthogonality_penalty(mixed, "mean_norm"), sum(norms) / len(mixed))
    left, right = orthogonality_errors(mixed)
    assert sum(left) + sum(right) == pytest.approx(orthogonality_penalty(mixed).item(), rel=1e-5)


def test_the_released_penalty_of_lora_is_finite_at_the_start_and_undefined_at_rank_1():
    layers = layers_of(kind=LoRALinear)
    value = orthogonality_penalty(layers, "mean_cosine")
    value.backward()
    assert math.isfinite(value.item())
    for layer in layers.values():  # B = 0 is orthogonal to itself, with no direction to turn to
        assert torch.isfinite(layer.lora_A.grad).all()
        assert not layer.lora_B.grad.any()
    assert orthogonality_penalty(layers_of(r=1, kind=LoRALinear)).isfinite()  # eq. (4) has no such gap


@pytest.mark.parametrize(("protocol", "form"), [("paper", "sum_squared"), ("released", "mean_norm")])
def test_svd_lora_regularizes_as_adalora_does_and_never_prunes(protocol, form):
    method = svd_lora.Method(svd_lora.Options("svd_lora", "svd_lora", r=4, gamma=0.5), protocol)
    method.layers = layers_of()
    method.on_train_start(20)
    assert torch.equal(method.regularizer(), 0.5 * orthogonality_penalty(method.layers, form))
    assert method.summary() == {"rank_pattern": {"m0": 4, "m1": 4, "m2": 4}}
    assert method.at_final_budget(0)
    with pytest.raises(ValueError, match="keeps no state"):
        method.load_state_dict({"mask": 1})
    assert set(method.curve(0)) == {"orthogonality_P", "orthogonality_Q"}


# -- what is refused -----------------------------------------------------------------------------------------------


def allocator_of(layers: dict[str, LoRALinear | SVDLinear] | None = None, b_0: int = 12, **options) -> RankAllocator:
    schedule = BudgetSchedule(b_0, 5, 2, 6, 20)
    return RankAllocator(layers_of() if layers is None else layers, schedule, **{"delta_t": 1} | options)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        *((lambda size=size: LoRALinear(nn.Linear(3, 3), *size), "rank|alpha") for size in ((0, 1.0), (2, 0.0))),
        *((lambda size=size: SVDLinear(nn.Linear(3, 3), *size), "rank|alpha") for size in ((-1, 1.0), (2, -1.0))),
        (lambda: LoRALinear(nn.Linear(3, 3), 2, 8.0, init="zeros"), "unknown init 'zeros'; valid: normal, kaiming"),
        (lambda: BudgetSchedule(8, 4, 4, 6, 10), r"T=10 .*t_i=4 .*t_f=6.*10"),
        *(
            (lambda numbers=numbers: BudgetSchedule(*numbers), "b_T")
            for numbers in ((4, 8, 1, 1, 10), (8, -1, 1, 1, 10), (8, 4, -1, 1, 10), (8, 4, 1, -1, 10))
        ),
        (lambda: allocator_of(delta_t=0), "delta_t"),
        (lambda: allocator_of(beta1=1.0), "beta1"),
        (lambda: allocator_of(score="size"), "importance, sensitivity, gradient, magnitude"),
        (lambda: allocator_of(protocol="old"), "paper, released"),
        (lambda: allocator_of(allocation="even"), "unknown allocation 'even'; valid: global, uniform"),
        (lambda: allocator_of({}), "at least one layer"),
        (lambda: allocator_of(b_0=13), "b_0=13 exceeds the 12"),
        (lambda: allocator_of(layers_of(kind=LoRALinear), score="magnitude"), "doublets have no λ"),
        (lambda: orthogonality_penalty([]), "at least one"),
        (lambda: orthogonality_penalty(layers_of().values(), "l1"), "sum_squared, mean_norm"),
        (lambda: orthogonality_penalty(layers_of(r=1, kind=LoRALinear), "mean_cosine"), "rank r of at least 2"),
    ],
)
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
