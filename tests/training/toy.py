"""The smallest student with every part that training relies on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from distill_jax import losses
from distill_jax.batches import DualBatch, Targets
from distill_jax.losses.mixture import Mixture, Term

VOCAB, WIDTH = 64, 16

# Means over lists and over pairs: their counts differ between micro-batches.
LISTS = Mixture((Term("list", losses.kl_divergence), Term("pair", losses.ranknet)))
# Every query against the documents of the whole batch.
GLOBAL = Mixture(
    (
        Term("list", losses.kl_divergence),
        Term(
            "contrast",
            losses.in_batch_contrastive,
            weight=0.5,
            on="in_batch",
            options={"temperature": 0.2},
        ),
    )
)


class Ffn(nnx.Module):
    """A feed-forward layer whose names meet the sharding table."""

    def __init__(self, rngs: nnx.Rngs):
        self.wi = nnx.Linear(WIDTH, 2 * WIDTH, use_bias=False, rngs=rngs)
        self.wo = nnx.Linear(2 * WIDTH, WIDTH, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.wo(jax.nn.gelu(self.wi(x)))


class Towers(nnx.Module):
    """Mean of word vectors, one layer, dropout: a dual encoder in miniature."""

    def __init__(self, rngs: nnx.Rngs, rate: float = 0.0):
        self.embedding = nnx.Param(
            jax.random.normal(rngs.params(), (VOCAB, WIDTH)) * 0.3
        )
        self.layers = nnx.List([nnx.Dict(ffn=Ffn(rngs)) for _ in range(1)])
        self.dropout = nnx.Dropout(rate)

    def encode(self, tokens, rngs):
        where = tokens > 0
        x = self.embedding[...][tokens]
        for layer in self.layers:
            x = x + self.drop(layer["ffn"](x), rngs)
        x = jnp.sum(jnp.where(where[..., None], x, 0), axis=-2)
        return x / jnp.maximum(1, where.sum(-1))[..., None]

    def drop(self, x, rngs):
        return x if rngs is None else self.dropout(x, rngs=rngs)

    def represent(self, batch, *, rngs=None):
        return {
            "query": self.encode(batch.query_tokens, rngs),
            "doc": self.encode(batch.doc_tokens, rngs),
            "there": batch.targets.where,
        }

    def scores(self, rep, batch):
        return jnp.einsum("bd,bnd->bn", rep["query"], rep["doc"])

    def cross_scores(self, rep, batch):
        return jnp.einsum("bd,cnd->bcn", rep["query"], rep["doc"])


def student(rate: float = 0.0, seed: int = 0):
    """Returns (graphdef, params)."""
    module = Towers(nnx.Rngs(seed), rate)
    graphdef, state = nnx.split(module, nnx.Param)
    return graphdef, nnx.to_pure_dict(state)


def batch(step: int, *, rows: int = 16, docs: int = 4, length: int = 6) -> DualBatch:
    """The batch of a step: the same whenever it is asked for."""
    rng = np.random.default_rng([7, step])
    where = rng.random((rows, docs)) < 0.8
    where[:, 0] = True
    where[1] = False
    return DualBatch(
        query_tokens=rng.integers(0, VOCAB, (rows, length), np.int32),
        doc_tokens=rng.integers(0, VOCAB, (rows, docs, 2 * length), np.int32),
        targets=Targets(
            labels=rng.normal(size=(rows, docs)).astype(np.float32),
            where=where,
            doc_rows=rng.integers(0, 1000, (rows, docs), np.int32),
            query_rows=np.arange(rows, dtype=np.int32) + rows * step,
        ),
    )


def feed(start: int):
    """An endless stream whose lengths change, as length buckets do."""
    step = start
    while True:
        yield batch(step, length=(6, 8)[step % 2])
        step += 1
