"""Types of settings, and the conversion of typed text to these types.

A setting's annotation says what it takes: ``steps: Size``, ``dropout: Rate``,
``measures: tuple[str, ...]``. ``read`` turns a value, or the text of a flag, into that
type, or says what is needed instead.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import math
import types
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from distill_jax.io.errors import UserError, clip, near
from distill_jax.io.fingerprint import Content
from distill_jax.io.paths import model_name, user_path


class Mismatch(ValueError):
    """A value is not of its type; the text says what is needed."""


@dataclasses.dataclass(frozen=True)
class Text:
    """The text after ``=`` on the command line."""

    text: str


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from ``least`` (or above ``above``) to ``most`` (or below ``below``)."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __call__(self, value: Any) -> Any:
        fits = (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        if not fits:
            raise Mismatch(f"a number {self}")
        return value

    def __str__(self) -> str:
        words = (
            ("from", self.least), ("above", self.above),
            ("to", self.most), ("below", self.below),
        )  # fmt: skip
        return " ".join(
            f"{word} {end:,}" if isinstance(end, int) else f"{word} {end:g}"
            for word, end in words
            if end is not None
        )


@dataclasses.dataclass(frozen=True)
class Check:
    """A function that returns the value as it is used, or raises ``UserError``."""

    function: Callable[[Any], Any]

    def __call__(self, value: Any) -> Any:
        return self.function(value)


@dataclasses.dataclass(frozen=True)
class Named:
    """A function that may be given by its name among a module's public ones."""

    module: str

    @property
    def names(self) -> tuple[str, ...]:
        module = importlib.import_module(self.module)
        return tuple(n for n in module.__all__ if inspect.isfunction(vars(module)[n]))

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str) and value not in self.names:
            raise Mismatch(f"one of {', '.join(self.names)}{near(value, self.names)}")
        return value


def _not_empty(text: str) -> str:
    if not text.strip():
        raise Mismatch("a text that is not empty")
    return text


