"""The loss of held-out lists, by the objective that is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax import nnx

from distill_jax.batches import batch_size
from distill_jax.models import sharding


def validation(
    graphdef: Any, objective: Any, batches: Callable[[], Iterable[Any]], mesh: Any
) -> Callable[[Any], dict[str, float]]:
    """A function from parameters to the mean loss, and its parts, of held-out batches.

    The mean weighs batches by their queries. A loss that contrasts across a batch
    depends on the batch's size, so compare only runs with equal ``BATCH_SIZE``.

    Args:
        batches: gives the same host batches at every call.
    """

    @jax.jit
    def loss_of(params: Any, batch: Any) -> Any:
        student = nnx.merge(graphdef, nnx.State(params))
        return objective(student, student.represent(batch), batch)

    def run(params: Any) -> dict[str, float]:
        sums: dict[str, float] = {}
        count = 0
        for batch in batches():
            size = batch_size(batch)
            loss, parts = jax.device_get(
                loss_of(params, sharding.shard_batch(batch, mesh))
            )
            for name, value in {"loss": loss, **parts}.items():
                sums[name] = sums.get(name, 0.0) + size * float(np.asarray(value))
            count += size
        return {name: total / count for name, total in sums.items()}

    return run
