"""Methods whose definition was corrected: the first revision whose records count, and why.

``CORRECTED`` alone lists them. ``config`` writes a method's current revision into the settings of a run, and so into
its identity: a run trained with an earlier definition is another run, never "already done". Reports refuse records of
an earlier revision and print the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adalora_repro.records.run_record import RunRecord

SETTING = "method.revision"  # without it a record is of revision 1
#: ``method.module`` -> the first revision that counts, and the error before it; others are at revision 1
CORRECTED = {
    "pfeiffer": (2, "it added the adapter's output after the LayerNorm, not before it (docs/deviations.md, row 26)")
}


def present(module: str) -> dict[str, int]:
    """The revision for the settings of a new run; nothing at revision 1, so that old runs keep their identity."""
    return {SETTING: CORRECTED[module][0]} if module in CORRECTED else {}


def outdated(record: RunRecord) -> str | None:
    """Why the record does not count; None if its method has not been corrected since."""
    module = record.settings.get("method.module", record.key["method"])
    if not isinstance(module, str) or module not in CORRECTED:
        return None
    (current, error), revision = CORRECTED[module], record.settings.get(SETTING, 1)
    if isinstance(revision, int) and revision >= current:
        return None
    return f"made with an earlier definition of '{module}' (revision {revision}, now {current}): {error}"
