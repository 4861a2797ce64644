"""Which run is which: the settings' hash, the variant and the folder of every shipped combination.

A finished run is recognised by these. A change here makes the records of users (and ours) strangers to their commands.
"""

import itertools
import re
from collections.abc import Iterator, Sequence

import pytest
from task_configs import TASKS

from adalora_repro.config import catalog
from golden.conftest import Golden
from golden.entry import CONF, SWEEPS, budgets_of, identities, identity_of, names, settings_of, sweep

pytestmark = pytest.mark.usefixtures("hydra")

FILE = "identities.json"
#: but the one that needs another run, and those of HF PEFT
METHODS = [
    name
    for name in names("method")
    if not (name == "lora_rank_pattern" or catalog.method(name).role in ("cross-check", "other"))
]
FIXED = ("full", "bitfit")  # methods of one size: the same run under every budget
GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
SWEEPS_SHIPPED = sorted(path.stem for path in SWEEPS.glob("*.yaml"))
CELL = {"task", "method", "budget", "backbone"}  # what the cells of most sweeps say
#: further settings whose identity is kept, on a model whose records are committed
MORE = (
    "task=cola method=adalora backbone=minilm",
    "task=cola method=lora backbone=minilm budget=1.2M optim.lr=1e-3 seed=4",
    "task=mrpc method=full backbone=minilm train.precision=bf16 train.padding=max_length",
    "task=stsb method=pfeiffer backbone=minilm data.holdout=0.1 train.max_steps=500",
    "task=rte method=adalora backbone=minilm method.schedule=scaled train.epochs=3",
    "task=sst2 method=lora backbone=minilm method.init=kaiming train.attention=eager train.compile=none",
    "task=squad_v2 method=lora backbone=minilm budget=0.16% data.holdout=500 task.null_threshold=1.5",
    "task=squad method=houlsby backbone=minilm budget=0.65% data.skip_invalid=true train.grad_accumulation=4",
    "task=xsum method=adalora backbone=tiny-bart budget=0.13% task.num_beams=2 task.length_penalty=0.5",
    "task=qnli method=adalora backbone=minilm budget.match=params budget.params=83000",
    "task=qqp method=lora_init_r backbone=minilm budget.match=params",
    "task=cola method=adalora method.target_r=3 method.init_r=5 method.targets=[q,v] method.layers=[0,1]",
    "task=cola method=lora backbone=minilm eval.max_examples=100 train.eval_steps=10 train.log_steps=7",
)
#: runs whose settings are kept one by one, so that a changed hash can be explained
EXPLAINED = (
    "task=cola method=adalora",
    "task=stsb method=lora budget=1.2M protocol=released",
    "task=mnli method=pfeiffer",
    "task=squad_v2 method=adalora budget=0.16% protocol=released",
    "task=xsum method=full",
    "task=cola method=lora backbone=minilm data.holdout=0.1 budget.match=params budget.params=83000",
)


def combinations() -> Iterator[tuple[str, str, str, list[str]]]:
    """(task, method, protocol, budgets)."""
    for task, method, protocol in itertools.product(TASKS, METHODS, names("protocol")):
        budgets = budgets_of(task)
        yield task, method, protocol, budgets[:1] if method in FIXED else budgets


def found(task: str, method: str, protocol: str, budgets: Sequence[str]) -> dict[str, str]:
    """The entries of a task, method and protocol at these budgets."""
    words = (f"task={task}", f"method={method}", f"protocol={protocol}")
    entries = (f"{task} {method} {budget} {protocol}" for budget in budgets)
    return dict(zip(entries, identities(budgets, *words), strict=True))


def cells(name: str) -> Iterator[dict[str, str]]:
    """The cells of a sweep, at the first of several learning rates: one with another is the same but for that."""
    settings = sweep(name)
    for cell in itertools.chain(*settings.get("cells", {}).values()):
        words = {key: str(values) for key, values in (settings.get("params", {}) | cell).items()}
        choices = [
            re.split(r",(?![^\[]*\])", values)[: 1 if key == "optim.lr" else None] for key, values in words.items()
        ]
        yield from (dict(zip(words, values, strict=True)) for values in itertools.product(*choices))


def with_settings_of_their_own() -> Iterator[str]:
    """The cells of the shipped sweeps that are more than a task, a method and a budget, as words."""
    for name in SWEEPS_SHIPPED:
        for cell in cells(name):
            if not cell.keys() <= CELL:
                yield " ".join(f"{key}={value}" for key, value in cell.items())


@pytest.mark.slow
def test_every_combination(golden: Golden) -> None:
    """About two minutes; a part of them is below."""
    assert not list(CONF.glob("tuned/lr/*.yaml"))  # else a budget may have settings of its own, see ``identities``
    entries = [found(*combination) for combination in combinations()]
    golden(FILE, dict(sorted(itertools.chain(*(part.items() for part in entries)))))


@pytest.mark.parametrize("method", METHODS)
def test_some_combinations(method: str, golden: Golden) -> None:
    """Of each method a task of each family at one budget: other tasks, budgets and protocols with each method."""
    shift = METHODS.index(method)
    every = [combination for combination in combinations() if combination[1] == method]
    entries: dict[str, str] = {}
    for family in (GLUE, ("squad", "squad_v2"), ("xsum", "cnn_dailymail")):
        own = [combination for combination in every if combination[0] in family]
        task, method, protocol, budgets = own[(3 * shift) % len(own)]
        entries |= found(task, method, protocol, [budgets[shift % len(budgets)]])
    golden(FILE, entries, only=True)


def test_settings_beyond_the_shipped_ones(golden: Golden) -> None:
    golden("identities-more.json", {words: identity_of(*words.split()) for words in MORE})


@pytest.mark.slow
def test_the_cells_of_sweeps(golden: Golden) -> None:
    """Those of the tables are combinations; the others have an entry of their own."""
    combined = {f"{task} {method} {budget}" for task, method, _, budgets in combinations() for budget in budgets}
    for name in SWEEPS_SHIPPED:
        for cell in cells(name):
            budget = cell.get("budget") or budgets_of(cell["task"])[0]
            assert cell["method"] in FIXED or f"{cell['task']} {cell['method']} {budget}" in combined, (name, cell)
    golden("identities-sweeps.json", {words: identity_of(*words.split()) for words in with_settings_of_their_own()})


def test_what_an_identity_is_made_of(golden: Golden) -> None:
    golden("identities-explained.json", {words: settings_of(*words.split()) for words in EXPLAINED})
