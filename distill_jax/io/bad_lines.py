"""Lines that cannot be read: the first stops the job, unless a few may be left out.

    with tolerated(Path(MODEL_DIR) / "rejects.jsonl", most=0.01):
        job()

Readers call ``parsed`` and need no code of their own for it. Skipped lines are
counted, written down with its reason, and never more than the given share of a file.
Nothing shifts: what is read keeps its own line number and its own id.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from distill_jax.io import engine
from distill_jax.io.errors import UserError
from distill_jax.io.files import atomic_write
from distill_jax.io.reading import decoded, json_object, raw_lines

T = TypeVar("T")

_MOST_KEPT = 100_000  # rejects of a file that are held in memory
_SHARD = 1 << 20  # bytes of lines that are parsed at once
_CLIP = 100_000  # bytes of a line that the rejects file shows


@dataclasses.dataclass
class Tolerance:
    """What was left out so far, and how much may be.

    Attributes:
        rejects: the file that is written; JSON lines of file, line, reason and text.
        most: the share of a file's lines, in [0, 1], above which the job ends.
        files: lines and rejects by line number of each file that was read.
    """

    rejects: Path
    most: float
    files: dict[str, tuple[int, dict[int, dict[str, Any]]]] = dataclasses.field(
        default_factory=dict
    )

    def keep(
        self, path: str | Path, lines: int, rejected: dict[int, dict[str, Any]]
    ) -> None:
        """Notes a file that was read to its end; reading it again changes nothing.

        Raises:
            UserError: it has too many bad lines.
        """
        self.files[str(path)] = lines, rejected
        if not rejected:
            return
        with atomic_write(self.rejects) as out:
            for _, found in self.files.values():
                for reject in found.values():
                    out.write(json.dumps(reject) + "\n")
        if len(rejected) > self.most * lines:
            first = next(iter(rejected.values()))["reason"]
            raise UserError(
                f"{path}: {len(rejected):,} of {lines:,} lines cannot be read, more "
                f"than {self.most:.4g} of them; the first: {first}",
                f"they are in {self.rejects}; --bad-line-rate=SHARE allows more",
            )

    def notices(self) -> list[str]:
        """A sentence for each file with rejects."""
        return [
            f"{Path(path).name}: {len(rejected):,} of {lines:,} lines cannot be read: "
            f"left out, see {self.rejects.name}"
            for path, (lines, rejected) in self.files.items()
            if rejected
        ]


_tolerance: contextvars.ContextVar[Tolerance | None] = contextvars.ContextVar(
    "tolerance", default=None
)


@contextlib.contextmanager
def tolerated(rejects: Path, most: float = 0.01) -> Iterator[Tolerance]:
    """Within the block, bad lines are skipped, up to the share ``most`` of a file."""
    tolerance = Tolerance(rejects, most)
    token = _tolerance.set(tolerance)
    try:
        yield tolerance
    finally:
        _tolerance.reset(token)


def notices() -> list[str]:
    """``Tolerance.notices`` of the block that this is called in, [] outside of one."""
    tolerance = _tolerance.get()
    return [] if tolerance is None else tolerance.notices()


def rejected(path: str | Path) -> int:
    """Lines of a file that were left out."""
    tolerance = _tolerance.get()
    return 0 if tolerance is None else len(tolerance.files.get(str(path), (0, {}))[1])


def parsed(
    path: str | Path, parse: Callable[[int, str], T | None], *, apart: bool = False
) -> Iterator[T]:
    """What ``parse`` makes of each line of a file; None for a line without content.

    Args:
        parse: called with the line's number from 1 and its text; raises UserError, with
            file:line, for a bad one.
        apart: ``parse`` keeps nothing between lines: an engine may call it elsewhere.

    Raises:
        UserError: the first bad line; within ``tolerated``, too many of them.
    """
    tolerance = _tolerance.get()
    work = functools.partial(_read, path, parse, tolerance is None)
    shards = _shards(path)
    read = engine.over_shards(work, shards) if apart else map(work, shards)
    lines, bad = 0, {}
    for items, count, wrong in read:
        yield from items
        lines += count
        for number, error, text in wrong:
            if tolerance is None:
                raise error
            reject = {"file": str(path), "line": number}
            bad[number] = {**reject, "reason": error.what, "text": text}
        if len(bad) > _MOST_KEPT:
            break
    if tolerance is not None:
        tolerance.keep(path, lines, bad)


def _shards(path: str | Path) -> Iterator[list[tuple[int, bytes]]]:
    """Numbered lines of a file, about ``_SHARD`` bytes at a time."""
    shard, size = [], 0
    try:
        for number, raw in raw_lines(path):
            shard.append((number, raw))
            size += len(raw) + 1
            if size >= _SHARD:
                yield shard
                shard, size = [], 0
    except UserError:
        # A mistake in a line before the damage is reported first.
        yield shard
        raise
    yield shard


def _read(
    path: str | Path,
    parse: Callable[[int, str], T | None],
    stops: bool,
    shard: list[tuple[int, bytes]],
) -> tuple[list[T], int, list[tuple[int, UserError, str]]]:
    """Items, how many lines were read, and the bad ones: the first ends it or not."""
    items: list[T] = []
    wrong = []
    for count, (number, raw) in enumerate(shard, start=1):
        try:
            item = parse(number, decoded(path, number, raw))
        except UserError as error:
            wrong.append(
                (number, error, raw[:_CLIP].decode("utf-8", "backslashreplace"))
            )
            if stops:
                return items, count, wrong
            continue
        if item is not None:
            items.append(item)
    return items, len(shard), wrong


def parsed_jsonl(
    path: str | Path,
    parse: Callable[[int, dict[str, Any]], T],
    *,
    apart: bool = False,
) -> Iterator[T]:
    """As ``parsed``, for the objects of JSON lines; blank lines are nothing."""

    def parse_line(number: int, line: str) -> T | None:
        record = json_object(path, number, line)
        return None if record is None else parse(number, record)

    return parsed(path, parse_line, apart=apart)