_INT32, _INT64 = 2**31 - 1, 2**63 - 1
Size = Annotated[int, Range(least=1, most=_INT32)]
Count = Annotated[int, Range(least=0, most=_INT64)]
Seed = Annotated[int, Range(least=0, most=_INT32)]
Share = Annotated[float, Range(least=0, most=1)]
Rate = Annotated[float, Range(least=0, below=1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Name = Annotated[str, Check(_not_empty)]
UserPath = Annotated[str, Check(user_path), Content("path")]
ModelName = Annotated[str, Check(model_name), Content("model")]
PromptName = Annotated[str, Check(_not_empty), Content("prompt")]

_NONE = ("none", "null")
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def read(value: Any, kind: Any, is_object: Callable[[Any], bool] | None = None) -> Any:
    """``value`` as ``kind``.

    Args:
        value: a literal, or ``Text`` from the command line, which has no type yet.
        kind: an annotation.
        is_object: whether a value is a reference to an object that is built later.

    Raises:
        Mismatch: the value has another type; the message says what is needed.
        UserError: from a ``Check``.
    """
    return _Reader(is_object or (lambda _: False)).read(value, kind)


def untyped(text: str) -> Any:
    """A flag's value if its type is unknown: a Python literal, else the text."""
    try:
        with warnings.catch_warnings():
            # A backslash of a regular expression is none of Python's escapes.
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def shown(value: Any) -> str:
    """A value for a message."""
    return clip(value.text) if isinstance(value, Text) else clip(repr(value))[1:-1]


@dataclasses.dataclass(frozen=True)
class _Reader:
    is_object: Callable[[Any], bool]

    def read(self, value: Any, kind: Any) -> Any:
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is Annotated:
            return self._annotated(value, arguments[0], arguments[1:])
        if origin in (Union, types.UnionType):
            return self._union(value, arguments)
        if self.is_object(value):
            return value
        if kind is Any:
            return untyped(value.text) if isinstance(value, Text) else value
        if kind is None or kind is type(None):
            return _none(value)
        if origin is Literal:
            return _choice(value, arguments)
        if kind in _SCALARS:
            return _SCALARS[kind](value)
        if origin is tuple or kind is tuple:
            return self._tuple(value, arguments)
        if origin in (dict, Mapping, *_MAPPINGS) or kind in (dict, Mapping):
            return self._mapping(value, arguments)
        return _object(value, kind)

    def _annotated(self, value: Any, kind: Any, checks: Sequence[Any]) -> Any:
        named = [check for check in checks if isinstance(check, Named)]
        if named and not self.is_object(value) and not callable(value):
            kind = str
        found = self.read(value, kind)
        if self.is_object(found):
            return found
        for check in checks:
            if callable(check):
                found = check(found)
        return found

    def _union(self, value: Any, kinds: Sequence[Any]) -> Any:
        # Text fits a str in any case: what is narrower is tried first.
        kinds = sorted(kinds, key=lambda kind: (kind is not type(None), _is_text(kind)))
        needed: list[str] = []
        for kind in kinds:
            try:
                return self.read(value, kind)
            except Mismatch as error:
                if str(error) not in needed:
                    needed.append(str(error))
        needed = [*needed[1:], "None"] if needed[0] == "None" else needed
        raise Mismatch(" or ".join(needed))

    def _tuple(self, value: Any, kinds: Sequence[Any]) -> tuple[Any, ...]:
        several = not kinds or kinds[-1] is Ellipsis
        if isinstance(value, Text):
            found = untyped(value.text)
            if isinstance(found, tuple | list):
                value = found
            elif not value.text.strip():
                raise Mismatch("a list of values")
            else:
                value = [Text(part.strip()) for part in value.text.split(",")]
        elif isinstance(value, str) and several:
            value = [value]
        if not isinstance(value, tuple | list):
            if not several:
                raise Mismatch(f"{len(kinds)} values, as in 1,2")
            value = [value]
        if several:
            kind = kinds[0] if kinds else Any
            return tuple(self.read(item, kind) for item in value)
        if len(value) != len(kinds):
            raise Mismatch(f"{len(kinds)} values")
        return tuple(self.read(item, kind) for item, kind in zip(value, kinds))

    def _mapping(self, value: Any, kinds: Sequence[Any]) -> Any:
        if isinstance(value, Text):
            value = untyped(value.text)
        if not isinstance(value, Mapping):
            raise Mismatch("a dict, as in {'name': 1}")
        key, item = kinds or (Any, Any)
        return {self.read(k, key): self.read(v, item) for k, v in value.items()}


_MAPPINGS = (typing.get_origin(typing.Mapping[str, int]),)


def _is_text(kind: Any) -> bool:
    while typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    return kind in (str, Path)


def _none(value: Any) -> None:
    text = value.text if isinstance(value, Text) else value
    if text is None or (isinstance(text, str) and text.strip().lower() in _NONE):
        return None
    raise Mismatch("None")


def _choice(value: Any, choices: Sequence[Any]) -> Any:
    text = value.text.strip("'\"") if isinstance(value, Text) else value
    for choice in choices:
        if text == choice or (isinstance(value, Text) and text == str(choice)):
            return choice
    names = [str(choice) for choice in choices]
    raise Mismatch(f"one of {', '.join(names)}{near(str(text), names)}")


def _bool(value: Any) -> bool:
    text = str(value.text if isinstance(value, Text) else value).strip().lower()
    if isinstance(value, bool | str | Text | int) and text in (*_TRUE, *_FALSE):
        return text in _TRUE
    raise Mismatch("True or False")


def _number(value: Any) -> int | float | None:
    if isinstance(value, Text | str):
        found = untyped((value.text if isinstance(value, Text) else value).strip())
    else:
        found = value
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    try:
        return found if math.isfinite(found) else None
    except OverflowError:
        return None


def _int(value: Any) -> int:
    found = _number(value)
    if found is None or found != int(found) or abs(found) > _INT64:
        raise Mismatch("a whole number")
    return int(found)


def _float(value: Any) -> float:
    found = _number(value)
    if found is None:
        raise Mismatch("a number")
    return float(found)


def _str(value: Any) -> str:
    if isinstance(value, Text):
        found = untyped(value.text)
        if found is None:
            raise Mismatch("a text")
        return found if isinstance(found, str) else value.text
    if isinstance(value, bool) or not isinstance(value, str | int | Path):
        raise Mismatch("a text")
    return str(value)


_SCALARS: dict[Any, Callable[[Any], Any]] = {
    bool: _bool, int: _int, float: _float, str: _str, Path: lambda v: Path(_str(v)),
}  # fmt: skip


def is_plain(kind: Any) -> bool:
    """Whether an annotation takes nothing but numbers, texts and None."""
    if typing.get_origin(kind) is Annotated:
        kind, *checks = typing.get_args(kind)
        return is_plain(kind) and not any(isinstance(c, Named) for c in checks)
    if typing.get_origin(kind) in (Union, types.UnionType):
        return all(map(is_plain, typing.get_args(kind)))
    literal = typing.get_origin(kind) is Literal
    return literal or kind in _SCALARS or kind in (None, type(None))


def _object(value: Any, kind: Any) -> Any:
    """Something that only code can make: a part, a function."""
    if value is None or isinstance(
        value, str | int | float | bool | tuple | list | dict | Text
    ):
        name = getattr(kind, "__name__", "object").lower()
        raise Mismatch(f"a {name}, as in @room.Name()")
    return value


def argument_types(function: Any) -> dict[str, Any]:
    """Annotations of a class's fields or a function's parameters; {} where one of them
    names what cannot be resolved."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def refuse(name: str, value: Any, needed: str) -> UserError:
    """The error of a value that is not what it should be."""
    flag = name if "." not in name else name.rsplit("/", 1)[-1]
    return UserError(
        f"{name} is {shown(value)}: needed is {needed}", f"set --gin.{flag}=..."
    )
