"""The figures as ``evaluate.Metric``s, for ``evaluate.combine``, anyone's Trainer and ``adalora-model score``.

They take what the modules of the same names on the hub take, and need no network. Importing this module imports
``evaluate``; ``adalora_repro.metrics.metric`` does so when it is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, List, Value

from adalora_repro.errors import InputError, one_of
from adalora_repro.metrics import glue, rouge, squad


class Glue(evaluate.Metric):
    """Figures of GLUE, fractions of 1; ``config_name`` is a task of GLUE or figures joined by plus signs.

    Raises:
        InputError: an unknown figure, or figures of classes together with figures of scores.
        ValueError: nothing to score.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The figures that it computes."""
        return glue.TASKS.get(self.config_name) or tuple(self.config_name.split("+"))

    def _info(self) -> evaluate.MetricInfo:
        for name in self.names:
            if name not in glue.METRICS:
                raise one_of("metric", name, (*glue.TASKS, "squad", "squad_v2", "rouge", *glue.METRICS))
        of_scores = {name in glue.OF_SCORES for name in self.names}
        if len(of_scores) > 1:
            raise InputError(f"metric '{self.config_name}': some figures are of classes, some of scores")
        kind = Value("float64" if of_scores == {True} else "int64")
        return evaluate.MetricInfo(
            description="Figures of GLUE; where one is undefined (a correlation with a constant) it is 0.",
            citation="Wang et al. (2019), GLUE: A Multi-Task Benchmark and Analysis Platform, ICLR",
            inputs_description="predictions, references: classes, or scores for pearson, spearman and corr.",
            features=Features({"predictions": kind, "references": kind}),
        )

    def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        if not len(references):
            raise ValueError("no predictions to score")
        labels, predicted = np.asarray(references), np.asarray(predictions)
        return {name: glue.METRICS[name](labels, predicted) for name in self.names}


class Squad(evaluate.Metric):
    """Exact match and F1 in percent; ``config_name`` is ``squad`` or ``squad_v2``."""

    def _info(self) -> evaluate.MetricInfo:
        prediction = {"id": Value("string"), "prediction_text": Value("string")}
        if self.config_name == "squad_v2":
            prediction["no_answer_probability"] = Value("float64")
        answers = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
        return evaluate.MetricInfo(
            description="Exact match and F1 as SQuAD's own scripts define them; 2.0: also with the best threshold.",
            citation="Rajpurkar et al. (2016), SQuAD, EMNLP; Rajpurkar, Jia and Liang (2018), SQuAD 2.0, ACL",
            inputs_description="predictions: id, prediction_text, 2.0 also no_answer_probability (or any odds); "
            "references: id, answers; no_answer_threshold: probabilities above it mean no answer (2.0, default 1).",
            features=Features({"predictions": prediction, "references": {"id": Value("string"), "answers": answers}}),
        )

    def _compute(
        self,
        predictions: Sequence[Mapping[str, Any]],
        references: Sequence[Mapping[str, Any]],
        no_answer_threshold: float = 1.0,
    ) -> dict[str, float]:
        texts = {row["id"]: row["prediction_text"] for row in predictions}
        golds = {row["id"]: row["answers"]["text"] for row in references}
        if self.config_name == "squad":
            figures = squad.squad_metrics(texts, golds)
            return {name: figures[name] for name in ("exact", "f1")}
        odds = {row["id"]: row["no_answer_probability"] for row in predictions}
        given = {key: "" if odds[key] > no_answer_threshold else text for key, text in texts.items()}
        return squad.squad_metrics(given, golds) | squad.best_thresholds(texts, odds, golds)


class Rouge(evaluate.Metric):
    """ROUGE F-measures in percent with their 95% intervals (``<name>_low``, ``<name>_high``)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="ROUGE-1, -2, -L and -Lsum of rouge-score, Porter stems, one sentence a line.",
            citation="Lin (2004), ROUGE: A Package for Automatic Evaluation of Summaries, ACL workshop",
            inputs_description="predictions, references: texts; lines and sentences are split here.",
            features=Features({"predictions": Value("string"), "references": Value("string")}),
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        return rouge.summarize(rouge.rouge_scores(predictions, references))
