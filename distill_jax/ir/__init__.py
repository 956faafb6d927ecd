"""Floor 0: collections, qrels, runs, labels, tokens and measures; numpy and files."""

from __future__ import annotations

import importlib
from typing import Any

# Lazily: `from distill_jax.ir import UserError` loads neither pyarrow nor tokenizers.
_HOMES = {
    "Collection": "collection",
    "Features": "templates",
    "PairLabels": "labels",
    "Qrels": "qrels",
    "Queries": "collection",
    "Run": "run",
    "StringTable": "strings",
    "TeacherLabels": "labels",
    "Template": "templates",
    "TokenStore": "tokens",
    "Tokenizer": "tokenizer",
    "UserError": "errors",
    "evaluate": "measures",
    "evaluate_queries": "measures",
    "load_collection": "collection",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module = importlib.import_module(f"distill_jax.ir.{_HOMES[name]}")
        return getattr(module, name)
    raise AttributeError(f"module 'distill_jax.ir' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
