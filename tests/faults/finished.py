"""What tests of finished jobs share: running one, its results, damage to its files."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq

from distill_jax import main

SHORT = {
    "MESH": "data=1", "DROPOUT": 0.0, "ATTENTION_DROPOUT": 0.0, "QUERY_LENGTH": 12,
    "DOC_LENGTH": 20, "VOCABULARY_SIZE": 300, "TRAIN_STEPS": 2, "MAX_TEST_QUERIES": 8,
    "MAX_TRAIN_QUERIES": 8, "LIST_SIZE": 4, "TOP_K": 6, "DEPTH": 6,
}  # fmt: skip
DAMAGE = {
    "flip": lambda raw: _flip(raw, len(raw) // 2),
    "cut": lambda raw: raw[: len(raw) // 2],
    "empty": lambda raw: b"",
}


def _flip(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one run of a command said."""

    status: int
    out: str
    err: str


def run(argv: list[str]) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main.main(argv)
    return Answer(status, out.getvalue(), err.getvalue())


def words(recipe: str, **flags) -> list[str]:
    files = [f"--gin_file={name}.gin" for name in recipe.split("+")]
    return [*files, *(f"--gin.{name}={value}" for name, value in flags.items())]


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


# Each run writes them anew: when it was, and how long it took.
_CLOCKS = {"report.html", "part.json", "table.html"}
_TIMED = ("seconds", "when", "duration", "per_second", "generated", "created")


def results(folder: Path) -> dict[str, object]:
    """What a user takes from the folder of a job: figures, runs, labels, weights."""
    found: dict[str, object] = {}
    for path in files(folder):
        name = path.relative_to(folder)
        if {"checkpoints", "tensorboard", "damaged", "tokens"} & set(name.parts) or any(
            part.endswith(".old") for part in name.parts
        ):
            continue
        if path.suffix == ".parquet":
            found[str(name)] = pq.read_table(path).to_pylist()
        elif path.name == "report.json":
            found[str(name)] = untimed(json.loads(path.read_bytes()))
        elif path.suffix in (".safetensors", ".trec", ".tsv", ".jsonl", ".gin"):
            found[str(name)] = path.read_bytes()
    return found


def untimed(value):
    if isinstance(value, dict):
        return {
            key: untimed(item)
            for key, item in value.items()
            if not any(word in key for word in _TIMED)
        }
    if isinstance(value, list):
        return [untimed(item) for item in value]
    return value


def read_again(folder: Path) -> list[Path]:
    """Names of the files that a finished job may read, relative to its folder."""
    names = [path.relative_to(folder) for path in files(folder)]
    return [
        name
        for name in names
        if not {"checkpoints", "tensorboard"} & set(name.parts)
        and not name.name.startswith(".")
    ]


def damages(kept: Path, kinds: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """Each file of a finished folder with each kind of damage that it may suffer.

    A record with sizes and sums treats its files alike: of them the first suffers
    every kind, and the others the first kind, which leaves their size as it is.
    """
    kinds, seen = tuple(kinds), set()
    records = recorded(kept)
    for name in read_again(kept):
        record = records.get(name)
        for how in kinds if record is None or record not in seen else kinds[:1]:
            yield name, how
        seen.add(record)


def recorded(folder: Path) -> dict[Path, Path]:
    """The record that holds a file's size and sum, for the files that have one."""
    found: dict[Path, Path] = {}
    for path in folder.rglob("*.json"):
        try:
            record = json.loads(path.read_bytes())
        except ValueError:
            continue
        if not isinstance(record, dict):
            continue
        for key, place in (("files", path.parent), ("beside", path.parent.parent)):
            sums = record.get(key)
            for name in sums if isinstance(sums, dict) else ():
                found[(place / name).relative_to(folder)] = path
    return found


@contextlib.contextmanager
def damaged(folder: Path, kept: Path, name: Path, how: str) -> Iterator[bool]:
    """The folder as it was kept, one file spoiled; False where it stays as it was."""
    raw = (kept / name).read_bytes()
    spoiled = DAMAGE[how](raw) if raw else raw
    (folder / name).write_bytes(spoiled)
    try:
        yield spoiled != raw
    finally:
        restore(folder, kept)


def restore(folder: Path, kept: Path) -> None:
    """Brings a folder back to what was kept of it, with what changed only."""
    wanted = {path.relative_to(kept) for path in files(kept)}
    for path in files(folder):
        name = path.relative_to(folder)
        if name not in wanted:
            path.unlink()
    for name in wanted:
        there, here = folder / name, kept / name
        if there.exists():
            now, before = there.stat(), here.stat()
            if (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns):
                continue
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(here, there)


def keep(folder: Path, kept: Path) -> Path:
    return Path(shutil.copytree(folder, kept))
