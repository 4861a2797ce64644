"""Layers, schedule, scores, allocator and regularizer: properties and edge cases (equations: tests/oracle)."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adalora_repro.lowrank import BudgetSchedule, LoRALinear, RankAllocator, SVDLinear, orthogonality_penalty
from adalora_repro.lowrank import importance as imp
from adalora_repro.lowrank.layers import drop_left_factors, share_left_factors
from adalora_repro.lowrank.orthogonality import orthogonality_errors
from adalora_repro.lowrank.schedule import mask_due, masks_due


def layers_of(n: int = 3, r: int = 4, seed: int = 0) -> dict[str, SVDLinear]:
    torch.manual_seed(seed)
    return {f"m{k}": SVDLinear(nn.Linear(6, 5), r, alpha=8.0) for k in range(n)}


def give_gradients(layers: dict[str, SVDLinear], seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for layer in layers.values():
        for p in (layer.lora_A, layer.lora_E, layer.lora_B):
            p.grad = torch.randn(p.shape, generator=generator)


# -- layers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LoRALinear, SVDLinear])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_increment_is_zero_at_the_start_to_the_last_bit(kind, bias, dtype):
    base = nn.Linear(7, 5, bias=bias, dtype=dtype)
    x = torch.randn(2, 3, 7, dtype=dtype)
    assert torch.equal(kind(base, 4, alpha=16.0)(x), base(x))


@pytest.mark.parametrize("kind", [LoRALinear, SVDLinear])
def test_forward_delta_and_merge_agree(kind):
    torch.manual_seed(0)
    layer = kind(nn.Linear(7, 5), 3, alpha=6.0)
    with torch.no_grad():
        for name in ("lora_B", "lora_E"):
            if hasattr(layer, name):
                getattr(layer, name).normal_()
    assert layer.scaling == 2.0
    x = torch.randn(4, 7)
    delta = layer.delta_weight()
    assert delta.shape == (5, 7)
    torch.testing.assert_close(layer(x), layer.base(x) + x @ delta.T)
    torch.testing.assert_close(layer.merge()(x), layer(x))
    assert type(layer.merge()) is nn.Linear
    assert not layer.base.weight.requires_grad


@pytest.mark.parametrize("kind", [LoRALinear, SVDLinear])
def test_any_leading_shape_is_accepted_as_by_a_linear_layer(kind):
    layer = kind(nn.Linear(7, 5), 3, alpha=6.0)
    x = torch.randn(2, 3, 4, 7)
    assert layer(x).shape == (2, 3, 4, 5)
    assert torch.equal(layer(x[0, 0, 0]), layer.base(x[0, 0, 0]))


def test_svd_delta_is_p_lambda_q_and_scaling_survives_pruning():
    layer = SVDLinear(nn.Linear(7, 5), 3, alpha=6.0)
    with torch.no_grad():
        layer.lora_E.copy_(torch.tensor([[2.0], [0.0], [-1.0]]))
    expected = 2.0 * layer.lora_B @ torch.diag(torch.tensor([2.0, 0.0, -1.0])) @ layer.lora_A
    torch.testing.assert_close(layer.delta_weight(), expected)
    assert layer.scaling == 2.0


@pytest.mark.parametrize("kind", [LoRALinear, SVDLinear])
@pytest.mark.parametrize(("r", "alpha"), [(0, 1.0), (-1, 1.0), (2, 0.0), (2, -1.0)])
def test_bad_sizes_are_refused(kind, r, alpha):
    with pytest.raises(ValueError, match=r"rank|alpha"):
        kind(nn.Linear(3, 3), r, alpha=alpha)


def test_initialization_is_gaussian_with_the_given_deviation():
    torch.manual_seed(0)
    layer = SVDLinear(nn.Linear(500, 400), 20, alpha=1.0, init_std=0.1)
    for matrix in (layer.lora_A, layer.lora_B):
        assert matrix.std().item() == pytest.approx(0.1, rel=0.05)
        assert matrix.mean().item() == pytest.approx(0.0, abs=0.005)


def test_shared_left_factors_change_no_output_and_no_gradient():
    layers = layers_of() | {"wide": SVDLinear(nn.Linear(6, 9), 4, alpha=3.0)}
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
        trained = [p for layer in layers.values() for p in (layer.lora_A, layer.lora_E, layer.lora_B)]
        return [*outputs, *torch.autograd.grad(sum(y.float().square().sum() for y in outputs), trained)]

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


@given(
    b_T=st.integers(0, 50),
    extra=st.integers(0, 50),
    t_i=st.integers(0, 30),
    t_f=st.integers(0, 30),
    room=st.integers(1, 60),
)
def test_schedule_falls_from_b_0_to_b_T(b_T, extra, t_i, t_f, room):
    total = t_i + t_f + room
    schedule = BudgetSchedule(b_T + extra, b_T, t_i, t_f, total)
    values = [schedule(t) for t in range(total)]
    assert values[: t_i + 1] == [b_T + extra] * (t_i + 1)
    assert all(value == b_T for value in values[total - t_f :])
    assert all(a >= b for a, b in pairwise(values))
    assert all(isinstance(value, int) and value >= b_T for value in values)


def test_schedule_too_short_names_the_three_numbers():
    with pytest.raises(ValueError, match=r"T=10 .*t_i=4 .*t_f=6.*10"):
        BudgetSchedule(8, 4, 4, 6, 10)


@pytest.mark.parametrize("arguments", [(4, 8, 1, 1, 10), (8, -1, 1, 1, 10), (8, 4, -1, 1, 10), (8, 4, 1, -1, 10)])
def test_schedule_refuses_impossible_budgets(arguments):
    with pytest.raises(ValueError, match="b_T"):
        BudgetSchedule(*arguments)


def test_masks_are_due_as_each_protocol_says():
    schedule = BudgetSchedule(12, 6, 3, 5, 20)
    paper = [t for t in range(20) if mask_due(schedule, 4, "paper", t)]
    released = [t for t in range(20) if mask_due(schedule, 4, "released", t)]
    assert paper == [4, 8, 12, 15, 16, 17, 18, 19]
    assert released == [4, 8, 12, 16, 17, 18, 19]
    start = BudgetSchedule(12, 6, 4, 5, 20)
    assert mask_due(start, 4, "paper", 4)
    assert not mask_due(start, 4, "released", 4)


@pytest.mark.parametrize("protocol", ["paper", "released"])
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
    with pytest.raises(ValueError, match="unknown init 'zeros'; valid: normal, kaiming"):
        LoRALinear(base, r, alpha=8.0, init="zeros")


# -- scores and survivors ------------------------------------------------------------------------------------------


@given(scores=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=30), data=st.data())
def test_exactly_the_budget_survives_even_among_equal_scores(scores, data):
    budget = data.draw(st.integers(0, len(scores)))
    mask = imp.keep_top(torch.tensor(scores), budget).tolist()
    assert sum(mask) == budget
    kept = [s for s, m in zip(scores, mask, strict=True) if m]
    pruned = [s for s, m in zip(scores, mask, strict=True) if not m]
    assert not kept or not pruned or min(kept) >= max(pruned)


def test_ties_go_to_the_first():
    assert imp.keep_top(torch.zeros(5), 2).tolist() == [True, True, False, False, False]


def test_released_threshold_prunes_ties_and_keeps_all_when_nothing_is_to_prune():
    scores = torch.tensor([1.0, 1.0, 1.0, 2.0])
    assert imp.keep_above_threshold(scores, 2).tolist() == [False, False, False, True]
    assert imp.keep_above_threshold(scores, 4).all()


def test_triplet_score_does_not_grow_with_the_matrix():
    def ones(d: int) -> torch.Tensor:
        return imp.triplet_score(torch.ones(2, 1), torch.ones(d, 2), torch.ones(2, d))

    torch.testing.assert_close(ones(3), ones(300))


# -- allocator -----------------------------------------------------------------------------------------------------


def drive(allocator: RankAllocator, steps: range, lr: float = 0.01) -> None:
    for t in steps:
        give_gradients(allocator.layers, seed=t)
        if allocator.protocol == "paper":
            allocator.observe(t)
        with torch.no_grad():
            for layer in allocator.layers.values():
                for p in (layer.lora_A, layer.lora_E, layer.lora_B):
                    p -= lr * p.grad
        if allocator.protocol == "released":
            allocator.observe(t)
        allocator.allocate(t)


@pytest.mark.parametrize("protocol", ["paper", "released"])
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
    assert allocator.at_final_budget(19)
    assert not allocator.at_final_budget(2)


def test_paper_protocol_fixes_the_set_at_the_start_of_the_final_phase():
    allocator = RankAllocator(layers_of(), BudgetSchedule(12, 5, 2, 6, 20), 1)
    drive(allocator, range(15))
    fixed = allocator.rank_pattern(), [layer.lora_E != 0 for layer in allocator.layers.values()]
    drive(allocator, range(15, 20), lr=1.0)  # large steps would reorder any score
    after = allocator.rank_pattern(), [layer.lora_E != 0 for layer in allocator.layers.values()]
    assert fixed[0] == after[0]
    assert all(torch.equal(a, b) for a, b in zip(fixed[1], after[1], strict=True))


def test_pruned_values_are_trained_between_masks_and_may_come_back():
    allocator = RankAllocator(layers_of(), BudgetSchedule(12, 5, 0, 4, 40), 6)
    came_back = False
    before = None
    for t in range(36):
        drive(allocator, range(t, t + 1), lr=0.1)
        values = torch.cat([layer.lora_E.detach().flatten() for layer in allocator.layers.values()])
        if t % 6 == 0:
            mask = values != 0
            came_back |= before is not None and bool((mask & ~before).any())
            before = mask
        else:
            assert (values != 0).all()
    assert came_back


def test_matrices_may_lose_all_their_triplets_and_still_work():
    layers = layers_of()
    allocator = RankAllocator(layers, BudgetSchedule(12, 0, 2, 6, 20), 1)
    drive(allocator, range(20))
    assert allocator.rank_pattern() == {"m0": 0, "m1": 0, "m2": 0}
    x = torch.randn(2, 6)
    for layer in layers.values():
        assert torch.equal(layer(x), layer.base(x))
        assert torch.equal(layer.merge().weight, layer.base.weight)


def test_nothing_is_pruned_when_both_budgets_are_equal():
    for protocol in ("paper", "released"):
        allocator = RankAllocator(layers_of(), BudgetSchedule(12, 12, 2, 6, 20), 1, protocol=protocol)
        drive(allocator, range(20))
        assert allocator.budget == 12


def test_masked_shows_the_model_at_its_budget_and_puts_everything_back():
    allocator = RankAllocator(layers_of(), BudgetSchedule(12, 5, 0, 4, 40), 6)
    drive(allocator, range(15))  # three steps after the mask at t = 12
    trained = [layer.lora_E.detach().clone() for layer in allocator.layers.values()]
    with allocator.masked():
        assert sum(int((layer.lora_E != 0).sum()) for layer in allocator.layers.values()) == allocator.budget
    assert all(torch.equal(a, layer.lora_E) for a, layer in zip(trained, allocator.layers.values(), strict=True))
    with pytest.raises(KeyError), allocator.masked():
        raise KeyError
    assert all(torch.equal(a, layer.lora_E) for a, layer in zip(trained, allocator.layers.values(), strict=True))


@pytest.mark.parametrize("protocol", ["paper", "released"])
@pytest.mark.parametrize("cut", [1, 9, 14, 17])
def test_state_resumes_exactly(protocol, cut):
    def fresh() -> RankAllocator:
        return RankAllocator(layers_of(), BudgetSchedule(12, 5, 2, 6, 20), 3, protocol=protocol)

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


def released_of(schedule: BudgetSchedule) -> RankAllocator:
    return RankAllocator(layers_of(), schedule, 3, protocol="released")


def test_state_of_other_layers_is_refused():
    schedule = BudgetSchedule(12, 5, 2, 6, 20)
    allocator = RankAllocator(layers_of(), schedule, 3)
    renamed = {f"x{name}": layer for name, layer in layers_of().items()}
    with pytest.raises(ValueError, match="other layers"):
        allocator.load_state_dict(RankAllocator(renamed, schedule, 3).state_dict())
    for other in (RankAllocator(layers_of(), BudgetSchedule(12, 5, 2, 5, 20), 3), released_of(schedule)):
        with pytest.raises(ValueError, match="another schedule or protocol"):
            allocator.load_state_dict(other.state_dict())
    wider = {f"m{k}": SVDLinear(nn.Linear(8, 5), 4, alpha=8.0) for k in range(3)}
    with pytest.raises(ValueError, match="shapes"):
        allocator.load_state_dict(RankAllocator(wider, schedule, 3).state_dict())


def test_a_layer_without_gradient_is_named():
    layers = layers_of()
    allocator = RankAllocator(layers, BudgetSchedule(12, 5, 2, 6, 20), 1)
    give_gradients(layers)
    layers["m1"].lora_B.grad = None
    with pytest.raises(RuntimeError, match="m1"):
        allocator.observe(0)


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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delta_t": 0}, "delta_t"),
        ({"delta_t": 1, "beta1": 1.0}, "beta1"),
        ({"delta_t": 1, "score": "size"}, "importance, sensitivity, gradient, magnitude"),
        ({"delta_t": 1, "protocol": "old"}, "paper, released"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        RankAllocator(layers_of(), BudgetSchedule(12, 5, 2, 6, 20), **options)


def test_no_layers_and_too_much_budget_are_refused():
    with pytest.raises(ValueError, match="at least one layer"):
        RankAllocator({}, BudgetSchedule(12, 5, 2, 6, 20), 1)
    with pytest.raises(ValueError, match="b_0=13 exceeds the 12"):
        RankAllocator(layers_of(), BudgetSchedule(13, 5, 2, 6, 20), 1)


def test_magnitude_keeps_the_largest_singular_values():
    layers = layers_of(2, r=3)
    with torch.no_grad():
        layers["m0"].lora_E.copy_(torch.tensor([[3.0], [-9.0], [1.0]]))
        layers["m1"].lora_E.copy_(torch.tensor([[2.0], [0.5], [-4.0]]))
    allocator = RankAllocator(layers, BudgetSchedule(6, 3, 0, 2, 3), 1, score="magnitude")
    drive(allocator, range(3), lr=0.0)
    assert [layer.lora_E.flatten().tolist() for layer in layers.values()] == [[3.0, -9.0, 0.0], [0.0, 0.0, -4.0]]


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


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_penalty_gradient_is_the_analytic_one(seed):
    torch.manual_seed(seed)
    layer = SVDLinear(nn.Linear(6, 5), 3, alpha=1.0, init_std=0.5).double()
    orthogonality_penalty([layer]).backward()
    P, Q = layer.lora_B.detach(), layer.lora_A.detach()
    eye = torch.eye(3, dtype=P.dtype)
    torch.testing.assert_close(layer.lora_B.grad, 4 * P @ (P.T @ P - eye))
    torch.testing.assert_close(layer.lora_A.grad, 4 * (Q @ Q.T - eye) @ Q)
    assert layer.lora_E.grad is None


def test_penalty_is_independent_of_how_layers_are_stacked():
    mixed = [*layers_of().values(), SVDLinear(nn.Linear(9, 4), 2, alpha=1.0), *layers_of(seed=1).values()]
    apart = sum(orthogonality_penalty([layer]) for layer in mixed)
    torch.testing.assert_close(orthogonality_penalty(mixed), apart)
    named = {str(i): layer for i, layer in enumerate(mixed)}
    assert torch.equal(orthogonality_penalty(named), orthogonality_penalty(mixed))
    norms = [orthogonality_penalty([layer], "mean_norm") for layer in mixed]
    torch.testing.assert_close(orthogonality_penalty(mixed, "mean_norm"), sum(norms) / len(mixed))
    left, right = orthogonality_errors(mixed)
    assert sum(left) + sum(right) == pytest.approx(apart.item(), rel=1e-5)


def test_penalty_refuses_nothing_and_unknown_forms():
    with pytest.raises(ValueError, match="at least one"):
        orthogonality_penalty([])
    with pytest.raises(ValueError, match="sum_squared, mean_norm"):
        orthogonality_penalty(layers_of().values(), "l1")
