"""Methods whose definition was corrected: the first revision whose records count, and why.

``CORRECTED`` alone lists them. ``config`` writes a method's current revision into the settings of a run, and so into
its identity: a run trained with an earlier definition is another run, never "already done". Reports refuse records of
an earlier revision and print the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adalora_repro.records.run_record import RunRecord

SETTING = "method.revision"  # without it a record is of revision 1


@dataclass(frozen=True)
class Correction:
    """``revision``: the first that counts; ``reason``: the error before it, as text that follows a colon."""

    revision: int
    reason: str


#: ``method.module`` -> its last correction; a module that is not listed is at revision 1
CORRECTED = {
    "pfeiffer": Correction(
        2, "it added the adapter's output after the LayerNorm, not before it (docs/deviations.md, row 26)"
    )
}


def present(module: str) -> dict[str, int]:
    """The revision for the settings of a new run; nothing at revision 1, so that old runs keep their identity."""
    return {SETTING: CORRECTED[module].revision} if module in CORRECTED else {}


def outdated(record: RunRecord) -> str | None:
    """Why the record does not count; None if its method has not been corrected since."""
    module = record.settings.get("method.module", record.key["method"])
    correction = CORRECTED.get(module) if isinstance(module, str) else None
    if correction is None:
        return None
    revision = record.settings.get(SETTING, 1)
    if isinstance(revision, int) and revision >= correction.revision:
        return None
    return f"made with an earlier definition of '{module}' (revision {revision}, now {correction.revision}): " + (
        correction.reason
    )
