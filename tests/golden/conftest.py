"""``golden`` compares with a file below tests/golden, or writes it; ``cli`` calls adalora-run in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli.conftest import cli  # noqa: F401

from golden.compare import Tolerance, differences, parse, written

HERE = Path(__file__).parent
SHOWN = 40  # differences of one file

Golden = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the files of tests/golden again")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """``golden(name, value)``: the file ``name`` holds this value; its suffix (.csv, .json, .txt) is its form.

    All must be equal but, with ``tolerance``, numbers with a fraction: see ``compare.differences``. ``only=True``: the
    file holds more entries than ``value``, and is not written.
    """
    update = request.config.getoption("--update-golden", default=False)

    def check(name: str, value: Any, tolerance: Tolerance | None = None, only: bool = False) -> None:
        path = HERE / name
        expected = parse(path.read_text(encoding="utf-8"), path.suffix) if path.exists() else None
        if only and expected is not None:
            expected = {key: entry for key, entry in expected.items() if key in value}
        problems = differences(expected, value, tolerance)
        if problems and update and not only:
            path.parent.mkdir(exist_ok=True)
            path.write_text(written(value, path.suffix), encoding="utf-8")
        elif problems:
            rest = [f"… and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
            text = "\n  ".join([*problems[:SHOWN], *rest])
            pytest.fail(f"{path.name} differs (--update-golden writes it again):\n  {text}", pytrace=False)

    return check
