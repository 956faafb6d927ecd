"""Names of other libraries to ours and back, by one table of patterns.

A rule pairs two name patterns in which ``{i}`` and ``{j}`` stand for numbers and
``{name}`` for one dotted word, and says how the array changes on the way. The same
table reads a checkpoint and writes it. Whatever does not fit is reported at once: all
unknown names, all missing ones, all wrong shapes, with the nearest name of each.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError


@dataclasses.dataclass(frozen=True)
class Change:
    """How an array changes when it is read, and the inverse for writing."""

    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


SAME = Change(lambda array: array, lambda array: array)
# Hugging Face kernels are [out, in]; ours are [in, out] as in every JAX library.
TRANSPOSED = Change(lambda array: array.T, lambda array: array.T)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table.

    Attributes:
        theirs: pattern of the foreign name; the form that is written.
        ours: pattern of our parameter path.
        change: applied to the array.
        also: other foreign names of the same array; read, never written.
    """

    theirs: str
    ours: str
    change: Change = SAME
    also: tuple[str, ...] = ()


Table = Sequence[Rule]


@functools.cache
def pattern(text: str) -> re.Pattern[str]:
    """``{i}``, ``{j}`` to a number, any other ``{name}`` to one dotted word."""
    parts = re.split(r"\{(\w+)\}", text)
    made = [
        (rf"(?P<{part}>\d+)" if part in ("i", "j") else rf"(?P<{part}>\w+)")
        if place % 2
        else re.escape(part)
        for place, part in enumerate(parts)
    ]
    return re.compile("".join(made))


def renamed(name: str, rules: Table, *, reading: bool) -> tuple[str, Change] | None:
    """The other library's form of a name and the change, None when no rule fits.

    Raises:
        LookupError: two rules fit, which is a mistake in the table.
    """
    found = []
    for rule in rules:
        sources = (rule.theirs, *rule.also) if reading else (rule.ours,)
        target = rule.ours if reading else rule.theirs
        for source in sources:
            match = pattern(source).fullmatch(name)
            if match:
                found.append((target.format(**match.groupdict()), rule.change))
                break
    if len(found) > 1:
        raise LookupError(f"{name} fits several rules: {[to for to, _ in found]}")
    return found[0] if found else None


def read(
    tensors: Mapping[str, np.ndarray],
    rules: Table,
    abstract: Mapping[str, Any],
    *,
    prefix: str = "",
    ignore: Sequence[str] = (),
    fresh: Sequence[str] = (),
    source: str = "the checkpoint",
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Foreign arrays to our flat parameters, complete and of the right shapes.

    Args:
        tensors: foreign name to array (numpy, memory-mapped is fine).
        rules: the table.
        abstract: our flat path -> anything with ``shape``: what has to be filled.
        prefix: removed from foreign names that start with it ("bert.", "0.").
        ignore: regexes of foreign names (after the prefix) that are left out on
            purpose: buffers, heads that the student does not have.
        fresh: regexes of our paths that may be missing; they are returned by name for
            the caller to initialise.
        source: for messages.

    Returns:
        flat parameters in float32, and the names that were missing and may be.

    Raises:
        UserError: unknown names, missing names and wrong shapes, all together.
    """
    params: dict[str, np.ndarray] = {}
    came_from: dict[str, str] = {}
    unknown: list[str] = []
    wrong: list[str] = []
    for name in tensors:
        own = name.removeprefix(prefix)
        to = renamed(own, rules, reading=True)
        if to is None or to[0] not in abstract:
            if not any(re.fullmatch(text, own) for text in ignore):
                unknown.append(name)
            continue
        path, change = to
        array = np.asarray(change.read(np.asarray(tensors[name])), np.float32)
        if tuple(array.shape) != tuple(abstract[path].shape):
            wrong.append(
                f"{name} {list(array.shape)} for {path} {list(abstract[path].shape)}"
            )
        elif path in params:
            if not np.array_equal(params[path], array):
                wrong.append(f"{name} differs from {came_from[path]}, both are {path}")
        else:
            params[path] = np.ascontiguousarray(array)
        came_from.setdefault(path, name)
    missing, made = [], []
    for path in abstract:
        if path not in came_from:
            may = any(re.fullmatch(text, path) for text in fresh)
            (made if may else missing).append(path)
    if unknown or missing or wrong:
        raise UserError(
            _report(source, unknown, missing, wrong, rules, prefix, came_from),
            "is it the right kind of model? Compare the names with the file's own",
        )
    return params, tuple(made)


def write(params: Mapping[str, np.ndarray], rules: Table) -> dict[str, np.ndarray]:
    """Our flat parameters under the other library's names, contiguous, float32.

    Raises:
        LookupError: a parameter that no rule names.
    """
    tensors = {}
    for path, leaf in params.items():
        to = renamed(path, rules, reading=False)
        if to is None:
            raise LookupError(f"no rule writes the parameter {path}")
        name, change = to
        tensors[name] = np.ascontiguousarray(change.write(np.asarray(leaf)))
    return tensors


def _report(source, unknown, missing, wrong, rules, prefix, came_from) -> str:
    """One line: every name that does not fit, each with its nearest."""
    wanted = {}
    for path in missing:
        to = renamed(path, rules, reading=False)
        wanted[path] = prefix + to[0] if to else path
    known = [*wanted.values(), *came_from.values()]
    parts = []
    if unknown:
        said = []
        for name in unknown:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
            said.append(f"{name} (near {close[0]})" if close else name)
        parts.append(f"{len(unknown)} unknown: {', '.join(said)}")
    if missing:
        said = []
        for name in wanted.values():
            close = difflib.get_close_matches(name, unknown, n=1, cutoff=0.7)
            said.append(f"{name} (near {close[0]})" if close else name)
        parts.append(f"{len(missing)} missing: {', '.join(said)}")
    if wrong:
        parts.append(f"{len(wrong)} do not fit: {', '.join(wrong)}")
    return f"{source}: {'; '.join(parts)}"
