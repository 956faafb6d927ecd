"""The embedded collection: the documentation of Python's standard library.

A document is what a docstring says after its summary line; the query is that summary
line; the one relevant document is the rest of the same docstring. Nothing is imported:
source files are parsed. So it needs no network, is the same on every machine with the
same release of Python, and depends on no installed package unless one is named.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from distill_jax.collections.collection import Collection, Documents, Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.io.cache import cache_dir
from distill_jax.io.errors import UserError, near
from distill_jax.io.files import digest
from distill_jax.io.reading import read_json, write_json

SPLITS = ("train", "dev", "test")
MAX_TEST_QUERIES = 300

_MODULES = """
    abc argparse ast asyncio base64 bdb bisect bz2 calendar cmd code codecs collections
    colorsys concurrent configparser contextlib copy csv ctypes dataclasses datetime
    decimal difflib dis doctest email enum filecmp fileinput fnmatch fractions ftplib
    functools getopt getpass gettext glob graphlib gzip hashlib heapq hmac html http
    imaplib importlib inspect io ipaddress json keyword linecache locale logging lzma
    mailbox mimetypes multiprocessing netrc ntpath numbers operator optparse os pathlib
    pdb pickle pickletools pkgutil platform plistlib poplib posixpath pprint profile
    pstats pyclbr pydoc queue quopri random re reprlib sched secrets selectors shelve
    shlex shutil signal smtplib socket socketserver sqlite3 ssl stat statistics string
    stringprep struct subprocess symtable sysconfig tabnanny tarfile tempfile textwrap
    threading timeit token tokenize trace traceback tracemalloc types typing unittest
    urllib uuid venv warnings wave weakref webbrowser wsgiref xml
    xmlrpc zipapp zipfile zipimport zoneinfo
