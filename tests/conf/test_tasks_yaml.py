"""The tasks' YAML files against the paper's tables, the schema, and the promises of their own headers."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from task_configs import CONF, TASKS, task_config

from adalora_repro.reports.spec import paper_rows
from adalora_repro.reports.tables import table1, table2, table3

TABLE = {"glue": "Table 8", "qa": "Table 10", "nlg": "Table 13"}
ORIGIN = re.compile(r"^ +(\w+): .*  # (paper, (?:Table (?:8|10|13)|section 4\.3)|released script\b.*)$")


def values(path: Path) -> dict[str, Any]:
    """``section.key`` -> value of a file, resolved within itself."""
    loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    loaded.pop("defaults", None)  # another group's choice, no value
    return {f"{section}.{key}": value for section, keys in loaded.items() for key, value in keys.items()}


def origins(path: Path) -> dict[str, str]:
    """Key -> origin that its end-of-line comment names."""
    found = (ORIGIN.match(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {match[1]: match[2] for match in found if match}


def tuned(task: str) -> Path:
    return CONF / "tuned" / f"{task}_adalora.yaml"


@pytest.mark.parametrize("row", paper_rows("table8_10_13_hyperparameters.csv"), ids=lambda row: row["task"])
def test_tuned_files_hold_the_paper_s_hyperparameters(row: dict[str, str]) -> None:
    ours = values(tuned(row["task"]))
    columns = {
        "optim.lr": "learning_rate",
        "train.batch_size": "batch_size",
        "train.epochs": "epochs",
        "method.gamma": "gamma",
        "method.t_i": "t_i",
        "method.delta_t": "delta_T",
        "method.t_f": "t_f",
    }
    assert {key: ours[key] for key in columns} == {key: float(row[column]) for key, column in columns.items()}
    from_scripts = {"optim.warmup_steps", "optim.weight_decay", "method.alpha", "task.max_length"}
    assert set(ours) - {"task.classifier_dropout"} == set(columns) | from_scripts
    named = origins(tuned(row["task"]))
    label = f"paper, {TABLE[task_config(row['task']).task.budgets]}"
    for key in ours:
        expected = label if key in columns else "released script"
        assert named[key.partition(".")[2]].startswith(expected), key


@pytest.mark.parametrize("task", TASKS)
def test_total_steps_follow_from_rows_and_hold_the_schedule(task: str) -> None:
    cfg, recipe = task_config(task), values(tuned(task))
    steps = cfg.train.epochs * math.ceil(cfg.task.rows["train"] / cfg.train.batch_size)
    if cfg.task.family == "squad":  # features, of which long contexts give several
        assert steps < cfg.task.total_steps < 1.02 * steps
    else:
        assert cfg.task.total_steps == steps
    assert recipe["method.t_i"] + recipe["method.t_f"] < cfg.task.total_steps
    assert set(cfg.task.validation.values()) | {"train"} <= set(cfg.task.rows)


@pytest.mark.parametrize("task", TASKS)
def test_the_revision_on_the_hub_is_a_commit(task: str) -> None:
    assert re.fullmatch(r"[0-9a-f]{40}", task_config(task).task.revision)


SPECS = {"glue": table1.SPEC, "qa": table2.SPEC, "nlg": table3.SPEC}


@pytest.mark.parametrize("task", TASKS)
def test_scores_to_expect_are_the_paper_s(task: str) -> None:
    spec = SPECS[task_config(task).task.budgets]
    (columns,) = (column.paper for column in spec.columns if column.task == task)
    rows = {row["budget"]: row for row in paper_rows(spec.paper_file) if row["method"] == "adalora"}
    for path in (CONF / "task" / f"{task}.yaml", tuned(task)):
        line = next(
            line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# Score to expect")
        )
        found = re.findall(r"([\d.]+(?: / [\d.]+)*) at ([\d.]+[M%])", line)
        assert len(found) == 2
        for scores, budget in found:
            assert scores.split(" / ") == [rows[budget][column] for column in columns]
