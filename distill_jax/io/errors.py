"""Errors a user can act on: what and where, then what to do."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """A user's mistake, reported in at most two lines and without a traceback.

    Args:
        what: what is wrong and where (``file:line``, the id).
        todo: what to do about it.

    Attributes:
        status: the exit status that a job ends with.
    """

    status = 2

    def __init__(self, what: str, todo: str | None = None):
        super().__init__(what, todo)
        self.what = what
        self.todo = todo

    def __str__(self) -> str:
        # A quoted id may hold a newline; the promise of two lines is kept anyway.
        parts = [self.what] if self.todo is None else [self.what, self.todo]
        return "\n".join(" ".join(part.splitlines()) for part in parts)


class Unfinished(UserError):
    """The job stopped at a limit that the user set; a rerun resumes it."""

    status = 3


@contextlib.contextmanager
def understood(what: str, todo: str) -> Iterator[None]:
    """Turns what values of another shape lead to, in reading files, into their name.

    Args:
        what: the message about the files; a word for each fault follows in brackets.
        todo: what a user may do.

    Raises:
        UserError: a value is missing, of another type, or out of every range.
    """
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
        raise UserError(f"{what} ({type(e).__name__}: {str(e)[:120]})", todo) from e


@contextlib.contextmanager
def whole(what: str, todo: str) -> Iterator[None]:
    """Turns any exception of a library that reads a file into a UserError.

    Readers of binary formats raise errors of many kinds at damaged bytes: pyarrow its
    own, ``UnicodeDecodeError`` for a column's name, ``KeyError``, ``OverflowError``.

    Raises:
        UserError: ``what`` with the first line of the reason, then ``todo``.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0][:120] if str(error) else ""
        raise UserError(f"{what} ({reason or type(error).__name__})", todo) from None


def near(name: str, names: Iterable[str]) -> str:
    """``' (did you mean "x"?)'`` when a name is close to a known one, else ``''``."""
    close = difflib.get_close_matches(name, [str(n) for n in names], n=1, cutoff=0.6)
    return f' (did you mean "{close[0]}"?)' if close else ""


def clip(text: str, width: int = 60) -> str:
    """A text for a message: quoted, control characters escaped, cut to ``width``."""
    shown = text if len(text) <= width else text[: width - 3] + "..."
    return repr(shown)
