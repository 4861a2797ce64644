"""The files of ``conf/`` and ``sweeps/`` as lists of choices: what there is to choose, and in one line what each is.

Reads YAML alone, no Hydra and no OmegaConf, so that reports may ask too. The folder of ``--config-dir`` counts as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from adalora_repro.errors import InputError, one_of
from adalora_repro.models import sites

#: groups of which a run chooses one file each
GROUPS = ("task", "method", "budget", "backbone", "data", "protocol", "tuned")
#: what a method is in a comparison
ROLES = {
    "paper": "a method of the paper's main tables",
    "ablation": "a variant in the paper's tables that shows what one part contributes",
    "control": "a variant beyond the paper that rules out another explanation",
    "cross-check": "another program's version of a method of the paper",
    "other": "a method that the paper does not have",
}
PROPOSED = "adalora"  # the method that the paper proposes; the others are what it is compared with


#: ten times as fast as ``yaml.safe_load``, where PyYAML was built with libyaml
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Entry:
    """One choice of a group: its id on the command line, and its description in one line."""

    id: str
    description: str


@dataclass(frozen=True)
class MethodEntry(Entry):
    """A method: ``label`` is its name in tables, ``role`` one of ``ROLES``."""

    label: str
    role: str

    @property
    def variant(self) -> bool:
        """Whether it is an ablation or a control: only the tables that name it have rows of it."""
        return self.role in ("ablation", "control")

    @property
    def baseline(self) -> bool:
        """Whether the proposed method is compared with it."""
        return self.role in ("paper", "other") and self.id != PROPOSED


@cache
def methods() -> Mapping[str, MethodEntry]:
    """Every method, by its id.

    Raises:
        InputError: a method's file has a role that does not exist.
    """
    methods = {}
    for name, entry in entries("method").items():
        keys = section(base_files("method", name)[0], "method")  # a variant is not what it builds on
        role = keys.get("role", "other")
        if role not in ROLES:
            raise one_of(f"method.role of '{name}'", role, ROLES)
        methods[name] = MethodEntry(name, entry.description, str(keys.get("label", name)), role)
    return methods


def method(name: str) -> MethodEntry:
    """The entry of a method; without a file in ``conf/method`` its label is its id, its role ``other``."""
    return methods().get(name) or MethodEntry(name, "", name, "other")


def entries(group: str) -> dict[str, Entry]:
    """Every choice of a group, by its id; budgets of a task family together, smallest first."""
    if group == "sweep":
        folders = [resource("sweeps"), *(folder / "sweep" for folder in _added)]
        files = {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}
    else:
        names = choices_of(group)
        if group == "budget":
            names = sorted(names, key=[*budget_families(), *names].index)
        files = {name: base_files(group, name)[0] for name in names}
    return {name: Entry(name, description(path)) for name, path in files.items()}


@cache
def budget_families() -> dict[str, str]:
    """Budget label -> family of tasks, from ``conf/budget``, smallest first."""
    files = [read(path) for path in (resource("conf") / "budget").glob("*.yaml")]
    files.sort(key=lambda budget: (budget["family"], float(budget["label"].rstrip("%M"))))
    return {budget["label"]: budget["family"] for budget in files}


def sizes_of(method: str) -> Mapping[str, Mapping[str, Any]] | None:
    """Budget -> options of a method: ``sizes`` of its file or the nearest it builds on; None: it has one size.

    Raises:
        InputError: a file is not YAML, or not a mapping.
    """
    files = (section(path, "method") for path in base_files("method", method))
    return next((keys["sizes"] for keys in files if "sizes" in keys), None)


def description(path: Path) -> str:
    """The first sentence of the comment at a file's head."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            words.append(line.lstrip("# "))
    return re.split(r"(?<=[.?])(?<!eq\.)(?<!al\.)\s", " ".join(words), maxsplit=1)[0]


def read(path: Path) -> Mapping[str, Any]:
    """The settings of a file.

    Raises:
        InputError: the file is not YAML, or not a mapping, or its ``defaults`` are no list.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), LOADER) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold settings, key: value")
    if not isinstance(content.get("defaults", []), list):
        raise InputError(f"{path}: defaults must be a list")
    return content


def section(path: Path, name: str) -> Mapping[str, Any]:
    """The settings below one key of a file; none if the file does not have it.

    Raises:
        InputError: as ``read``, or the key has a value instead of settings.
    """
    content = read(path).get(name) or {}
    if not isinstance(content, dict):
        raise InputError(f"{path}: {name} must hold settings, key: value")
    return content


_added: list[Path] = []


def add_folder(folder: str | None) -> None:
    """Stores the folder of ``--config-dir`` and forgets an earlier one; None: there is none.

    Raises:
        InputError: a file has the name of one in ``conf/``, which would be read in its place.
    """
    conf, added = resource("conf"), [] if folder is None else [Path(folder)]
    for path in sorted(conf.glob("*/**/*.yaml")) if added else ():
        name = path.relative_to(conf)
        if (added[0] / name).is_file():
            raise InputError(f"{added[0] / name}: conf/{name} has this name and would be read instead; rename it")
    _added[:] = added
    methods.cache_clear()
    sites.add_folder(None if folder is None else Path(folder) / "sites")


def added_folders() -> list[Path]:
    """The folder of ``--config-dir``, if there is one, as it was typed."""
    return list(_added)


def base_files(group: str, choice: str) -> list[Path]:
    """The file of a choice, then the files of its group that it builds on (``defaults``); the first with a key wins.

    Like Hydra, it looks in ``conf/`` first, then in the folder of ``--config-dir``.
    """
    paths = [folder / group / f"{choice}.yaml" for folder in (resource("conf"), *_added)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return []
    bases = [base for base in read(path).get("defaults", []) if isinstance(base, str)]
    return [path, *(file for base in bases if base not in ("_self_", choice) for file in base_files(group, base))]


def choices_of(group: str) -> list[str]:
    """The choices of a group, including those of ``--config-dir``."""
    return sorted({path.stem for folder in (resource("conf"), *_added) for path in (folder / group).glob("*.yaml")})


def resource(name: str) -> Path:
    """Folder ``conf``, ``sweeps`` or ``results``: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    return package / name if (package / name).is_dir() else package.parent / name
