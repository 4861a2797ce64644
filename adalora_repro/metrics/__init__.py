"""The figures of the tasks: plain functions, each also as an ``evaluate.Metric``.

``metric("cola")`` returns one of the latter; only then is ``evaluate`` imported, which takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import evaluate


def metric(name: str) -> evaluate.Metric:
    """The ``evaluate.Metric`` of a task or of some figures; needs no network.

    Args:
        name: a GLUE task (``cola``), ``squad``, ``squad_v2``, ``rouge`` (also ``xsum``, ``cnn_dailymail``), or figures
            of GLUE joined by plus signs (``accuracy+f1``).

    Raises:
        InputError: there is no such metric; names the valid ones.
    """
    from adalora_repro.metrics.evaluate_metrics import Glue, Rouge, Squad

    kinds = {"squad": Squad, "squad_v2": Squad, "rouge": Rouge, "xsum": Rouge, "cnn_dailymail": Rouge}
    return kinds.get(name, Glue)(name, keep_in_memory=True)  # or it writes below HF_HOME
