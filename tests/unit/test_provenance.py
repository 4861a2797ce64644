"""provenance.py: what it reads of a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from adalora_repro.records.provenance import has_bf16_instructions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: A\nflags\t\t: fpu avx2 avx512_bf16\n", True),
        ("flags\t\t: amx_bf16 fpu\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx avx2\n", False),
        ("flags\t\t: fpu avx512_bf16x\n", False),
        ("nothing of the kind\n", None),
    ],
)
def test_bf16_instructions_are_read_from_the_flags_of_a_cpu(text: str, expected: bool | None, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
    assert has_bf16_instructions(tmp_path / "cpuinfo") is expected
    assert has_bf16_instructions(tmp_path / "none") is None
