"""What a configured object is, as JSON: for digests, records and comparisons."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from distill_jax.io.fingerprint import is_left_out


def describe(value: Any) -> Any:
    """JSON-able values that are equal exactly when the configuration is.

    Dataclasses become their class name and fields, functions their qualified names;
    addresses in memory never appear.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: describe(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if not is_left_out(field)
        }
        return {"is": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, functools.partial):
        return {"is": describe(value.func), **describe(value.keywords)}
    inner = getattr(value, "__wrapped__", value)
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    return f"{getattr(inner, '__module__', '')}.{name}"
