"""The vectorized allocator and penalties against slow loops, over whole schedules, with layers of several shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adalora_repro.lowrank import BudgetSchedule, LoRALinear, RankAllocator, SVDLinear, orthogonality_penalty
from adalora_repro.lowrank import importance as imp
from tests.oracle import slow_adalora

SHAPES = [(5, 4, 3), (6, 4, 3), (5, 4, 3), (3, 7, 2)]  # (d_out, d_in, r); two of equal shape, not adjacent
TOTAL = sum(r for *_, r in SHAPES)
#: what a mask sets to zero
PRUNED = {SVDLinear: ("lora_E",), LoRALinear: ("lora_A", "lora_B")}


def make_layers(seed: int, kind: type = SVDLinear) -> dict[str, SVDLinear | LoRALinear]:
    torch.manual_seed(seed)
    return {f"m{k}": kind(nn.Linear(d_in, d_out), r, alpha=8.0).double() for k, (d_out, d_in, r) in enumerate(SHAPES)}


def trained(layer: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in layer.named_parameters() if p.requires_grad}


def as_lists(layers: dict[str, nn.Module], grad: bool = False) -> list:
    def values(layer: nn.Module, name: str) -> list:
        p = getattr(layer, name, None)
        return [] if p is None else (p.grad if grad else p).detach().tolist()

    return [
        (values(layer, "lora_B"), [row[0] for row in values(layer, "lora_E")], values(layer, "lora_A"))
        for layer in layers.values()
    ]


@pytest.mark.parametrize(
    ("score", "kind", "slow_kind"),
    [
        ("importance", SVDLinear, slow_adalora.SlowAllocator),
        ("sensitivity", SVDLinear, slow_adalora.SlowSensitivity),
        ("gradient", SVDLinear, slow_adalora.SlowGradient),
        ("magnitude", SVDLinear, slow_adalora.SlowMagnitude),
        ("importance", LoRALinear, slow_adalora.SlowAllocator),
    ],
)
@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    t_i=st.integers(0, 4),
    t_f=st.integers(1, 4),
    delta_t=st.integers(1, 5),
    b_T=st.integers(0, TOTAL),
    # 0 makes every uncertainty 0, hence every score equal: ties go to the first triplets
    betas=st.tuples(*[st.sampled_from([0.0, 0.3, 0.85, 0.95])] * 2),
)
def test_paper_protocol_equals_algorithm_1(score, kind, slow_kind, seed, t_i, t_f, delta_t, b_T, betas):
    layers, slow = make_layers(seed, kind), slow_kind(SHAPES, *betas)
    parameters = [p for layer in layers.values() for p in trained(layer).values()]
    optimizer = torch.optim.AdamW(parameters, lr=0.05)
    steps = 12
    allocator = RankAllocator(layers, BudgetSchedule(TOTAL, b_T, t_i, t_f, steps), delta_t, *betas, score=score)
    fixed = None
    for t in range(steps):
        for p in parameters:
            p.grad = torch.randn_like(p)
        if fixed is None:
            slow.update(as_lists(layers), as_lists(layers, grad=True))
        allocator.observe(t)
        optimizer.step()
        unmasked = [{name: p.detach().clone() for name, p in trained(layer).items()} for layer in layers.values()]
        allocator.allocate(t)

        kept = [[True] * r for *_, r in SHAPES]
        if fixed is not None:
            kept = fixed
        elif t == steps - t_f or (t_i <= t < steps - t_f and t % delta_t == 0):
            kept = slow_adalora.keep_exactly(slow.scores(), slow_adalora.schedule(t, TOTAL, b_T, t_i, t_f, steps))
            fixed = kept if t == steps - t_f else None
        for layer, before, keep in zip(layers.values(), unmasked, kept, strict=True):
            mask = torch.tensor(keep, dtype=torch.float64)
            for name, value in before.items():
                masked = value * (mask if name == "lora_B" else mask.unsqueeze(1))
                assert torch.equal(getattr(layer, name), masked if name in PRUNED[kind] else value), f"t={t}"
        if fixed is not None:
            assert allocator.budget == b_T
            assert list(allocator.rank_pattern().values()) == [sum(row) for row in fixed]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("score", "slow_kind"),
    [
        ("importance", slow_adalora.SlowAllocator),
        ("gradient", slow_adalora.SlowGradient),
        ("sensitivity", slow_adalora.SlowAverage),
    ],
)
def test_averaged_scores_of_the_released_protocol_freeze(score, slow_kind, seed):
    """Masks at t > t_i every delta_t steps and after T - t_f; what comes from T - t_f on enters no score."""
    layers, steps, t_i, t_f, delta_t, b_T = make_layers(seed), 12, 2, 4, 3, 5
    parameters = [p for layer in layers.values() for p in trained(layer).values()]
    optimizer = torch.optim.AdamW(parameters, lr=0.05)
    schedule = BudgetSchedule(TOTAL, b_T, t_i, t_f, steps)
    allocator = RankAllocator(layers, schedule, delta_t, score=score, protocol="released")
    slow = slow_kind(SHAPES, 0.85, 0.85)
    masks = 0
    for t in range(steps):
        for p in parameters:
            p.grad = torch.randn_like(p)
        optimizer.step()
        if t < steps - t_f:
            slow.update(as_lists(layers), as_lists(layers, grad=True))
        allocator.observe(t)
        allocator.allocate(t)
        if t > steps - t_f or (t > t_i and t % delta_t == 0):
            kept = slow_adalora.keep_exactly(slow.scores(), slow_adalora.schedule(t, TOTAL, b_T, t_i, t_f, steps))
            found = [(layer.lora_E != 0).flatten().tolist() for layer in layers.values()]
            assert found == kept, f"t={t}"
            masks += 1
    assert masks == 5


@settings(max_examples=50)
@given(
    rows=st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=5), min_size=1, max_size=5),
    data=st.data(),
)
def test_survivors_among_equal_scores_and_of_an_even_budget(rows, data):
    """The best of all, or round after round the best of each matrix."""
    budget = data.draw(st.integers(0, sum(map(len, rows))))
    scores = torch.tensor([score for row in rows for score in row])
    best, even = (
        [kept for row in keep(rows, budget) for kept in row]
        for keep in (slow_adalora.keep_exactly, slow_adalora.keep_evenly)
    )
    assert imp.keep_top(scores, budget).tolist() == best
    levelled = imp.level(scores, [len(row) for row in rows])
    assert sorted(levelled.tolist()) == list(range(1, len(scores) + 1))
    assert imp.keep_top(levelled, budget).tolist() == even
    assert imp.keep_above_threshold(levelled, budget).tolist() == even  # no ties


@pytest.mark.parametrize("kind", [SVDLinear, LoRALinear])
@pytest.mark.parametrize("seed", range(3))
def test_penalties_of_p_and_q_and_of_b_and_a(seed, kind):
    """Equation (4), and the released code's mean cosine, which is LoRA's alone."""
    layers = make_layers(seed, kind)
    with torch.no_grad():
        for layer in layers.values():
            layer.lora_B.normal_()
    factors = [(P, Q) for P, _, Q in as_lists(layers)]
    squared = sum(slow_adalora.penalty(P, Q) for P, Q in factors)
    assert orthogonality_penalty(layers).item() == pytest.approx(squared, rel=1e-12)
    columns = [[list(column) for column in zip(*P, strict=True)] for P, _ in factors]
    cosines = [slow_adalora.mean_cosine(rows) for rows in (*columns, *(Q for _, Q in factors))]
    assert orthogonality_penalty(layers, "mean_cosine").item() == pytest.approx(sum(cosines) / len(cosines), rel=1e-12)


def test_schedule_meets_both_ends_where_the_printed_equation_does_not():
    b_0, b_T, t_i, t_f, steps = 288, 144, 8000, 50000, 85904

    def printed(t: int) -> float:  # eq. (12) as it stands in the paper
        return b_T + (b_0 - b_T) * (1 - (t - t_i - t_f) / (steps - t_i - t_f)) ** 3

    schedule = BudgetSchedule(b_0, b_T, t_i, t_f, steps)
    assert printed(t_i) > b_0  # the misprint
    assert schedule(t_i) == b_0
    assert schedule(steps - t_f - 1) == schedule(steps - t_f) == b_T
    for t in range(0, steps, 97):
        assert schedule(t) == slow_adalora.schedule(t, b_0, b_T, t_i, t_f, steps)
