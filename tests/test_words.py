"""Docstrings, comments and messages use plain English, not words of this project."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "distill_jax"
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "data/README.md"]
# Calls whose string arguments a user reads.
MESSAGES = {"UserError", "Unfinished", "say", "announce", "warn", "print"}
# What each should be instead is beside it.
PLAINER = {
    r"told": "reported, given, set",
    r"bears?|borne": "allows, carries",
    r"whom": "name the person or thing",
    r"so many": "a number of, at most",
    r"(?:go|goes|going|gone|went) on with": "resume, continue",
    r"asked (?:of|for)|what is asked": "requested, expected",
    r"go(?:es)? out": "is sent, is written",
    r"brings|brought": "has, gives, holds",
    r"is of the kind": "is",
    r"anew": "again",
    r"time and again|round and round|in vain": "repeatedly, without result",
    r"mend(?:s|ed)?": "correct, fix",
    r"is due": "is expected",
    r"at its end": "used up",
    r"stands? behind": "follows",
    r"(?<!there )(?:is|are) no (?!longer|more|better|worse|place)": "is not a",
}
FORBIDDEN = re.compile(rf"\b(?:{'|'.join(PLAINER)})\b", re.IGNORECASE)


def prose(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each docstring, comment and message of a module."""
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            constant = body[0].value
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                yield constant.lineno, constant.value
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in MESSAGES:
                yield from ((node.lineno, text) for text in literals(node))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def literals(call: ast.Call) -> Iterator[str]:
    """The text of each argument, without the values that are formatted into it."""
    for argument in call.args:
        constants = (n for n in ast.walk(argument) if isinstance(n, ast.Constant))
        yield " {} ".join(n.value for n in constants if isinstance(n.value, str))


def found(source: str) -> list[str]:
    return [
        f"line {line}: {match[0]!r}"
        for line, text in prose(source)
        for match in FORBIDDEN.finditer(" ".join(text.split()))
    ]


@pytest.mark.parametrize(
    "source",
    [
        '"""A run is not gone on with."""',
        "x = 1  # keeps at most so many",
        "def f():\n    raise UserError(f'{x} is no number', 'mend the line')",
        "class A:\n    '''The user\n    is told of it.'''",
    ],
)
def test_private_words_are_found_wherever_a_reader_meets_them(source):
    assert found(source)


def test_a_name_or_a_value_is_not_prose():
    assert not found("told = {'brings': 1}\nthere_is = 'no more is due'")
    assert not found('"""There is no such file, and it is no longer there."""')


def test_the_package_is_written_in_plain_words():
    wrong = [
        f"{path.relative_to(PACKAGE)}, {place}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for place in found(path.read_text(encoding="utf-8"))
    ]
    assert not wrong, "\n".join([*wrong, f"plainer words: {PLAINER}"])


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_is_written_in_plain_words(page):
    assert not FORBIDDEN.findall(page.read_text(encoding="utf-8"))


def test_the_headers_of_recipes_are_written_in_plain_words():
    for path in sorted(ROOT.glob("gin_configs/**/*.gin")):
        lines = path.read_text(encoding="utf-8").splitlines()
        comments = " ".join(line.lstrip("# ") for line in lines if line[:1] == "#")
        assert not FORBIDDEN.findall(comments), path.name
