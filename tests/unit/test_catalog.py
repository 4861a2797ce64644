"""What there is to choose: every file says in one line what it is, and every method its label and role."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from adalora_repro.config import catalog
from adalora_repro.errors import InputError


@pytest.fixture
def added(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "method").mkdir()
    catalog.add_folder(str(tmp_path))
    yield tmp_path
    catalog.add_folder(None)


@pytest.mark.parametrize("group", ["task", "method", "budget", "backbone", "protocol", "sweep"])
def test_every_choice_has_a_description_of_one_line(group: str) -> None:
    listed = catalog.entries(group)
    assert listed
    for name, entry in listed.items():
        assert entry.id == name
        assert 10 < len(entry.description) <= 140, entry
        assert "\n" not in entry.description


def test_roles_are_known_and_labels_differ() -> None:
    methods = catalog.methods()
    assert {entry.role for entry in methods.values()} <= set(catalog.ROLES)
    assert methods["adalora"].label == "AdaLoRA"
    assert len({entry.label for entry in methods.values()}) == len(methods)


def test_a_method_of_one_s_own(added: Path) -> None:
    text = "# @package _global_\n# Mine: by hand.\ndefaults: [lora, _self_]\nmethod:\n  name: mine\n"
    (added / "method" / "mine.yaml").write_text(text, encoding="utf-8")
    mine = catalog.methods()["mine"]
    assert (mine.label, mine.role, mine.description) == ("mine", "other", "Mine: by hand.")
    catalog.add_folder(None)
    assert "mine" not in catalog.methods()  # of another command line


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("method: {role: hero}", r"method\.role of 'mine' 'hero'.*; valid: paper, .*, cross-check, other"),
        ("defaults:", r"method/mine\.yaml: defaults must be a list"),
        ("method: 3", r"method/mine\.yaml: method must hold settings, key: value"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(added: Path, content: str, problem: str) -> None:
    (added / "method" / "mine.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=problem):
        catalog.methods()


def test_a_file_named_like_a_shipped_one_is_refused(added: Path) -> None:
    """Hydra would read the shipped one."""
    (added / "method" / "lora.yaml").write_text("method: {alpha: 7}", encoding="utf-8")
    with pytest.raises(InputError, match=r"method/lora\.yaml: conf/method/lora\.yaml has this name"):
        catalog.add_folder(str(added))
