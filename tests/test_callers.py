"""Nothing is kept that no recipe, no documented name and no other code can reach."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from distill_jax.recipe.registry import PARTS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "distill_jax"
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
# Called by what a class or a module is made for.
HOOKS = {
    "build_job",  # tests, for what a command line builds
    "configurable_reference",  # gin's parser
    "find_class",  # pickle
    "handle_data",  # html.parser
    "handle_endtag",  # html.parser
    "handle_starttag",  # html.parser
    "persistent_load",  # pickle
    "should_preserve",  # orbax
}


def definitions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """(dotted name, node) of public functions, classes and methods of a module."""
    for node in tree.body:
        if isinstance(node, (*FUNCTION, ast.ClassDef)) and not _private(node.name):
            yield node.name, node
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, FUNCTION) and not _private(inner.name):
                    yield f"{node.name}.{inner.name}", inner


def _private(name: str) -> bool:
    return name.startswith("_")


def used(nodes: Iterable[ast.AST], *, texts: bool = False) -> Iterator[str]:
    """Names that code reads: attributes, variables, and texts that are a whole name.

    An import alone reads nothing, nor does ``__all__``.
    """
    skipped = {
        id(constant)
        for node in nodes
        if texts
        and isinstance(node, ast.Assign)
        and any(getattr(target, "id", "") == "__all__" for target in node.targets)
        for constant in ast.walk(node.value)
    }
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif (
            texts
            and isinstance(node, ast.Constant)
            and id(node) not in skipped
            and str(node.value).isidentifier()
        ):
            yield str(node.value)


def reads_of_others(nodes: list[ast.AST]) -> Iterator[str]:
    """What a module may read of others: its own variables are not theirs.

    Texts count in modules that look names up late.
    """
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    imported = {a.asname or a.name for node in imports for a in node.names}
    late = any(getattr(node, "id", "") == "import_module" for node in nodes)
    late |= any(getattr(node, "attr", "") == "import_module" for node in nodes)
    variables = {node.id for node in nodes if isinstance(node, ast.Name)}
    for name in used(nodes, texts=late):
        if name not in variables or name in imported or late:
            yield name
    yield from (node.attr for node in nodes if isinstance(node, ast.Attribute))
    for node in imports:  # read under another name
        yield from (a.name for a in node.names if a.asname in variables)


def without_callers(
    sources: dict[str, str], *, callers: dict[str, str], documented: set[str]
) -> list[str]:
    """``file: name`` of what is public and read by nothing but itself."""
    trees = {path: ast.parse(source) for path, source in sources.items()}
    nodes = {path: list(ast.walk(tree)) for path, tree in trees.items()}
    outside = [list(ast.walk(ast.parse(source))) for source in callers.values()]
    read = {path: set(reads_of_others(nodes[path])) for path in nodes}
    readers = Counter(
        name
        for names in [*read.values(), *(set(reads_of_others(n)) for n in outside)]
        for name in names
    )
    found = []
    for path, tree in trees.items():
        here = Counter(used(nodes[path]))
        for name, node in definitions(tree):
            last = name.rpartition(".")[2]
            if readers[last] > (last in read[path]) or last in documented:
                continue
            if here[last] == Counter(used([*ast.walk(node)]))[last]:
                found.append(f"{path}: {name}")
    return found


def read(*folders: Path) -> dict[str, str]:
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for folder in folders
        for path in sorted(folder.rglob("*.py"))
    }


def documented() -> set[str]:
    """Parts of recipes, and names that the pages for Python give as code."""
    pages = "\n".join(
        path.read_text(encoding="utf-8")
        for path in [
            ROOT / "docs" / "python.md",
            *sorted((ROOT / "docs" / "howto").glob("own-*.md")),
        ]
    )
    code = re.findall(r"```python\n(.*?)```|`([^`\n]+)`", pages, re.DOTALL)
    words = {w for pair in code for text in pair for w in re.findall(r"\w+", text)}
    return words | {name for names in PARTS.values() for name in names}


def test_every_public_function_has_a_caller_or_a_place_in_the_documentation():
    found = without_callers(
        read(PACKAGE), callers=read(ROOT / "tools"), documented=documented() | HOOKS
    )
    assert not found, "\n".join(found)


def test_every_hook_is_still_there():
    everything = "\n".join(read(PACKAGE).values())
    assert all(f"def {name}(" in everything for name in HOOKS)


def test_what_nothing_calls_is_seen():
    sources = {
        "a.py": "def dead(n):\n    return dead(n - 1)\n\ndef alive(): ...\n",
        "b.py": "from a import dead, alive\n__all__ = ['dead']\nalive()\n",
        "c.py": "class C:\n    def never(self): ...\n    def once(self): ...\n"
        "    def _own(self): ...\nC().once()\n",
        "d.py": "import_module(n)\nLATE = {'x': 'named'}\n",
        "e.py": "def named(): ...\ndef told(): ...\ndef mine(): ...\n",
        "f.py": "mine = 3\nprint(mine, 'mine')\n",
    }
    found = without_callers(sources, callers={}, documented={"told"})
    assert found == ["a.py: dead", "c.py: C.never", "e.py: mine"]
