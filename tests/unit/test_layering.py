"""Imports point downward only (docs: layout), and what must start fast imports nothing heavy."""

import ast
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import adalora_repro

PACKAGE = Path(adalora_repro.__file__).parent
CONF = PACKAGE.parent / "conf"
#: from the bottom up; rooms on one line may not import each other (a room's own modules may)
ROOMS = ["__init__", "errors", "settings", "lowrank records", "models", "metrics", "tasks", "methods"]
ROOMS += ["config", "reports", "training", "cli"]
RANK = {name: rank for rank, names in enumerate(ROOMS) for name in names.split()}
HEAVY = {"torch", "transformers", "datasets", "accelerate", "numpy", "scipy", "sklearn", "pandas", "peft"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def unit(path: Path) -> str:
    """``lowrank`` for ``lowrank/layers.py``, ``plan`` for ``plan.py``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path, module_level: bool = False) -> set[str]:
    """Full names of imported modules and names (``from a import b`` counts as a.b); annotations do not count."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if is_type_checking(child):
                continue
            if module_level and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                found.update(f"{child.module}.{alias.name}" for alias in child.names)
            walk(child)

    walk(ast.parse(path.read_text(encoding="utf-8")))
    return found


def units_imported(path: Path, module_level: bool = False) -> set[str]:
    names = [name.split(".") for name in imports(path, module_level)]
    own = [parts for parts in names if parts[0] == PACKAGE.name and len(parts) > 1]
    return {parts[1] if parts[1] in RANK else "__init__" for parts in own}


def test_every_module_lies_in_a_room() -> None:
    assert {unit(path) for path in MODULES} == set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    here = unit(path)
    api = path == PACKAGE / "__init__.py"  # imports the room that a user asks for when it is asked for
    for other in units_imported(path, module_level=api) - {here}:
        assert RANK[other] < RANK[here], f"{here} imports {other}"


def test_the_paper_s_core_needs_torch_and_nothing_else() -> None:
    for path in (PACKAGE / "lowrank").glob("*.py"):
        roots = {name.split(".")[0] for name in imports(path)}
        assert roots <= {"torch", PACKAGE.name} | set(sys.stdlib_module_names), path
        assert units_imported(path) <= {"lowrank"}, path


@pytest.mark.parametrize("name", ["__init__", "cli", "config", "errors", "records", "reports", "tasks"])
def test_what_starts_fast_imports_nothing_heavy_by_itself(name: str) -> None:
    seen: set[Path] = set()
    queue = [path for path in MODULES if unit(path) == name]
    while queue:
        path = queue.pop()
        if path in seen:
            continue
        seen.add(path)
        names = imports(path, module_level=True)
        assert not {imported.split(".")[0] for imported in names} & HEAVY, path
        for imported in names:
            parts = imported.split(".")
            if parts[0] != PACKAGE.name:
                continue
            for end in range(1, len(parts) + 1):
                base = PACKAGE.joinpath(*parts[1:end])
                queue += [file for file in (base / "__init__.py", base.with_suffix(".py")) if file.is_file()]
    if name == "tasks":  # families too: a plan builds the task it is for
        assert {"base.py", "glue.py", "squad.py", "summarization.py"} <= {path.name for path in seen}


@pytest.mark.parametrize("module", ["loop", "evaluate", "state", "batches", "folder"])
def test_the_loop_names_no_method_and_no_task(module: str) -> None:
    names = {path.stem for group in ("method", "task") for path in (CONF / group).glob("*.yaml")}
    modules = {path.stem for folder in ("methods", "tasks") for path in (PACKAGE / folder).glob("[!_]*.py")} - {"base"}
    ids = names | {OmegaConf.load(path).method.get("module") for path in (CONF / "method").glob("*.yaml")} | modules
    ids -= {None, "processes"}  # of a file that takes it from another; tasks/processes.py is no family
    assert {"adalora", "cola", "glue"} <= ids
    tree = ast.parse((PACKAGE / "training" / f"{module}.py").read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]
    assert texts
    for text in texts:
        assert not set(text.replace("/", " ").replace(".", " ").split()) & (ids - {"full"}), text
        assert text != "full"
    identifiers = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not identifiers & ids


def test_no_module_is_imported_through_another_s_private_name() -> None:
    """``from adalora_repro.x import _y`` ties two modules where nobody sees it."""
    for path in MODULES:
        for name in imports(path):
            parts = name.split(".")
            private = parts[0] == PACKAGE.name and any(part.startswith("_") for part in parts[2:])
            within = len(parts) > 1 and parts[1] == unit(path)
            dunder = parts[-1].startswith("__")
            assert not private or within or dunder, f"{path}: {name}"
