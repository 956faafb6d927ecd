"""Queries from an LLM, over any client that can complete chats."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from distill_jax.collections.collection import Collection
from distill_jax.synthesis import kinds as query_kinds
from distill_jax.synthesis import replies, seeds, shards
from distill_jax.synthesis.synthetic import SyntheticQueries


@dataclasses.dataclass(frozen=True)
class Request:
    """One chat to complete.

    Attributes:
        id: ``synthesis/`` and the id of the query that is to come of it.
        messages: chat turns, ``{"role": ..., "content": ...}``.
        temperature, max_tokens: how it is sampled.
        seed: differs between the samples of a document; a part of a cache's key.
    """

    id: str
    messages: Sequence[Mapping[str, str]]
    temperature: float
    max_tokens: int
    seed: int


class Complete(Protocol):
    """Completes chats: one reply per request, in order; None where it failed."""

    def __call__(self, requests: Sequence[Request]) -> Sequence[str | None]: ...


def generate(
    collection: Collection,
    rows: Any,
    complete: Complete,
    *,
    kinds: Sequence[str | query_kinds.Kind],
    directory: str | Path | None = None,
    samples: int = 1,
    temperature: float = 0.8,
    max_tokens: int = 50,
    max_doc_words: int = 300,
    seed: int = 0,
    model: str = "",
    shard_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticQueries:
    """``samples`` queries of each kind for each document.

    Args:
        collection, rows: the documents, and int[R] of those to make queries of.
        complete: the client; it may cache, retry, and stop at a budget by raising.
        kinds: names (``kinds.shipped()``), paths of a user's own files, or ``Kind``s.
        directory: shards of finished documents; a rerun continues after them.
        temperature, max_tokens: 0.8 and 50 as in Tamber et al. 2025.
        max_doc_words: what the LLM is shown of a document.
        model: name of the model, for the manifest.
        shard_size: documents that are sent together.
    """
    asked = [
        k if isinstance(k, query_kinds.Kind) else query_kinds.load(k) for k in kinds
    ]
    sampling = {"temperature": temperature, "max_tokens": max_tokens}

    def make(part: np.ndarray):
        cells = [
            (row, k, n) for row in part.tolist() for k in asked for n in range(samples)
        ]
        requests = []
        for row, kind, number in cells:
            doc_id = collection.ids[int(row)]
            text = query_kinds.cut(collection, row, max_doc_words)
            requests.append(
                Request(
                    id=f"synthesis/{doc_id}|{kind.name}|{number}",
                    messages=kind.messages(text, doc_id, number, seed),
                    seed=seeds.seed_of(seed, kind.name, doc_id, number) % 2**31,
                    **sampling,
                )
            )
        records, dropped = [], collections.Counter()
        for (row, kind, number), reply in zip(cells, complete(requests), strict=True):
            query, reason = replies.read(reply, kind.max_words)
            if query is None:
                dropped[f"{kind.name}: reply {reason}"] += 1
            else:
                records.append((row, kind.name, number, query))
        return records, dropped

    return shards.run(
        collection,
        rows,
        make,
        directory=directory,
        manifest={
            "how": "llm",
            "model": model,
            "kinds": {kind.name: kind.digest for kind in asked},
            "samples": samples,
            "max_doc_words": max_doc_words,
            "seed": seed,
            **sampling,
        },
        shard_size=shard_size,
        progress=progress,
    )
