"""Records of a method whose definition was corrected: refused with the reason, and never "already done"."""

from pathlib import Path

import plans
import pytest
from fake_records import make, save

from adalora_repro.config import resolve as planning
from adalora_repro.config.plan import Plan
from adalora_repro.records import run_record
from adalora_repro.records.revisions import CORRECTED, SETTING, outdated, present

pytestmark = pytest.mark.usefixtures("hydra")


def test_a_variant_is_known_by_its_module() -> None:
    old = {"method.module": "pfeiffer"}
    reason = outdated(make(method="mine", settings=old))
    assert str(reason).startswith("made with an earlier definition of 'pfeiffer' (revision 1, now 2): it added")
    assert outdated(make(method="mine", settings=old | present("pfeiffer"))) is None
    assert outdated(make(method="pfeiffer", settings={"method.module": "mine"})) is None
    assert outdated(make(method="pfeiffer")) is None


def test_a_run_of_an_earlier_revision_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolved(method: str) -> Plan:
        return plans.resolved("task=rte", f"method={method}", "data=sample", f"results.dir={tmp_path}")

    now, other = resolved("pfeiffer"), resolved("houlsby")
    assert now.settings[SETTING] == CORRECTED["pfeiffer"][0]
    assert SETTING not in other.settings
    with monkeypatch.context() as patch:
        patch.setattr("adalora_repro.records.revisions.CORRECTED", {})
        before, same = resolved("pfeiffer"), resolved("houlsby")
    assert before.key["hash"] != now.key["hash"]
    assert before.key["variant"] != now.key["variant"]
    assert same.key == other.key
    save(tmp_path, make(**{name: before.key[name] for name in run_record.KEY_FIELDS}, settings=before.settings))
    assert planning.finished(before)
    assert planning.finished(now) is None
