"""Retrieval: each ``R.build(docs_or_vectors)``, ``.search(queries, k)``, ``.save``.

The classes are loaded when they are first named, so that BM25 needs no jax and ScaNN
is not imported by those who do not use it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill_jax.retrieval.bm25 import BM25
    from distill_jax.retrieval.exact import Exact
    from distill_jax.retrieval.late import LateInteraction
    from distill_jax.retrieval.scann import Scann
    from distill_jax.retrieval.sparse import Sparse

__all__ = ["BM25", "Exact", "LateInteraction", "Scann", "Sparse"]

_HOMES = {
    "BM25": "bm25",
    "Exact": "exact",
    "LateInteraction": "late",
    "Scann": "scann",
    "Sparse": "sparse",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
