"""Sizes that fill a number of parameters: never above it, none nearer, spread evenly; the plans made with them."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plans import counted as planned
from plans import resolved
from torch import nn

from adalora_repro import methods
from adalora_repro.config import dry_run
from adalora_repro.config import resolve as plan
from adalora_repro.config.catalog import budget_families
from adalora_repro.errors import InputError
from adalora_repro.lowrank import BudgetSchedule, RankAllocator, SVDLinear
from adalora_repro.lowrank.importance import keep_level, keep_within
from adalora_repro.lowrank.importance import level as level_scores
from adalora_repro.methods.equal_counts import Slot, extras, fill, label_params, spread
from adalora_repro.models import backbones, inject
from adalora_repro.models.sites import find_sites

pytestmark = pytest.mark.usefixtures("hydra")

BACKBONES = ("tiny-deberta", "tiny-bert", "tiny-roberta", "tiny-bart")
SIZED = ("houlsby", "pfeiffer", "lora", "adalora")
DOCS = Path(plan.__file__).parents[2] / "docs" / "methods.md"


def tiny(backbone: str, method: str, *words: str) -> plan.Plan:
    task = ["task=xsum", "budget=0.26%"] if backbone == "tiny-bart" else ["task=rte"]
    if any(word.startswith("budget.params=") for word in words):
        task = task[:1]
    options = [f"backbone={backbone}", f"method={method}", "budget.match=params", "data=sample", "train.max_steps=40"]
    return resolved(*task, *options, "method.schedule=scaled", *words)


# The mathematics

places = st.lists(
    st.builds(Slot, st.just(""), st.just(("encoder", 0)), st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=5
).map(lambda found: [Slot(str(i), ("encoder", i % 2), place.unit, place.fixed) for i, place in enumerate(found)])


def cost(places: list[Slot], sizes: dict[str, int]) -> int:
    return sum(place.fixed + place.unit * sizes[place.name] for place in places if sizes[place.name])


def best_of_all(places: list[Slot], params: int) -> int:
    """Every assignment of sizes that differ by one at most, tried."""
    totals = []
    for size in range(params + 1):
        for more in itertools.product((0, 1), repeat=len(places)):
            total = cost(places, {place.name: size + one for place, one in zip(places, more, strict=True)})
            totals += [total] if total <= params else []
    return max(totals)


@given(places, st.integers(1, 60))
def test_filled_is_never_above_and_nothing_is_nearer(places: list[Slot], params: int) -> None:
    cheapest = min(place.fixed + place.unit for place in places)
    if params < cheapest:
        with pytest.raises(InputError, match=rf"budget\.params must be at least {cheapest}$"):
            fill(places, params)
        return
    sizes = fill(places, params)
    assert list(sizes) == [place.name for place in places]
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert cost(places, sizes) == best_of_all(places, params)


@given(st.dictionaries(st.integers(1, 30), st.integers(1, 6), min_size=1, max_size=3), st.integers(0, 200))
def test_extras_are_exact_and_of_equal_sums_the_most_even(kinds: dict[int, int], rest: int) -> None:
    found = extras(kinds, rest)
    sums = {
        numbers: sum(unit * number for unit, number in zip(kinds, numbers, strict=True))
        for numbers in itertools.product(*(range(number + 1) for number in kinds.values()))
    }

    def unevenness(numbers: tuple[int, ...]) -> float:
        shares = [number / kind for number, kind in zip(numbers, kinds.values(), strict=True)]
        return max(shares) - min(shares)

    ours = tuple(found[unit] for unit in kinds)
    best = max(total for total in sums.values() if total <= rest)
    assert sums[ours] == best
    assert unevenness(ours) <= min(unevenness(n) for n, total in sums.items() if total == best) + 1e-9


@given(st.integers(1, 12), st.integers(1, 6), st.data())
def test_spread_is_even_over_layers_and_over_roles(layers: int, roles: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, layers * roles))
    names = [[f"{layer}.{role}" for role in range(roles)] for layer in range(layers)]
    chosen = spread(names, count)
    assert len(set(chosen)) == len(chosen) == count
    for part, values in ((0, layers), (1, roles)):
        numbers = [sum(name.split(".")[part] == str(value) for name in chosen) for value in range(values)]
        assert max(numbers) - min(numbers) <= 1


def test_a_label_is_a_number_to_the_parameter() -> None:
    numbers = {"0.3M": 300_000, "1.2M": 1_200_000, "0.08%": 147_065, "2.20%": 4_044_294}  # 0.08% are 147,065.24…
    assert {label: label_params(label, 183_831_552) for label in numbers} == numbers
    with pytest.raises(InputError, match="budget 'small' is not a number"):
        label_params("small", 1)


# AdaLoRA's masks


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([2, 3, 7])), min_size=1, max_size=12), st.integers(0, 60))
def test_triplets_are_kept_as_a_loop_would(triplets: list[tuple[int, int]], params: int) -> None:
    scores, costs = (torch.tensor(values) for values in zip(*triplets, strict=True))
    left, expected = params, [False] * len(triplets)
    for i in sorted(range(len(triplets)), key=lambda i: -triplets[i][0]):
        if triplets[i][1] <= left:
            left -= triplets[i][1]
            expected[i] = True
    assert keep_within(scores.float(), costs, params, len(costs.unique())).tolist() == expected


@given(
    st.lists(st.sampled_from([2, 3, 7]), min_size=1, max_size=5),
    st.integers(1, 4),
    st.integers(7, 60),
    st.randoms(use_true_random=False),
)
def test_a_uniform_allocation_of_parameters_keeps_level_after_level(costs, rank, params, random) -> None:
    """The oracle: whole levels while they fit, then the best triplets of one more level that still fit."""
    scores = torch.tensor([random.random() for _ in range(len(costs) * rank)])
    left, expected = params, [False] * len(scores)
    best_first = [sorted(range(i * rank, (i + 1) * rank), key=lambda j: -scores[j]) for i in range(len(costs))]
    for level in range(rank):
        partial = sum(costs) > left
        for j in sorted((order[level] for order in best_first), key=lambda j: -scores[j]):
            if costs[j // rank] <= left:
                left -= costs[j // rank]
                expected[j] = True
        if partial:
            break
    per_triplet = torch.tensor(costs).repeat_interleave(rank)
    most = (params // sum(costs) + 1) * len(costs)
    levelled = level_scores(scores, [rank] * len(costs))
    assert keep_level(levelled, per_triplet, params, len(set(costs)), most).tolist() == expected


@pytest.mark.parametrize("protocol", ["paper", "released"])
def test_the_last_masks_count_parameters(protocol: str) -> None:
    torch.manual_seed(0)
    shapes = {"wide": (3, 8), "a": (4, 4), "b": (4, 4)}
    layers = {name: SVDLinear(nn.Linear(d_in, d_out), 3, 16.0) for name, (d_out, d_in) in shapes.items()}
    costs = {name: d_out + 1 + d_in for name, (d_out, d_in) in shapes.items()}
    allocator = RankAllocator(layers, BudgetSchedule(9, 4, 2, 6, 20), 1, protocol=protocol, max_params=40)
    for t in range(20):
        for layer in layers.values():
            for parameter in layer.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.randn_like(parameter)
                    parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
        allocator.observe(t)
        allocator.allocate(t)
        if t < 14:
            assert allocator.budget >= allocator.schedule(t)
        elif allocator.at_final_budget(t):
            pattern = allocator.rank_pattern()
            used = sum(rank * costs[name] for name, rank in pattern.items())
            assert used <= 40
            fell = [costs[name] for name, rank in pattern.items() if rank < 3]
            assert 40 - used < min(fell)
            zero = {name: int((layer.lora_E == 0).sum()) for name, layer in layers.items()}
            assert zero == {name: 3 - rank for name, rank in pattern.items()}


# Every method on every tiny backbone


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", SIZED)
@pytest.mark.parametrize("params", [321, 20_011])
def test_the_count_is_the_plan_and_never_above(backbone: str, method: str, params: int) -> None:
    counted = plan.count(tiny(backbone, method, f"budget.params={params}"))
    model = backbones.load_model(counted.cfg)
    sites = find_sites(model)
    chosen = methods.load(counted.cfg)
    chosen.inject(model, sites)
    assert inject.count_trained(model)["method"] == counted.params["at_init"]
    found, least = counted.params["method"], {"houlsby": 97, "pfeiffer": 97, "lora": 64, "adalora": 97}[method]
    assert counted.method["params"] == params
    slack = re.search(r"matched to +([\d,]+)  never above; slack ([\d,]+) ", dry_run.describe(counted))
    assert [number.replace(",", "") for number in slack.groups()] == [str(params), str(params - found)]
    assert 0 <= params - found < least  # one more for any adapter, matrix or triplet would be above
    if method == "adalora":
        low, high = counted.method["params_min"], counted.method["params_max"]
        assert params - 97 < low <= found <= high == params
        assert 1.5 * counted.method["b_T"] <= counted.method["b_0"] < 1.5 * counted.method["b_T"] + counted.method["n"]


# The numbers of the documentation


def documented() -> list[tuple[str, str, list[str]]]:
    """(backbone, label, cells) of the table of matched budgets."""
    rows = [
        line.strip("| \n").split(" | ")
        for line in DOCS.read_text(encoding="utf-8").splitlines()
        if re.match(r"\| \S+ \| [\d.]+[M%] \|", line)
    ]
    return [(backbone.strip("`"), label, cells) for backbone, label, *cells in rows]


@pytest.mark.parametrize(("backbone", "label", "cells"), documented())
def test_documented_counts_are_the_plan_s(backbone: str, label: str, cells: list[str]) -> None:
    task = {"glue": "rte", "qa": "squad", "nlg": "xsum"}[budget_families()[label]]
    texts = []
    for method in SIZED:
        words = (f"task={task}", f"method={method}", f"budget={label}", "budget.match=params", f"backbone={backbone}")
        counted = planned(*words)
        found = counted.method
        if method == "adalora":
            texts.append(f"{found['params_min']:,} to {found['params_max']:,} ({found['b_T']})")
            continue
        size = found["r" if method == "lora" else "d"]
        size = f"{size}" if not found["wider"] else f"{size} + {found['wider']}"
        texts.append(f"{counted.params['method']:,} ({size})")
    assert cells == [f"{found['params']:,}", *texts]


# What names a run


def test_a_matched_size_is_a_budget_of_its_own() -> None:
    label = resolved("task=rte", "method=lora", "data=sample")
    matched = resolved("task=rte", "method=lora", "data=sample", "budget.match=params")
    assert (label.key["budget"], matched.key["budget"]) == ("0.3M", "0.3M-params")
    assert matched.settings["budget.match"] == "params"
    (note,) = resolved("task=rte", "method=bitfit", "data=sample", "budget.match=params").notes
    assert "method 'bitfit' has one size" in note
    number = resolved("task=rte", "method=lora", "data=sample", "budget.match=params", "budget.params=300000")
    assert number.key["budget"] == "params300000"
    assert len({each.key["hash"] for each in (label, matched, number)}) == 3
    more = ("budget.match=params", "method.targets=[q,v]", "method.layers=[0,1]")
    assert resolved("task=rte", "method=lora", *more).key["budget"] == "0.3M-params-q.v-0.1"
    own = resolved("task=rte", "method=adalora", "budget.match=params", "method.init_r=5")
    assert own.key["budget"] == "0.3M-params-init_r5"
    assert plan.count(own).method["b_0"] == 5 * 72


#: 83,000 parameters are LoRA of rank 2 on MiniLM
ON_MINILM = ("task=cola", "backbone=minilm", "data=sample")
EQUAL = (*ON_MINILM, "method.schedule=scaled", "budget.match=params", "budget.params=83000")


def test_lora_at_the_initial_rank_is_where_adalora_of_the_same_number_starts() -> None:
    names = ("lora", "lora_init_r", "adalora")
    lora, control, adalora = (planned(*EQUAL, f"method={name}") for name in names)
    assert control.method["r"] == adalora.method["b_0"] // adalora.method["n"] == 3
    assert control.params["method"] == 3 * lora.params["method"] // 2 > 83_000 >= lora.params["method"]
    assert control.key["budget"] == lora.key["budget"] == "params83000"
    assert re.search(r"matched to +83,000  41,416 more: the rank from which", dry_run.describe(control))
    for number in (83_000, 30_000):  # the second is less than rank 1 takes everywhere
        words = (*EQUAL[:-1], f"budget.params={number}")
        svd_lora, adalora = (planned(*words, f"method={name}") for name in ("svd_lora_init_r", "adalora"))
        assert svd_lora.params["method"] == adalora.params["at_init"]
    typed = planned(*EQUAL, "method=lora", "+method.initial_rank=true")
    assert typed.params["method"] == control.params["method"]
    assert typed.folder != lora.folder, "another run is found finished there"
    given = [resolved(*ON_MINILM, "budget=0.3M", "method=lora", *more) for more in ((), ("+method.initial_rank=true",))]
    assert given[0].folder == given[1].folder, "a rank that is given is the rank"


def test_a_uniform_allocation_fills_a_number_of_parameters() -> None:
    uniform, free = (planned(*EQUAL, f"method={name}") for name in ("adalora_uniform", "adalora"))
    assert (uniform.params, uniform.method) == (free.params, free.method)
    assert 83_000 - uniform.method["params_min"] < 384 + 1 + 1536
