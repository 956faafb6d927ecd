"""Losses between the student's vectors and a teacher's: no list, no order.

They read representations (``on="rep"``): ``q`` [B, D] are the student's vectors of the
texts and ``d`` [B, 1, D] the teacher's vectors of the same texts, which are constants.
"""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax.ops import masked
from distill_jax.ops.similarity import normalise


def embedding_distance(
    rep: dict[str, Any],
    batch: Any,
    *,
    metric: Literal["l2", "mse", "cosine"] = "l2",
) -> Float[Array, ""]:
    r"""How far each vector of the student is from the teacher's.

    .. math::
        \text{l2: } \|s - t\|, \quad \text{mse: } \tfrac{1}{D}\|s - t\|^2, \quad
        \text{cosine: } 1 - \cos(s, t)

    Source: LEAF (Vujanic and Rueckstiess 2025) takes the mean l2 distance; EmbedDistill
    (Kim et al. 2023) the squared one.

    Args:
        rep: ``q`` [B, D] and ``d`` [B, 1, D].
        batch: its ``targets.where`` says which texts are there; the mean is over them.
        metric: as above.
    """
    student, teacher, where = _vectors(rep, batch)
    if metric == "cosine":
        values = 1.0 - jnp.sum(normalise(student) * normalise(teacher), -1)
    else:
        squares = jnp.sum(jnp.square(student - teacher), -1)
        if metric == "mse":
            values = squares / student.shape[-1]
        elif metric == "l2":
            # The root has no gradient at 0, where the student is the teacher.
            apart = where & (squares > 0)
            values = jnp.sqrt(jnp.where(apart, squares, 1.0))
            values = jnp.where(apart, values, 0.0)
        else:
            raise ValueError(
                f"metric should be 'l2', 'mse' or 'cosine'; {metric!r} is given."
            )
    return masked.mean(values, where)


def similarity_matrix(rep: dict[str, Any], batch: Any) -> Float[Array, ""]:
    r"""Squared difference of the two matrices of cosines between a batch's texts.

    .. math:: \ell = \text{mean}_{i \ne j} (\cos(s_i, s_j) - \cos(t_i, t_j))^2

    Source: similarity-preserving distillation (Tung and Mori 2019), as Jasper and
    Stella (Zhang et al. 2024) have it. Both may have widths of their own, but
    ``embedding_distance`` needs a projection then.

    Args:
        rep: ``q`` [B, D] and ``d`` [B, 1, E].
        batch: its ``targets.where`` says which texts are there.
    """
    student, teacher, where = _vectors(rep, batch)
    both = where[:, None] & where[None, :] & ~jnp.eye(len(where), dtype=bool)
    student, teacher = normalise(student), normalise(teacher)
    differences = student @ student.T - teacher @ teacher.T
    return masked.mean(jnp.square(differences), both)


def _vectors(rep: dict[str, Any], batch: Any) -> tuple[Array, Array, Array]:
    where = batch.targets.where[:, 0]
    student, teacher = rep["q"], rep["d"][:, 0]
    return (
        masked.fill(student, where[:, None]),
        masked.fill(teacher, where[:, None]),
        where,
    )
