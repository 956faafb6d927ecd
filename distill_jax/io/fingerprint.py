"""Which fields of a configured object count in a record, and how.

A field counts by its value. One whose annotation carries ``Content`` (``UserPath``,
``ModelName``, ``PromptName`` of ``io.values``) counts by what its file or model holds
too. One made by ``free`` may change: a record does not depend on it.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Content:
    """Marks an annotation: the value names a file, a model, or a prompt.

    Attributes:
        of: a "prompt" may be one that ships, which its name identifies; no "model" at
            all is the student of the moment.
    """

    of: Literal["path", "model", "prompt"]


def free(default: Any = dataclasses.MISSING, *, recorded: bool = False) -> Any:
    """A field that changes how a result is made, and not the result.

    Args:
        recorded: whether records show its value all the same.
    """
    rule = "recorded" if recorded else "left out"
    return dataclasses.field(default=default, metadata={"fingerprint": rule})


def is_left_out(field: dataclasses.Field[Any]) -> bool:
    """Whether records know nothing of the field."""
    return field.metadata.get("fingerprint") == "left out"


def free_names(cls: type) -> tuple[str, ...]:
    """The fields of a dataclass that ``free`` made."""
    return tuple(f.name for f in dataclasses.fields(cls) if "fingerprint" in f.metadata)


@functools.cache
def contents(cls: type) -> dict[str, Content]:
    """The fields of a dataclass that count by content, those of ``free`` left out."""
    kinds = typing.get_type_hints(cls, include_extras=True)
    found = {name: _content(kinds[name]) for name in kinds}
    known = {f.name for f in dataclasses.fields(cls)} - {*free_names(cls)}
    return {k: v for k, v in found.items() if v is not None and k in known}


def _content(kind: Any) -> Content | None:
    marks = [*getattr(kind, "__metadata__", ()), *map(_content, typing.get_args(kind))]
    return next((mark for mark in marks if isinstance(mark, Content)), None)
