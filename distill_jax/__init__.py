"""Train rerankers and retrievers by knowledge distillation, in JAX."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Lazily: `import distill_jax` loads neither jax nor a tokenizer.
_HOMES = {
    "Collection": "collections.collection",
    "PairLabels": "labels.pair_labels",
    "Qrels": "collections.qrels",
    "Queries": "collections.collection",
    "Run": "runs.run",
    "TeacherLabels": "labels.labels",
    "UserError": "io.errors",
    "evaluate": "evaluation.measures",
    "load": "predictor",
    "load_collection": "collections.schemes",
    "plan": "api",
    "run": "api",
}
_ROOMS = ("losses", "retrieval")
__all__ = sorted([*_HOMES, *_ROOMS, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
