"""Where collections come from: one module a scheme."""

from __future__ import annotations

import importlib
from typing import Any

from distill_jax.collections import tables
from distill_jax.collections.collection import Collection, Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.io import bad_lines
from distill_jax.io.errors import UserError, clip, near
from distill_jax.io.paths import user_path

SCHEMES = (
    "beir", "msmarco", "irds", "pydocs", "tfds", "jsonl", "queries",
    "files", "csv", "parquet",
)  # fmt: skip
QUESTIONS = ("tfds", "jsonl", "queries")
"""Schemes that hold questions, perhaps with answers, and no documents."""


def load(spec: str, split: str) -> tuple[Collection, Queries, Qrels]:
    """Loads ``scheme:where`` by the module of that scheme.

    Raises:
        UserError: an unknown scheme, or nothing after the colon.
    """
    scheme, where = _parts(spec)
    collection, queries, qrels = _module(scheme, where).load(where, split)
    return _with_rejects(collection), queries, qrels


def load_docs(spec: str) -> Collection:
    """The documents of ``scheme:where`` alone: it needs no split, not even queries.

    Raises:
        UserError: as ``load``, and for schemes that hold none.
    """
    scheme, where = _parts(spec)
    module = _module(scheme, where)
    if not hasattr(module, "docs"):
        raise UserError(
            f"COLLECTION {clip(str(spec))}: {scheme}: holds questions, no documents",
            "give it as QUERIES, and documents as COLLECTION",
        )
    return _with_rejects(module.docs(where))


def name(spec: str) -> str:
    """The name of a collection as it was given, once its scheme is known.

    Raises:
        UserError: an unknown scheme, or nothing after the colon.
    """
    _parts(spec)
    return spec


def _with_rejects(collection: Collection) -> Collection:
    left_out = bad_lines.notices()
    return collection.with_notices(*left_out) if left_out else collection


def _module(scheme: str, where: str) -> Any:
    table = scheme in ("csv", "parquet")
    if table or (scheme == "jsonl" and tables.holds_documents(where)):
        return tables
    return importlib.import_module(f"distill_jax.collections.{scheme}")


def _parts(spec: str) -> tuple[str, str]:
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
    if where and scheme not in ("irds", "tfds", "pydocs"):
        user_path(where)
    return scheme, where


def load_collection(
    spec: str, split: str = "test"
) -> tuple[Collection, Queries, Qrels]:
    """Loads ``scheme:where``: documents, the queries of a split and their judgements.

    Args:
        spec: ``beir:PATH``, ``msmarco:PATH``, ``irds:NAME``, ``pydocs[:PACKAGES]``,
            ``tfds:NAME``, ``files:DIR``, ``csv:PATH``, ``jsonl:PATH``,
            ``parquet:PATH`` or ``queries:PATH``.
        split: usually ``train``, ``dev`` or ``test``.

    Raises:
        UserError: unknown scheme, no such split (those that exist are listed), or bad
            content, with file:line.
    """
    return load(spec, split)
