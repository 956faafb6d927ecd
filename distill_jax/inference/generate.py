"""Texts that a T5 writes: many rows on the devices of a mesh, gathered on each host."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from distill_jax.inference.forward import placed
from distill_jax.io.errors import UserError
from distill_jax.models.generation import Decoding
from distill_jax.models.generation import generate as decode
from distill_jax.runtime.sharding import batch_sharding


def generate(
    pretrained: Any,
    tokens: Int[np.ndarray, "M L"],
    *,
    seeds: Int[np.ndarray, "M"] | None = None,
    max_new_tokens: int = 48,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    mesh: Any = None,
) -> np.ndarray:
    """Token ids that a T5 writes for each row, ended by </s> and padded with 0.

    Args:
        pretrained: a generator, or any student with a T5 backbone that has a decoder.
        tokens: sources, padded with 0.
        seeds: one a row: what is sampled for a row depends on its seed alone.
        max_new_tokens, temperature, top_k, top_p: see ``generation.Decoding``.
        mesh: devices; the rows must divide over its data axes. None runs on one.

    Raises:
        UserError: the model has no decoder.
    """
    sizes = pretrained.spec.backbone
    if not getattr(sizes, "decoder_layers", 0):
        raise UserError(
            f"{pretrained.source or 'the model'} has no decoder, it cannot generate",
            "give a T5ForConditionalGeneration",
        )
    decoding = Decoding(
        max_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p
    )
    params = placed(pretrained, mesh)["backbone"]
    seeds = np.arange(len(tokens)) if seeds is None else seeds
    rows = [np.asarray(tokens, np.int32), np.asarray(seeds, np.uint32)]
    if mesh is not None:
        # Every process holds the whole batch and takes the rows of its own devices.
        rows = [
            jax.make_array_from_callback(
                row.shape, batch_sharding(row, mesh), lambda at, row=row: row[at]
            )
            for row in rows
        ]
    found, _ = decode(sizes, params, rows[0], decoding, seeds=rows[1], mesh=mesh)
    if found.is_fully_addressable:
        return np.asarray(found)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(found, tiled=True))
