"""One gradient of a small loaded student, on one device and on eight."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from distill_jax import losses
from distill_jax.batches import DualBatch, PairBatch, Targets
from distill_jax.losses.mixture import Mixture, Term
from distill_jax.models.pretrained import Pretrained, flatten
from distill_jax.runtime import sharding
from distill_jax.training import optimizers
from distill_jax.training import state as states
from distill_jax.training.step import make_gradient

ROWS, DOCS, LENGTH = 8, 2, 12


def batch_of(student: Pretrained) -> DualBatch | PairBatch:
    """Random tokens of the model's vocabulary, padded, with random labels."""
    random = np.random.default_rng(0)
    most = student.tokenizer.vocab_size
    pad = student.tokenizer.pad_id or 0

    def tokens(*shape):
        found = random.integers(5, most, (*shape, LENGTH)).astype(np.int32)
        found[..., 0, 9:] = pad
        return found

    targets = Targets(
        labels=random.normal(size=(ROWS, DOCS)).astype(np.float32) * 3,
        where=np.ones((ROWS, DOCS), bool),
    )
    docs = tokens(ROWS, DOCS)
    if student.spec.kind == "reranker":
        return PairBatch(tokens=docs, targets=targets)
    return DualBatch(query_tokens=tokens(ROWS), doc_tokens=docs, targets=targets)


def gradient(student: Pretrained, mesh: str | None = None) -> tuple[float, dict]:
    """The loss of a batch and the gradient of every parameter, without dropout."""
    on = sharding.make_mesh(mesh) if mesh else None
    alone = sharding.make_mesh(devices=jax.devices()[:1])
    state = states.create(
        student.params, optimizers.adamw(learning_rate=1e-3), on or alone, seed=3
    )
    batch: Any = batch_of(student)
    how: dict[str, Any] = {}
    if on is not None:
        batch = sharding.shard_batch(batch, on)
        how["rows"] = NamedSharding(on, sharding.BATCH)
    objective = Mixture((Term("list", losses.kl_divergence),))
    run = jax.jit(make_gradient(student.graphdef(), objective, **how))
    with jax.default_matmul_precision("highest"):
        (loss, _), grads = run(state.params, batch, None)
    return float(loss), flatten(jax.device_get(grads))
