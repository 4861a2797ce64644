"""LoRA at the ranks of another run: where they come from, what the run is then called, what is refused."""

import json
from pathlib import Path
from typing import Any

import plans
import pytest
from fake_records import make, save

from adalora_repro.config import dry_run
from adalora_repro.config import resolve as planning
from adalora_repro.config.plan import Plan
from adalora_repro.errors import InputError
from adalora_repro.records import run_record
from adalora_repro.records.run_record import RecordError

pytestmark = pytest.mark.usefixtures("hydra")

ROLES = ("q", "k", "v", "attn_out", "ffn_in", "ffn_out")
#: 24 in all, two for each of tiny-bert's 12 matrices: budget 0.3M; the first is pruned away
OF_LAYER = dict(zip(ROLES, (0, 1, 2, 2, 3, 4), strict=True))
RANKS = {f"encoder.{layer}.{role}": rank for layer in (0, 1) for role, rank in OF_LAYER.items()}


def source(folder: Path, ranks: dict[str, int] | None = None, **changes: Any) -> Path:
    fields: dict[str, Any] = {"method": "adalora", "backbone": "tiny-bert", "rank_pattern": ranks or RANKS}
    return save(folder, make(**(fields | changes))).parent


def resolved(run: Path | str, *words: str, method: str = "lora_rank_pattern") -> Plan:
    common = ["task=rte", f"method={method}", f"method.rank_pattern={run}", "backbone=tiny-bert", "data=sample"]
    return plans.resolved(*common, *words)


def test_the_run_is_known_by_the_ranks_not_by_where_they_lie(tmp_path: Path) -> None:
    first, second = source(tmp_path / "a"), source(tmp_path / "b", lr=5e-3)
    plan = resolved(first)
    assert plan.key == resolved(second).key == resolved(first / "metrics.json").key
    assert plan.folder == resolved(second).folder
    assert plan.settings["method.rank_pattern"] == RANKS
    assert str(tmp_path) not in str(plan.settings)
    other = source(tmp_path / "c", RANKS | {"encoder.0.q": 4, "encoder.1.ffn_out": 0})
    assert resolved(other).key["hash"] != plan.key["hash"]
    assert resolved(other).key["variant"] != plan.key["variant"]
    assert plan.key == resolved(first, "seed=1").key | {"seed": 0, "hash": plan.key["hash"]}


def test_its_budget_is_that_of_the_ranks(tmp_path: Path) -> None:
    small, large = source(tmp_path), source(tmp_path, budget="1.2M")
    assert resolved(small).key["budget"] == "0.3M"
    assert resolved(large).key["budget"] == "1.2M"
    assert resolved(large, "budget=1.2M").key == resolved(large).key  # said or not
    assert resolved(small, method="lora").key["budget"] == "0.3M-ranks"  # never in LoRA's own cell
    assert resolved(source(tmp_path, budget="target_r3-init_r5")).key["budget"] == "target_r3-init_r5"
    with pytest.raises(InputError, match=r"are of budget '1\.2M', not '0\.6M'"):
        resolved(large, "budget=0.6M")


def test_the_plan_counts_the_ranks(tmp_path: Path) -> None:
    """What is made of them: the forward pass in tests/parity, a run in tests/golden."""
    plan = planning.count(resolved(source(tmp_path), "method.alpha=6"))
    sizes = {"ffn_in": 96, "ffn_out": 96}
    expected = sum(rank * sizes.get(name.rpartition(".")[2], 64) for name, rank in RANKS.items())
    assert plan.params["method"] == plan.params["at_init"] == expected
    assert plan.method == {"n": 12, "b_T": 24, "alpha": 6.0, "alpha_over_r": 3.0}
    assert "of 12 matrices" in dry_run.describe(plan)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"status": "failed", "final": None, "error": "x"}, r"the run is not finished \(failed\)"),
    ({"rank_pattern": None}, "method 'adalora' has no ranks"),
    ({"rank_pattern": {}}, "has no ranks"),
    ({"rank_pattern": {"encoder.0.q": 0}}, "has no ranks"),
    ({"rank_pattern": {"encoder.0.q": 1.5}}, "rank_pattern.encoder.0.q is 1.5, not a whole number"),
    ({"rank_pattern": {"encoder.0.q": True}}, "rank_pattern.encoder.0.q is True, not a whole number"),
    ({"rank_pattern": {"encoder.0.q": -1, "encoder.0.k": 2}}, "rank_pattern.encoder.0.q is -1, not a whole number"),
    ({"rank_pattern": RANKS | {"encoder.2.q": 1}}, r"encoder\.2\.q, which this model does not adapt"),
    ({"rank_pattern": {"encoder.0.q": 1}}, r"encoder\.0\.k and 10 more, of this model, which the ranks leave out"),
]


@pytest.mark.parametrize(("changes", "told"), WRONG)
def test_what_does_not_fit_is_refused_before_training(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"method": "adalora", "backbone": "tiny-bert", "rank_pattern": RANKS}
    path = save(tmp_path, make(**fields))
    values = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps(values), encoding="utf-8")  # as another program may: ours refuses to write some of these
    run = path.parent
    with pytest.raises(InputError, match=told) as error:
        planning.count(resolved(run))
    assert str(error.value).startswith("method.rank_pattern")
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_record_and_two_sizes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{", encoding="utf-8")
    for place in (tmp_path, tmp_path / "metrics.json", tmp_path / "else"):
        with pytest.raises(InputError, match=r"^method\.rank_pattern: .*"):
            resolved(place)
    run = source(tmp_path / "good")
    with pytest.raises(InputError, match=r"method\.r and method\.rank_pattern both set the ranks"):
        planning.count(resolved(run, "method.r=2"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"encoder.0.q": "2"}', "rank.encoder.0.q is '2', not a whole number"),
        ('{"encoder.0.q": 0}', "every rank is 0"),
    ],
)
def test_wrong_ranks_of_a_file_are_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "ranks.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(RecordError, match=message):
        run_record.ranks(path)