"""
STANDARD_LIBRARY = tuple(_MODULES.split())
"""Modules that Python 3.11 to 3.13 all have; some systems keep tkinter apart."""

_FORMAT = 5
_SKIPPED = {"tests", "test", "testing", "examples", "_vendor", "f2py", "distutils"}
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_MAX_FILE_BYTES = 400_000
_MIN_QUERY_WORDS, _MAX_QUERY_WORDS = 4, 40
_MIN_DOC_WORDS = 15


@dataclasses.dataclass(frozen=True)
class Entry:
    """One documented object."""

    name: str
    summary: str
    body: str


def load(
    where: str, split: str, documents: Documents
) -> tuple[Collection, Queries, Qrels]:
    """Loads the documentation of the standard library, or of the packages named.

    Documents carry no titles: an object's name gives its summary's words away. Splits
    are made by a hash of the query's id: 70 % train, 10 % dev, 20 % test, at most
    ``MAX_TEST_QUERIES`` of them; the rest of the test share goes to train.

    Args:
        where: ``""``, or package names with commas.
        split: train, dev or test.

    Raises:
        UserError: no such split, or a package that is not installed.
    """
    if split not in SPLITS:
        raise UserError(
            f"pydocs: no split {split!r}{near(split, SPLITS)}",
            f"available splits: {', '.join(SPLITS)}",
        )
    entries = _distinct(where)
    asked = Counter(entry.summary.lower() for entry in entries)
    # A summary of several objects does not say which is meant.
    clear = [entry for entry in entries if asked[entry.summary.lower()] == 1]
    parts = _split(clear)
    if not parts[split]:
        raise UserError(
            f"pydocs:{where}: no query in split {split!r} ({len(entries)} documents)",
            "name more packages, or use pydocs alone",
        )
    chosen = parts[split]
    queries = Queries(
        [_query_id(entry) for entry in chosen],
        [entry.summary for entry in chosen],
        f"pydocs/{split}",
    )
    qrels = Qrels({_query_id(e): {e.name: 1} for e in chosen})
    return documents(), queries, qrels


def docs(where: str) -> Collection:
    """The documents of ``load``."""
    return _collection(_distinct(where), where)


def _distinct(where: str) -> list[Entry]:
    names = tuple(name.strip() for name in where.split(",") if name.strip())
    bodies: dict[str, Entry] = {}
    for entry in _entries(names):
        # Inherited documentation is one document.
        bodies.setdefault(entry.body, entry)
    return list(bodies.values())


def _collection(entries: list[Entry], where: str) -> Collection:
    return Collection(
        [entry.name for entry in entries],
        [entry.body for entry in entries],
        None,
        f"pydocs:{where}" if where.strip(" ,") else "pydocs",
        (
            f"pydocs depends on the release of Python; this is "
            f"{'.'.join(map(str, sys.version_info[:3]))}",
        ),
    )


def _query_id(entry: Entry) -> str:
    # Not the document's own id: some evaluations drop a query's namesake.
    return f"what:{entry.name}"


def _split(entries: list[Entry]) -> dict[str, list[Entry]]:
    parts: dict[str, list[Entry]] = {name: [] for name in SPLITS}
    test: list[tuple[bytes, Entry]] = []
    for entry in entries:
        key = hashlib.sha256(_query_id(entry).encode()).digest()
        place = key[0] * 256 + key[1]
        if place < 13107:
            test.append((key, entry))
        else:
            parts["dev" if place < 19661 else "train"].append(entry)
    test.sort(key=lambda pair: pair[0])
    parts["test"] = [entry for _, entry in test[:MAX_TEST_QUERIES]]
    parts["train"] += [entry for _, entry in test[MAX_TEST_QUERIES:]]
    return parts


def _entries(names: tuple[str, ...]) -> list[Entry]:
    """The documented objects, from the cache when nothing changed."""
    roots = _roots(names)
    files = tuple(file for root, where in roots for file in _files(root, where))
    stamp = [
        (module, status.st_size, status.st_mtime_ns)
        for module, path in files
        for status in (path.stat(),)
    ]
    return _parsed(digest("pydocs", _FORMAT, sys.version, stamp), files)


@functools.lru_cache(maxsize=1)
def _parsed(key: str, files: tuple[tuple[str, Path], ...]) -> list[Entry]:
    """The documented objects of files in the state that ``key`` is a digest of."""
    try:
        cached = cache_dir() / "pydocs" / f"{key}.json"
        if cached.is_file():
            return [Entry(*fields) for fields in read_json(cached)]
    except (UserError, TypeError):
        # No usable cache: parse again.
        cached = None
    found: dict[str, Entry] = {}
    for module, path in files:
        for entry in _documented(module, path):
            found.setdefault(entry.name, entry)
    entries = list(found.values())
    if cached is not None:
        with contextlib.suppress(UserError):
            write_json(cached, [dataclasses.astuple(entry) for entry in entries])
    return entries


def _roots(names: tuple[str, ...]) -> list[tuple[str, Path]]:
    """(module name, file or folder) of what is to be read."""
    if names:
        return [(name, _locate(name)) for name in names]
    standard = Path(sysconfig.get_paths()["stdlib"])
    roots = []
    for name in STANDARD_LIBRARY:
        path = next(
            (p for p in (standard / name, standard / f"{name}.py") if p.exists()), None
        )
        if path is None:
            raise UserError(
                f"pydocs: this Python has no sources of {name!r} in {standard}",
                "use a Python with its standard library's sources, or name packages, "
                "e.g. pydocs:numpy",
            )
        roots.append((name, path))
    return roots


def _locate(name: str) -> Path:
    top, *rest = name.split(".")
    spec = None
    if _NAME.fullmatch(name):
        # Top-level names only: finding a submodule would import its parent.
        spec = importlib.util.find_spec(top)
    path: Path | None = None
    if spec is not None and spec.submodule_search_locations:
        path = Path(next(iter(spec.submodule_search_locations))).joinpath(*rest)
        if not path.is_dir():
            path = path.with_suffix(".py")
    elif spec is not None and not rest and spec.origin:
        path = Path(spec.origin)
    if path is not None and path.exists() and path.suffix in ("", ".py"):
        return path
    raise UserError(
        f"pydocs:{name}: no such package with Python sources is installed"
        + near(name, STANDARD_LIBRARY),
        "give names of installed packages, e.g. pydocs:numpy,jax",
    )


def _files(root: str, path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield root, path
        return
    for file in sorted(path.rglob("*.py")):
        inner = file.relative_to(path).with_suffix("").parts
        if _SKIPPED.intersection(inner) or file.stat().st_size > _MAX_FILE_BYTES:
            continue
        if inner[-1].startswith("test_") or inner[-1].endswith("_test"):
            continue
        if inner[-1] == "__init__":
            inner = inner[:-1]
        yield ".".join((root, *inner)), file


def _documented(module: str, path: Path) -> Iterator[Entry]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    yield from _walk(tree, module)


def _walk(node: ast.AST, name: str) -> Iterator[Entry]:
    entry = _entry(node, name)
    if entry is not None:
        yield entry
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            # Functions inside functions are not an interface.
            if not child.name.startswith("_") and not isinstance(
                node, (ast.FunctionDef, ast.AsyncFunctionDef)
            ):
                yield from _walk(child, f"{name}.{child.name}")
        elif isinstance(child, (ast.If, ast.Try)):
            yield from _walk(child, name)


def _entry(node: ast.AST, name: str) -> Entry | None:
    if not isinstance(
        node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    ):
        return None
    text = ast.get_docstring(node, clean=False)
    if not text:
        return None
    first, _, body = inspect.cleandoc(text).partition("\n\n")
    summary = " ".join(first.split())
    body = body.strip()
    words = len(summary.split())
    if not _MIN_QUERY_WORDS <= words <= _MAX_QUERY_WORDS or summary.endswith("::"):
        return None
    if "===" in summary or "---" in summary:
        # A heading, not a sentence.
        return None
    if len(body.split()) < _MIN_DOC_WORDS or summary in body:
        return None
    # What json can hold, the cache can.
    return Entry(name, *json.loads(json.dumps([summary, body])))
