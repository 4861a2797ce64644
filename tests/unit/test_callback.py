"""training/callback.py: AdaLoRA in a real Trainer, step for step like our own loop; lowrank.adapt."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from adalora_repro.lowrank import BudgetSchedule, RankAllocator, SVDLinear, adapt, orthogonality_penalty
from adalora_repro.training.callback import STATE, AdaLoRACallback

T, LR, CLIP, GAMMA = 12, 1.0, 0.5, 0.1
SCHEDULE = {"target_r": 2, "t_i": 2, "t_f": 4, "delta_t": 2}


def model_of() -> tuple[BertForSequenceClassification, dict[str, SVDLinear]]:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForSequenceClassification(config)
    return model, adapt(model, ["*.query", "*.value"], r=4, alpha=8.0, trained=["classifier"])


def data() -> Dataset:
    torch.manual_seed(1)
    rows = torch.randint(5, 50, (8 * T, 6))
    return Dataset.from_dict({"input_ids": rows.tolist(), "labels": (rows[:, 0] % 2).tolist()})


def trainer(folder: Path, model: Any, callback: AdaLoRACallback, **changes: Any) -> Trainer:
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": T,
        "per_device_train_batch_size": 8,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
        "optim": "sgd",
    }
    args = TrainingArguments(**options | changes)
    return Trainer(model=model, args=args, train_dataset=data(), eval_dataset=data(), callbacks=[callback])


def ours(model: Any, layers: dict[str, SVDLinear], batches: list[dict[str, Any]]) -> RankAllocator:
    """Algorithm 1 written out."""
    schedule = BudgetSchedule(b_0=4 * len(layers), b_T=2 * len(layers), t_i=2, t_f=4, total_steps=T)
    allocator = RankAllocator(layers, schedule, delta_t=2)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=LR)
    model.train()
    for t, batch in enumerate(batches):
        (model(**batch).loss + GAMMA * orthogonality_penalty(list(layers.values()))).backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        allocator.observe(t)
        optimizer.step()
        allocator.allocate(t)
        optimizer.zero_grad()
    return allocator


def test_the_trainer_prunes_as_the_equations_do(tmp_path: Path) -> None:
    model, layers = model_of()
    other = copy.deepcopy(model)
    callback = AdaLoRACallback(layers, **SCHEDULE, gamma=GAMMA, max_grad_norm=CLIP)
    run = trainer(tmp_path, model, callback, eval_strategy="steps", eval_steps=4)  # no evaluation leaves a trace
    batches = [{name: value.clone() for name, value in batch.items()} for batch in run.get_train_dataloader()]
    run.train()
    ranks = callback.allocator.rank_pattern()
    assert (sum(ranks.values()), callback.allocator.budget) == (2 * len(layers), 2 * len(layers))
    assert len(set(ranks.values())) > 1  # not the same everywhere
    written = ours(other, {name: other.get_submodule(name) for name in layers}, batches)
    assert written.rank_pattern() == ranks
    for (name, theirs), own in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(theirs, own, atol=1e-6), name


def test_a_checkpoint_goes_on_with_the_averages(tmp_path: Path) -> None:
    """It is saved after an evaluation, and a step after a mask: pruned λ have been trained since."""
    every = {"save_strategy": "steps", "save_steps": 6, "eval_strategy": "steps", "eval_steps": 6}
    results = []
    for folder, stop in (("whole", None), ("resumed", 6)):
        model, layers = model_of()
        callback = AdaLoRACallback(layers, **SCHEDULE)
        trainer(tmp_path / folder, model, callback, **every).train()
        if stop:
            assert (tmp_path / folder / f"checkpoint-{stop}" / STATE).exists()
            model, layers = model_of()
            callback = AdaLoRACallback(layers, **SCHEDULE)
            again = trainer(tmp_path / folder, model, callback, **every)
            again.train(resume_from_checkpoint=str(tmp_path / folder / f"checkpoint-{stop}"))
        results.append(
            (callback.allocator.rank_pattern(), [layer.lora_E.detach().clone() for layer in layers.values()])
        )
    (ranks, expected), (resumed_ranks, resumed) = results
    assert ranks == resumed_ranks
    assert all(torch.equal(a, b) for a, b in zip(expected, resumed, strict=True))


def budgets_seen(run: Trainer, layers: dict[str, SVDLinear], callback: Any) -> list[tuple[int, int]]:
    """At each evaluation to come, how many triplets the model has, and how many the budget is."""
    seen, evaluate = [], run.evaluate

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append((sum(int((layer.lora_E != 0).sum()) for layer in layers.values()), callback.allocator.budget))
        return evaluate(*args, **kwargs)

    run.evaluate = watched
    return seen


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_an_evaluation_sees_the_budget_and_training_goes_on_unmasked(strategy: str, tmp_path: Path) -> None:
    """An epoch has three steps; the second ends one step after a mask."""
    model, layers = model_of()
    callback = AdaLoRACallback(layers, **SCHEDULE | {"delta_t": 4})
    every = {"eval_strategy": strategy, "eval_steps": 1, "per_device_train_batch_size": 8 * T // 3}
    run = trainer(tmp_path, model, callback, **every)
    run.eval_dataset = {"a": data(), "b": data()}  # the Trainer calls ``evaluate`` for both, and for each
    seen = budgets_seen(run, layers, callback)
    run.train()
    assert len(seen) == 3 * (T if strategy == "steps" else 4)
    assert all(kept == budget for kept, budget in seen)
    assert seen[-1] == (2 * len(layers), 2 * len(layers))


def test_an_evaluation_before_a_resumed_step_sees_the_budget(tmp_path: Path) -> None:
    for resumed in (False, True):
        model, layers = model_of()
        callback = AdaLoRACallback(layers, **SCHEDULE | {"delta_t": 4})
        run = trainer(tmp_path, model, callback, save_strategy="steps", save_steps=7, eval_on_start=resumed)
        seen = budgets_seen(run, layers, callback)
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7") if resumed else None)
    ((kept, budget),) = seen
    assert kept == budget < 4 * len(layers)


def test_what_the_callback_cannot_do_is_refused(tmp_path: Path) -> None:
    model, layers = model_of()
    with pytest.raises(ValueError, match="t_f must be at least 1"):
        AdaLoRACallback(layers, **SCHEDULE | {"t_f": 0})
    with pytest.raises(ValueError, match="max_grad_norm must be 0"):
        AdaLoRACallback(layers, **SCHEDULE, max_grad_norm=-1.0)
    with pytest.raises(ValueError, match=r"max_grad_norm=0\) and AdaLoRACallback\(max_grad_norm=1\)"):
        trainer(tmp_path, model, AdaLoRACallback(layers, **SCHEDULE), max_grad_norm=1.0).train()
    with pytest.raises(TypeError, match="'protocol'"):  # R, and when triplets are scored, are those of the paper
        trainer(tmp_path, model, AdaLoRACallback(layers, **SCHEDULE, protocol="released")).train()
    saving = {"save_strategy": "steps", "save_steps": 6}
    best = {**saving, "eval_strategy": "steps", "eval_steps": 6, "load_best_model_at_end": True}
    with pytest.raises(ValueError, match="load_best_model_at_end"):
        trainer(tmp_path, model, AdaLoRACallback(layers, **SCHEDULE), **best).train()
    fp16 = SimpleNamespace(max_grad_norm=0.0, load_best_model_at_end=False, fp16=True)  # of a Trainer on a GPU
    arguments: list[Any] = [fp16, None, None]
    with pytest.raises(ValueError, match="fp16=True"):
        AdaLoRACallback(layers, **SCHEDULE).on_train_begin(*arguments)
    trainer(tmp_path / "a", model, AdaLoRACallback(layers, **SCHEDULE), **saving).train()
    model, layers = model_of()
    elsewhere = trainer(tmp_path / "b", model, AdaLoRACallback(layers, **SCHEDULE), **saving)
    with pytest.raises(ValueError, match="the output_dir in which the training began"):
        elsewhere.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))


def test_adapt_replaces_what_matches_and_freezes_the_rest() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    before = model(torch.ones(1, 4))
    layers = adapt(model, ["0"], r=2, alpha=4.0, trained=["2"])
    assert list(layers) == ["0"]
    assert torch.equal(model(torch.ones(1, 4)), before)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {"0.lora_A", "0.lora_B", "0.lora_E", "2.weight", "2.bias"}
    with pytest.raises(ValueError, match="adapted already"):
        adapt(model, ["2"], r=2, alpha=4.0)


@pytest.mark.parametrize(
    ("layers", "trained", "message"),
    [
        (["1"], [], "no linear layer matches '1'"),
        (["0"], ["9"], "no module matches '9'"),
        ([], [], "layers needs one"),
        ("0", [], "lists of patterns"),
    ],
)
def test_adapt_refuses_patterns_without_a_match(layers: Any, trained: list[str], message: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(ValueError, match=message):
        adapt(model, layers, r=2, alpha=4.0, trained=trained)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_adapt_cannot_replace_the_model_itself() -> None:
    with pytest.raises(ValueError, match="no linear layer matches"):
        adapt(nn.Linear(4, 4), ["*"], r=2, alpha=4.0)
