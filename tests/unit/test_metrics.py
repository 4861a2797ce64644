"""The figures as evaluate.Metrics: those of the plain functions, alone, combined and in a Trainer's compute_metrics."""

import subprocess
import sys
from typing import Any

import pytest

from adalora_repro.errors import InputError
from adalora_repro.metrics import metric, rouge, squad

LABELS, PREDICTED = [0, 1, 1, 0, 1, 1], [0, 1, 0, 0, 1, 0]
GOLDS = {"a": ["the Normans", "Normans"], "b": ["Paris"], "c": []}
TEXTS = {"a": "Normans", "b": "in Paris", "c": "France"}
ODDS = {"a": -2.0, "b": 0.5, "c": 1.5}
SUMMARIES = ["The cat sat. It slept.", "Nobody moved."], ["A cat sat on it. It slept.", "Somebody moved."]


def references() -> list[dict[str, Any]]:
    return [{"id": key, "answers": {"text": texts, "answer_start": [0] * len(texts)}} for key, texts in GOLDS.items()]


@pytest.mark.parametrize(
    ("name", "labels", "predicted", "expected"),
    [
        ("mrpc", LABELS, PREDICTED, {"accuracy": 4 / 6, "f1": 2 * 2 / (2 * 2 + 0 + 2)}),
        ("mrpc", [0, 0], [0, 0], {"accuracy": 1.0, "f1": 0.0}),
        ("cola", LABELS, PREDICTED, {"matthews_correlation": (2 * 2 - 0 * 2) / (2 * 4 * 2 * 4) ** 0.5}),
        ("cola", [0, 1, 1], [1, 1, 1], {"matthews_correlation": 0.0}),
        ("stsb", [1, 2, 3, 4], [1, 3, 2, 8], {"pearson": 10 / (5 * 29) ** 0.5, "spearman": 0.8}),
        ("stsb", [0, 1, 4], [2, 2, 2], {"pearson": 0.0, "spearman": 0.0, "corr": 0.0}),
    ],
)
def test_figures_of_glue_by_hand(
    name: str, labels: list[int], predicted: list[int], expected: dict[str, float]
) -> None:
    figures = metric(name).compute(predictions=predicted, references=labels)
    assert {key: figures[key] for key in expected} == pytest.approx(expected, abs=1e-12)
    if name == "stsb":
        assert figures["corr"] == (figures["pearson"] + figures["spearman"]) / 2


@pytest.mark.parametrize("name", ["cola", "stsb", "mrpc", "squad", "squad_v2", "rouge"])
def test_nothing_to_score_is_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=r"^(no predictions|no questions|there is no summary) to score"):
        metric(name).compute(predictions=[], references=[])


def test_squad() -> None:
    golds = {key: texts for key, texts in GOLDS.items() if texts}
    predictions = [{"id": key, "prediction_text": TEXTS[key]} for key in golds]
    figures = metric("squad").compute(predictions=predictions, references=references()[:2])
    assert figures == {name: squad.squad_metrics(TEXTS, golds)[name] for name in ("exact", "f1")}


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_squad_2(threshold: float) -> None:
    predictions = [{"id": k, "prediction_text": TEXTS[k], "no_answer_probability": ODDS[k]} for k in GOLDS]
    figures = metric("squad_v2").compute(
        predictions=predictions, references=references(), no_answer_threshold=threshold
    )
    given = {key: "" if ODDS[key] > threshold else text for key, text in TEXTS.items()}
    assert figures == squad.squad_metrics(given, GOLDS) | squad.best_thresholds(TEXTS, ODDS, GOLDS)


@pytest.mark.parametrize("name", ["rouge", "xsum", "cnn_dailymail"])
def test_rouge(name: str) -> None:
    figures = metric(name).compute(predictions=SUMMARIES[0], references=SUMMARIES[1])
    assert figures == rouge.summarize(rouge.rouge_scores(*SUMMARIES))


def test_metrics_combine_and_take_batches() -> None:
    import evaluate

    both = evaluate.combine([metric("accuracy+f1"), metric("matthews_correlation")])
    for start in (0, 4):
        both.add_batch(predictions=PREDICTED[start : start + 4], references=LABELS[start : start + 4])
    expected = metric("accuracy+f1").compute(predictions=PREDICTED, references=LABELS)
    assert both.compute() == expected | metric("cola").compute(predictions=PREDICTED, references=LABELS)


@pytest.mark.parametrize(
    ("name", "message"),
    [("bleu", "unknown metric 'bleu'; valid: mnli"), ("accuracy+corr", "some figures are of classes, some of scores")],
)
def test_metrics_that_are_none(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("+", r"\+")):
        metric(name)


def test_evaluate_is_imported_with_the_first_metric_only() -> None:
    code = (
        "import sys; from adalora_repro import metrics; from adalora_repro.metrics import glue, rouge, squad\n"
        "from adalora_repro.cli import model\n"
        "print([name for name in ('evaluate', 'datasets', 'torch', 'numpy', 'omegaconf') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, encoding="utf-8") == "[]\n"
