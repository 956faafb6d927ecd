"""The house rules of imports, read from the source: nothing has to be importable."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "distill_jax"
# Whole numbers are the floors of a house; what follows the point is the order of the
# rooms that lie on one floor. A room imports what is below it, never its equals.
FLOORS = {
    "io": 0.0,
    "text": 0.1,
    "collections": 0.2,
    "runs": 0.3,
    "labels": 0.4,
    "evaluation": 0.5,
    "lists": 0.5,
    "batches": 1,
    "ops": 1,
    "runtime": 1,
    "losses": 1.5,
    "protocols": 1.5,
    "models": 2,
    "inference": 3,
    "weights": 3,
    "inputs": 4,
    "training": 4,
    "retrieval": 4,
    "teaching": 4,
    "synthesis": 4,
    "export": 4,
    "report": 4,
    "workspace": 5.0,
    "recipe": 5.1,
    "jobs": 5.2,
    "predictor": 5.2,
    "cli": 6,
    "main": 7,
}
NUMPY_ONLY = {room for room, floor in FLOORS.items() if floor < 1}
# Who may import what is kept in one place, also inside functions.
KEPT = {
    "gin": {"main"},
    "tensorflow": {"inputs"},
    "seqio": {"inputs"},
    "jax": set(FLOORS) - NUMPY_ONLY,
    "flax": set(FLOORS) - NUMPY_ONLY,
    "tensorflow_datasets": {
        "collections",
        "labels",
    },  # question sets and label folders, by their reader
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
        ("runs/run.py", "import jax.numpy as jnp", "jax in runs"),
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
    source = "from distill_jax.training import step\nfrom distill_jax import models, io"
    assert not offences(source, PACKAGE / "training/loop.py")
