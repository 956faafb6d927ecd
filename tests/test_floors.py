"""The house rules of imports, read from the source: nothing has to be importable."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "distill_jax"
FLOORS = {
    "ir": 0,
    "batches": 1,
    "ops": 1,
    # Half a floor up: a loss is written with the operations, a promise of batches.
    "losses": 1.5,
    "protocols": 1.5,
    "models": 2,
    "inputs": 3,
    "training": 3,
    "retrieval": 3,
    "teaching": 3,
    "synthesis": 3,
    "export": 3,
    "report": 3,
    "jobs": 4,
    "predictor": 4,
    "main": 5,
}
# Who may import what is kept in one place, also inside functions.
KEPT = {
    "gin": {"main"},
    "tensorflow": {"inputs"},
    "seqio": {"inputs"},
    "jax": set(FLOORS) - {"ir"},
    "flax": set(FLOORS) - {"ir"},
    "tensorflow_datasets": {"ir"},  # question sets and label folders, by their reader
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(source: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, wherever it stands, relative ones resolved.

    ``import_module("distill_jax....")`` counts, also as the start of an f-string.
    """
    package = ["distill_jax", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            # `from distill_jax import models` names a room by its alias.
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"
        elif isinstance(node, ast.Call) and _names_import(node.func) and node.args:
            text = node.args[0]
            if isinstance(text, ast.JoinedStr):
                text = text.values[0]
            if isinstance(text, ast.Constant):
                yield node.lineno, str(text.value)


def _names_import(function: ast.expr) -> bool:
    name = getattr(function, "attr", getattr(function, "id", ""))
    return name in ("import_module", "__import__")


def offences(source: str, path: Path) -> list[str]:
    """What a file imports and should not, as ``file:line: why``."""
    room = room_of(path)
    found = []
    for line, module in imported(source, path):
        where = f"{path.relative_to(PACKAGE.parent)}:{line}"
        top, _, rest = module.partition(".")
        if room not in KEPT.get(top, {room}):
            found.append(f"{where}: {top} in {room}")
        if top != "distill_jax" or room == "__init__":
            continue
        other = rest.split(".")[0]
        if other in FLOORS and other != room and FLOORS[other] >= FLOORS[room]:
            found.append(f"{where}: {room} imports {other}, which is not below it")
    return found


def test_every_file_lies_on_a_floor():
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert rooms == set(FLOORS)


def test_imports_go_down_only():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        found += offences(path.read_text(encoding="utf-8"), path)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("file", "source", "told"),
    [
        ("ir/run.py", "import jax.numpy as jnp", "jax in ir"),
        ("training/loop.py", "from distill_jax import inputs", "training imports"),
        ("models/t5.py", "from ..training import step", "models imports training"),
        ("jobs/stage.py", "def f():\n    import gin", "gin in jobs"),
        ("models/t5.py", "def f():\n    import tensorflow.data", "tensorflow in"),
        ("losses/a.py", "import_module(f'distill_jax.models.{x}')", "losses imports"),
        ("report/a.py", "from distill_jax.export import write", "report imports"),
    ],
)
def test_an_offence_is_seen(file, source, told):
    (found,) = offences(source, PACKAGE / file)
    assert told in found


def test_neighbours_in_a_room_and_rooms_below_are_free():
    source = "from distill_jax.training import step\nfrom distill_jax import models, ir"
    assert not offences(source, PACKAGE / "training/loop.py")
