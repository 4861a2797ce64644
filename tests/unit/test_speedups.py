"""The same model at less cost: what must not change, does not."""

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForSequenceClassification

from adalora_repro.config.catalog import resource
from adalora_repro.methods import adalora
from adalora_repro.models import inject
from adalora_repro.models.sites import find_sites
from adalora_repro.models.speedups import CROP_STEP, cache_positions, crop_positions, store_frozen
from benchmarks.operations import CountOperations

LONG = 2 * CROP_STEP


def make(
    backbone: str, dropout: float = 0.0, **changes: object
) -> tuple[torch.nn.Module, dict[str, torch.nn.Parameter]]:
    architecture = yaml.safe_load(
        (Path(resource("conf")) / "backbone" / f"{backbone}.yaml").read_text(encoding="utf-8")
    )["architecture"]
    torch.manual_seed(0)
    options = architecture | dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), dropout) | changes
    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(options.pop("model_type"), **options, num_labels=2)
    )
    method = adalora.Method(
        adalora.Options("adalora", "adalora", init_r=4, target_r=2, t_i=0, t_f=2, delta_t=1), "paper"
    )
    method.inject(model, find_sites(model))
    method.on_train_start(10)
    return model, inject.trained(model)


def gradients(model: torch.nn.Module, tokens: int, precision: torch.dtype | None = None) -> list[torch.Tensor]:
    torch.manual_seed(1)
    ids, labels = torch.randint(5, 100, (3, tokens)), torch.tensor([0, 1, 0])
    mask = (torch.arange(tokens) < torch.tensor([[tokens], [tokens - 2], [1]])).long()
    model.train()
    with torch.autocast("cpu", precision, enabled=precision is not None):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    found = [loss.detach()]
    for parameter in inject.trained(model).values():
        if parameter.grad is not None:
            found.append(parameter.grad)
        parameter.grad = None
    return found


@pytest.mark.parametrize("backbone", ["tiny-bert", "tiny-deberta"])
def test_frozen_weights_in_bf16_give_the_loss_and_gradients_of_autocast_to_the_last_bit(backbone: str) -> None:
    plain, cast = make(backbone, 0.1)[0], make(backbone, 0.1)[0]
    store_frozen(cast, torch.bfloat16)
    kinds = {p.dtype for p in cast.parameters() if not p.requires_grad}
    assert kinds == {torch.float32, torch.bfloat16}
    assert {p.dtype for p in inject.trained(cast).values()} == {torch.float32}
    for expected, found in zip(gradients(plain, 9, torch.bfloat16), gradients(cast, 9, torch.bfloat16), strict=True):
        assert torch.equal(expected, found)


def test_an_embedding_tied_to_the_head_keeps_its_type() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 5))
    model[2].weight = model[0].weight
    model.requires_grad_(False)
    model[1].bias.requires_grad_(True)
    store_frozen(model, torch.bfloat16)
    assert [p.dtype for p in model.parameters()] == [torch.float32, torch.bfloat16, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("tokens", [3, CROP_STEP, CROP_STEP + 1, LONG])
@pytest.mark.parametrize("buckets", [2 * LONG, -1])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_cropped_attention_is_the_same_function_with_the_same_random_numbers(
    tokens: int, buckets: int, dropout: float
) -> None:
    changes = {"position_buckets": buckets, "max_relative_positions": 2 * LONG, "max_position_embeddings": 2 * LONG}
    plain, cropped = (make("tiny-deberta", dropout, **changes)[0] for _ in range(2))
    crop_positions(cropped)
    seen = []
    attention = cropped.base_model.encoder.layer[0].attention.self
    attention.pos_dropout.register_forward_hook(lambda module, args, output: seen.append(output.shape[0]))
    for expected, found in zip(gradients(plain, tokens), gradients(cropped, tokens), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert seen == [2 * CROP_STEP * -(-tokens // CROP_STEP)]


def test_a_batch_longer_than_half_the_buckets_is_not_cropped_and_the_next_short_one_is() -> None:
    changes = {"position_buckets": LONG, "max_relative_positions": 4 * LONG, "max_position_embeddings": 4 * LONG}
    plain, cropped = make("tiny-deberta", **changes)[0], make("tiny-deberta", **changes)[0]
    crop_positions(cropped)
    for tokens in (LONG, CROP_STEP):
        for expected, found in zip(gradients(plain, tokens), gradients(cropped, tokens), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("buckets", [8, -1])
@pytest.mark.parametrize("tokens", [3, CROP_STEP, LONG])  # the last is longer than the table
@pytest.mark.parametrize("cropped", [False, True])
def test_cache_positions_are_the_model_s_own(tokens: int, buckets: int, cropped: bool) -> None:
    changes = {"position_buckets": buckets, "max_relative_positions": 2 * LONG, "max_position_embeddings": LONG - 8}
    made, at_hand = (make("tiny-deberta", 0.1, **changes)[0] for _ in range(2))
    cache_positions(at_hand)
    for model in (made, at_hand):
        if cropped:
            crop_positions(model)
    for expected, found in zip(gradients(made, tokens), gradients(at_hand, tokens), strict=True):
        assert torch.equal(expected, found)
    assert at_hand.state_dict().keys() == made.state_dict().keys()


def test_cache_positions_are_not_copied_from_the_host() -> None:
    model = make("tiny-deberta")[0].to("meta")
    ids = torch.ones(2, 5, dtype=torch.long, device="meta")

    def waits() -> int:
        with CountOperations() as counted:
            model(input_ids=ids, attention_mask=ids).logits.sum().backward()
        return counted.waits

    assert waits() > 0  # or this speedup has become needless
    cache_positions(model)
    assert waits() == 0
