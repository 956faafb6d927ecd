"""Where collections come from: one module a scheme."""

from __future__ import annotations

import functools
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


class Source:
    """A collection by its name: documents are parsed once, whichever splits are read.

    Raises:
        UserError: an unknown scheme, or nothing after the colon.
    """

    def __init__(self, spec: str):
        self.spec = spec
        self.scheme, self.where = _parts(spec)
        self._module = _module(self.scheme, self.where)

    @functools.cached_property
    def docs(self) -> Collection:
        """The documents alone: they need no split, not even queries.

        Raises:
            UserError: as ``split``, and for schemes that hold none.
        """
        if not hasattr(self._module, "docs"):
            raise UserError(
                f"COLLECTION {clip(str(self.spec))}: {self.scheme}: holds questions, "
                "no documents",
                "give it as QUERIES, and documents as COLLECTION",
            )
        return _with_rejects(self._documents)

    @functools.cached_property
    def _documents(self) -> Collection:
        return self._module.docs(self.where)

    def split(self, name: str) -> tuple[Collection, Queries, Qrels]:
        """As ``load_collection``."""
        found, queries, qrels = self._module.load(
            self.where, name, lambda: self._documents
        )
        return _with_rejects(found), queries, qrels


def load(spec: str, split: str) -> tuple[Collection, Queries, Qrels]:
    """Loads ``scheme:where`` by the module of that scheme.

    Raises:
        UserError: an unknown scheme, or nothing after the colon.
    """
    return Source(spec).split(split)


def load_docs(spec: str) -> Collection:
    """The documents of ``scheme:where`` alone: it needs no split, not even queries.

    Raises:
        UserError: as ``load``, and for schemes that hold none.
    """
    return Source(spec).docs


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
        path, mark, columns = where.partition("#")
        where = user_path(path) + mark + columns
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
