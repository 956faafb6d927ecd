"""Queries from a T5: document in, query out, several sampled per document.

Source: docT5query (Nogueira and Lin 2019): top-k sampling with k = 10. The generator is
any T5 with a language-model head; recipes train one on (document, query) pairs.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.collections.collection import Collection
from distill_jax.models.templates import side_template
from distill_jax.synthesis import replies, seeds, shards
from distill_jax.synthesis.synthetic import SyntheticQueries
from distill_jax.text.buckets import buckets_up_to, plan
from distill_jax.text.features import Features
from distill_jax.text.templates import Template
from distill_jax.text.token_store import TokenStore

TEMPLATE = Template("{document}</s>", {"document": 511})
_BATCH_MULTIPLE = 32


def generate(
    pretrained: Any,
    collection: Collection,
    rows: Any,
    *,
    samples: int = 1,
    template: Template | None = None,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int | None = 10,
    top_p: float | None = None,
    max_words: int = 40,
    seed: int = 0,
    mesh: Any = None,
    tokens_per_batch: int = 1 << 14,
    directory: str | Path | None = None,
    shard_size: int = 1024,
    decode: Callable[..., Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticQueries:
    """``samples`` different queries of each document, at most.

    A query depends on the generator, the document, its id, the sample's number and the
    seed: not on the devices, the batch it ran in, or a kill in between. (Batches are of
    the same shapes on any number of devices up to 32, so the numbers agree too.)

    Args:
        pretrained: a T5 with a language-model head, and its tokenizer.
        collection, rows: the documents, and int[R] of those to make queries of.
        template: of the encoder's input, with ``{document}``, which is cut at its
            length; by default what a generator was trained on, else docT5query's.
        max_new_tokens, temperature, top_k, top_p: how queries are sampled.
        max_words: longer ones are dropped.
        mesh: devices to run on; None for one.
        tokens_per_batch: encoder tokens at a time.
        directory: shards of finished documents; a rerun continues after them.
        decode: ``(pretrained, tokens[M, L], seeds=uint32[M], ...) -> tokens[M, T]``;
            ``inference.generate.generate`` by default.
        progress: called with (documents done, documents).
    """
    tokenizer = pretrained.tokenizer
    rows = np.asarray(rows, np.int64)
    template = template or _template(pretrained)
    decode = decode or _decode
    sampling = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
    }

    def make(part: np.ndarray):
        limit = template.lengths.get("document")
        texts = collection.full_texts(part)
        store = TokenStore.build(texts, tokenizer, limit=limit)
        readable = _readable(store, tokenizer.unk_id)
        dropped = collections.Counter()
        if not readable.all():
            unreadable = int((~readable).sum())
            dropped["t5: document in a script unknown to the tokenizer"] += unreadable
        features = Features(template, tokenizer, document=store)
        items = np.repeat(np.flatnonzero(readable), samples)
        numbers = np.tile(np.arange(samples), int(readable.sum()))
        item_seeds = np.asarray(
            [
                seeds.seed_of(seed, "t5", collection.ids[part[item]], number) % 2**32
                for item, number in zip(items.tolist(), numbers.tolist())
            ],
            np.uint32,
        )
        lengths = features.lengths(document=items)
        longest = int(lengths.max(initial=1))
        outputs: list[Any] = [None] * len(items)
        for batch in plan(
            lengths,
            tokens_per_batch,
            buckets_up_to(_round_up(longest)),
            multiple_of=_BATCH_MULTIPLE,
        ):
            at = np.where(batch.where, batch.rows, 0)
            tokens = features.tokens(
                batch.length, document=np.where(batch.where, items[at], -1)
            )
            found = decode(
                pretrained, tokens, seeds=item_seeds[at], mesh=mesh, **sampling
            )
            for place, ids in zip(batch.rows.tolist(), np.asarray(found)):
                if place >= 0:
                    outputs[place] = ids
        return _records(part, items, numbers, outputs, tokenizer, max_words, dropped)

    return shards.run(
        collection,
        rows,
        make,
        directory=directory,
        manifest={
            "how": "t5",
            "generator": pretrained.digest,
            "template": template.to_json(),
            "samples": samples,
            "seed": seed,
            "max_words": max_words,
            **sampling,
        },
        shard_size=shard_size,
        progress=progress,
    )


def _template(pretrained: Any) -> Template:
    spec = getattr(pretrained, "spec", None)
    if getattr(spec, "kind", None) != "generator":
        return TEMPLATE
    found = side_template(spec, "doc", pretrained.tokenizer)
    text = found.text.replace("{text}", "{document}")
    return Template(text, {"document": found.lengths["text"]})


def _records(part, items, numbers, outputs, tokenizer, max_words, dropped):
    records, seen = [], set()
    for item, number, ids in zip(items.tolist(), numbers.tolist(), outputs):
        text = tokenizer.decode(_until_end(ids, tokenizer.eos_id))
        query, reason = replies.read(text, max_words)
        if query is None:
            dropped[f"t5: query {reason}"] += 1
        elif (item, query) in seen:
            dropped["t5: query said twice of one document"] += 1
        else:
            seen.add((item, query))
            records.append((int(part[item]), "t5", number, query))
    return records, dropped


def _until_end(ids: np.ndarray, eos_id: int | None) -> list[int]:
    found: list[int] = np.asarray(ids).tolist()
    return found[: found.index(eos_id)] if eos_id in found else found


def _readable(store: TokenStore, unk_id: int | None) -> np.ndarray:
    """bool[M]: texts of which less than half the tokens are unknown."""
    lengths = store.lengths
    known = np.ones(len(store.ids), np.int64)
    if unk_id is not None:
        known = (np.asarray(store.ids) != unk_id).astype(np.int64)
    before = np.concatenate([[0], np.cumsum(known)])
    counts = before[store.offsets[1:]] - before[store.offsets[:-1]]
    return 2 * counts > lengths


def _round_up(length: int, multiple: int = 8) -> int:
    return -(-length // multiple) * multiple


def _decode(pretrained: Any, tokens: np.ndarray, **options: Any) -> Any:
    from distill_jax.inference.generate import generate as decode

    return decode(pretrained, tokens, **options)
