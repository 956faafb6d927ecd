"""Where collections come from: one module a scheme."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from distill_jax.ir.errors import UserError, clip, near

if TYPE_CHECKING:
    from distill_jax.ir.collection import Collection, Queries
    from distill_jax.ir.qrels import Qrels

SCHEMES = ("beir", "msmarco", "irds", "pydocs", "tfds")


def load(spec: str, split: str) -> tuple[Collection, Queries, Qrels]:
    """Loads ``scheme:where`` by the module of that scheme.

    Raises:
        UserError: an unknown scheme, or nothing after the colon where something is due.
    """
    scheme, _, where = str(spec).partition(":")
    if scheme not in SCHEMES:
        raise UserError(
            f"COLLECTION {clip(str(spec))}: unknown scheme {clip(scheme)}"
            + near(scheme, SCHEMES),
            "write scheme:where with one of " + ", ".join(SCHEMES),
        )
    if not where and scheme != "pydocs":
        raise UserError(
            f"COLLECTION {clip(str(spec))}: nothing after the scheme",
            f"write {scheme}:{'NAME' if scheme in ('irds', 'tfds') else 'PATH'}",
        )
    module = importlib.import_module(f"distill_jax.ir.sources.{scheme}")
    return module.load(where, split)
