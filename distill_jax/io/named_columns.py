"""Text tables with named columns; a header is parsed, not skipped or read as data."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from distill_jax.io.errors import UserError, clip

# What the field calls a column; compared in lower case, without "-", "_" and blanks.
_NAMES = {
    "query": "query queryid qid topic topicid",
    "doc": "doc docid docno did document documentid corpusid pid passageid",
    "id": "id pid did docid passageid documentid corpusid qid queryid",
    "title": "title",
    "text": "text passage body contents content query question",
    "grade": "grade score rel relevance label judgment judgement",
    "zero": "q0 0 iter iteration zero",
    "rank": "rank position",
    "score": "score sim similarity logit",
    "tag": "tag run runid runname runtag system name",
    "positive": "positive pos positiveid posid pospid",
    "negative": "negative neg negativeid negid negpid",
    "margin": "margin score label scorediff cescore difference",
}


LARGEST = float.fromhex("0x1.fffffep127")
"""Of float32, in which scores are kept."""


class Columns:
    """Which column of a file holds what: by its header, or by how many there are.

    Args:
        path: for messages.
        layouts: roles (keys of the names above) in their order, by the number of
            columns, of files without a header.
        needed: roles that a header must name.
        form: how a line is written, for messages.

    Attributes:
        roles: of the file's columns; () before the first line.
        headed: whether it has a header.
    """

    def __init__(
        self,
        path: str | Path,
        layouts: Mapping[int, Sequence[str]],
        needed: Sequence[str],
        form: str,
    ):
        self._path, self._layouts, self._form = path, layouts, form
        self._needed = tuple(needed)
        self._known = tuple(dict.fromkeys(r for line in layouts.values() for r in line))
        self._first = 0
        self.roles: tuple[str, ...] = ()
        self.headed = False

    def read(self, number: int, fields: Sequence[str]) -> dict[str, str] | None:
        """A line's fields by role; None of the header.

        Raises:
            UserError: with file:line, for a header with a name that is not known or
                without one that is needed, and for another number of columns.
        """
        if not self.roles:
            self._first = number
            self.headed = self._read_header(number, fields)
            if self.headed:
                return None
            if len(fields) not in self._layouts:
                raise UserError(
                    f"{self._path}:{number}: {len(fields)} columns in "
                    f"{clip(' '.join(fields))}",
                    f"write {self._form}, or a header that names the columns",
                )
            self.roles = tuple(self._layouts[len(fields)])
        if len(fields) != len(self.roles):
            raise UserError(
                f"{self._path}:{number}: {len(fields)} columns, but {len(self.roles)}"
                f" on line {self._first}",
                "is there a tab in a text, or a column missing?",
            )
        return dict(zip(self.roles, fields))

    def _read_header(self, number: int, fields: Sequence[str]) -> bool:
        found = [self._role(field) for field in fields]
        # One such word ("title", "Q0", a tag) may be data; two names are a header.
        if sum(role not in (None, "zero", "tag") for role in found) < 2:
            return False
        if None in found or len(set(found)) < len(found):
            at = found.index(None) if None in found else _twice(found)
            raise UserError(
                f"{self._path}:{number}: the header's column {clip(fields[at])} "
                + ("is not known" if None in found else "has another's meaning"),
                f"name the columns {', '.join(self._needed)}",
            )
        missing = [role for role in self._needed if role not in found]
        if missing:
            raise UserError(
                f"{self._path}:{number}: the header {clip(' '.join(fields))} names no "
                f"{missing[0]}",
                f"name the columns {', '.join(self._needed)}",
            )
        self.roles = tuple(map(str, found))
        return True

    def _role(self, field: str) -> str | None:
        name = field.strip().lower().strip("#")
        name = "".join(c for c in name if c not in "-_ ")
        return next((r for r in self._known if name in _NAMES[r].split()), None)


def _twice(found: Sequence[str | None]) -> int:
    return next(i for i, role in enumerate(found) if role in found[:i])


class Texts:
    """A column of texts of a file without a header: it is not all numbers."""

    def __init__(self, path: str | Path):
        self._path, self._first, self._texts = path, "", False

    def see(self, number: int, text: str) -> None:
        self._first = self._first or f"{number}: {clip(text)}"
        self._texts |= decimal(text) is None

    def check(self) -> None:
        """Once all lines were seen.

        Raises:
            UserError: each of them was a number.
        """
        if self._first and not self._texts:
            raise UserError(
                f"{self._path}:{self._first} is a number, as all texts of the file are",
                "are the columns in another order? write a header that names them",
            )


def decimal(text: str) -> float | None:
    """The number that a field of a table holds; None where it holds none.

    Python's own forms (``1_000``, digits of other scripts) are not numbers here.
    """
    try:
        return float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return None


def number_of(path: str | Path, number: int, text: str, what: str, form: str) -> float:
    """A finite number.

    Raises:
        UserError: with file:line, for anything else: NaN and infinity have no place
            in an order.
    """
    value = decimal(text)
    if value is None:
        raise UserError(
            f"{path}:{number}: {clip(text)} is not a number ({what})", f"write {form}"
        )
    if not abs(value) <= LARGEST:
        raise UserError(
            f"{path}:{number}: {clip(text)} is not a finite number ({what})",
            "correct or delete the line",
        )
    return value


def rank_of(path: str | Path, number: int, text: str, what: str, form: str) -> int:
    """A rank, a whole number from 1.

    Raises:
        UserError: with file:line, for anything else.
    """
    value = number_of(path, number, text, what, form)
    if value < 1 or value != int(value):
        raise UserError(
            f"{path}:{number}: {clip(text)} is not a rank from 1 ({what})",
            f"is the column a score? write {form}",
        )
    return int(value)


def reversed_ranks(entries: Sequence[tuple[float, float]]) -> bool:
    """Whether the ranks of a list order it the opposite way to its scores.

    Args:
        entries: (score, rank) of its documents.
    """
    by_rank = sorted(entries, key=lambda entry: entry[1])
    return len(by_rank) > 1 and all(
        a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(by_rank)
    )
