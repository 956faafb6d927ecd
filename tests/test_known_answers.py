"""Every known answer of the papers' code is asked for by some test."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def _constants(path: Path) -> set[str]:
    """The strings of a module's code; docstrings and comments ask for nothing."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in prose
    }


def test_no_case_is_left_out(cases):
    others = [path for path in TESTS.rglob("test_*.py") if path != Path(__file__)]
    named = set().union(*map(_constants, others))
    assert sorted(set(cases) - named) == []
    assert len(cases) >= 68
