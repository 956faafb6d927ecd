"""The signatures that a loss may have, checked when an objective is built."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from distill_jax.io.errors import UserError
from distill_jax.io.values import Mismatch, argument_types, read, shown

FORMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "list": (("scores", "labels"), ("where",)),
    "pairs": (("scores", "first", "second", "probability"), ("where",)),
    "in_batch": (
        ("cross_scores", "doc_rows", "labels"),
        ("where", "labelled", "query_rows"),
    ),
    "rep": (("rep", "batch"), ()),
}
"""Positional and keyword arguments of a loss, by what its term is ``on``."""


def check(
    name: str, loss: Callable[..., Any], on: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of a loss, checked against the annotations of its parameters.

    Raises:
        UserError: the loss cannot be called as ``FORMS[on]`` says with these options,
            or an option is of another type.
    """
    if not callable(loss):
        raise UserError(
            f"term {name!r}: {shown(loss)} is not a function", "e.g. @losses.ranknet"
        )
    signature = _signature(loss)
    if signature is None:
        return dict(options)
    places, keywords = FORMS[on]
    called = getattr(loss, "__name__", type(loss).__name__)
    form = ", ".join((*places, *(f"{keyword}=" for keyword in keywords)))
    given = dict.fromkeys(keywords) | dict(options)
    try:
        signature.bind(*places, **given)
    except TypeError as error:
        raise UserError(
            f"term {name!r}: {called} does not take what it is called with ({error})",
            f"a loss on {on!r} is called as {called}({form})",
        ) from error
    kinds = argument_types(inspect.unwrap(getattr(loss, "func", loss)))
    found = {}
    for option, value in options.items():
        try:
            found[option] = read(value, kinds.get(option, Any), _is_array)
        except Mismatch as error:
            raise UserError(
                f"term {name!r}: {option} is {shown(value)}: needed is {error}",
                f"it is a parameter of {called}",
            ) from error
    return found


def can_be_split(loss: Callable[..., Any] | None) -> bool:
    """Whether a loss of a batch is a sum over micro-batches: it takes ``reduce_fn``."""
    signature = None if loss is None else _signature(loss)
    if signature is None:
        return False
    parameters = signature.parameters.values()
    return any(
        p.name == "reduce_fn" or p.kind is inspect.Parameter.VAR_KEYWORD
        for p in parameters
    )


@functools.lru_cache(maxsize=256)
def _signature(loss: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(loss)
    except (TypeError, ValueError):  # a C function without a signature
        return None


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape")
