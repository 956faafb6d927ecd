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
    "api": 8,
    "__main__": 8,
}
NUMPY_ONLY = {room for room, floor in FLOORS.items() if floor < 1}
# Who may import what is kept in one place, also inside functions.
KEPT = {
    "gin": {"cli"},
    "tensorflow": {"inputs"},
    "seqio": {"inputs"},
    "jax": set(FLOORS) - NUMPY_ONLY,
    "flax": set(FLOORS) - NUMPY_ONLY,
    "tensorflow_datasets": {
        "collections",
        "labels",
    },  # question sets and label folders, by their reader
}


# Loaded when they are used: what stands in them imports a heavy package at once.
HEAVY = {"retrieval.kernels"}  # numba


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(source: str | ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, wherever it stands, relative ones resolved.

    ``import_module("distill_jax....")`` counts, also as the start of an f-string.
    """
    package = ["distill_jax", *path.relative_to(PACKAGE).parent.parts]
    tree = ast.parse(source) if isinstance(source, str) else source
    for node in ast.walk(tree):
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


def late_imports(source: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of the house's own imports that stand inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for line, module in imported(node, path):
                if module.startswith("distill_jax.") and not _by_name(node):
                    yield line, module


def _by_name(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Loads the module of a name when the name is met: a registry, lazy names."""
    return any(
        isinstance(node, ast.Call) and _names_import(node.func)
        for node in ast.walk(function)
    )


def late_offences(source: str, path: Path) -> list[str]:
    """Imports inside functions that nothing heavy excuses, as ``file:line: why``."""
    room, found = room_of(path), []
    for line, module in late_imports(source, path):
        other = module.split(".")[1]
        where = f"{path.relative_to(PACKAGE.parent)}:{line}"
        file = ".".join(module.split(".")[1:3])
        if file in HEAVY:
            continue
        if other == room:
            found.append(f"{where}: {module} is in the same room: import it above")
        elif FLOORS.get(other, 9) < 1 and FLOORS.get(room, 9) < FLOORS["workspace"]:
            found.append(f"{where}: {module} is light: import it above")
    return found


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, straight or by others."""
    reach = {module: set(others) for module, others in imports.items()}
    for middle in reach:
        for module in reach:
            if middle in reach[module]:
                reach[module] |= reach[middle]
    found = {
        tuple(sorted(m for m in reach if m in reach[module] and module in reach[m]))
        for module in reach
        if module in reach[module]
    }
    return [list(group) for group in sorted(found)]


def imports_between(sources: dict[str, tuple[str, Path]]) -> dict[str, set[str]]:
    """Each module's imports of other modules, those of type checkers too."""
    found: dict[str, set[str]] = {}
    for name, (source, path) in sources.items():
        found[name] = set()
        for _, module in imported(source, path):
            while module and module not in sources:
                module = module.rpartition(".")[0]
            # A package that gives names lazily imports nothing by itself.
            if module not in ("", name, "distill_jax"):
                found[name].add(module)
    return found


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


def test_no_modules_import_each_other():
    sources = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if path.name != "__init__.py":
            sources[".".join(parts)] = (path.read_text(encoding="utf-8"), path)
    assert len(sources) > 100
    assert not circles(imports_between(sources))


def test_imports_stand_at_the_top():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        found += late_offences(path.read_text(encoding="utf-8"), path)
    assert not found, "\n".join(found)


def test_a_circle_is_seen_also_behind_type_checking_and_inside_functions():
    texts = {
        "a": "from distill_jax.runs import b",
        "b": "if TYPE_CHECKING:\n    from distill_jax.runs.c import C",
        "c": "def f():\n    from distill_jax.runs.a import A",
        "d": "from distill_jax.runs.a import A",
    }
    sources = {
        f"distill_jax.runs.{name}": (text, PACKAGE / f"runs/{name}.py")
        for name, text in texts.items()
    }
    (group,) = circles(imports_between(sources))
    assert group == [f"distill_jax.runs.{name}" for name in "abc"]


@pytest.mark.parametrize(
    ("file", "source", "seen"),
    [
        ("models/t5.py", "from distill_jax.models import bert", True),
        ("teaching/a.py", "from distill_jax.text.buckets import plan", True),
        ("teaching/a.py", "from distill_jax.weights import load", False),
        ("retrieval/postings.py", "from distill_jax.retrieval import kernels", False),
        ("models/a.py", "import_module(f'distill_jax.models.{name}')", False),
    ],
)
def test_a_late_import_is_seen_unless_it_is_heavy(file, source, seen):
    assert bool(late_offences(f"def f():\n    {source}", PACKAGE / file)) == seen


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


def test_one_module_asks_what_is_computed_on():
    """A program is compiled for the devices of its mesh, not for this machine's."""
    asking = [
        str(path.relative_to(PACKAGE))
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if getattr(node, "attr", "") == "default_backend"
    ]
    assert asking == ["runtime/placement.py"]


def test_ids_are_not_looked_up_in_loops():
    """Each look-up may pass over all ids of a collection of millions."""
    loops = (ast.For, ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp)
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for loop in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(loop, loops):
                continue
            for node in ast.walk(loop):
                if (
                    isinstance(node, ast.Call)
                    and getattr(node.func, "attr", "") == "rows"
                    and node.args
                    and isinstance(node.args[0], ast.List)
                    and len(node.args[0].elts) == 1
                ):
                    found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    # The report shows a few dozen queries.
    assert {place.split(":")[0] for place in found} <= {"report/data.py"}
