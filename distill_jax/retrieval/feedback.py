"""Pseudo-relevance feedback on vectors: a query moves to what it found first."""

from __future__ import annotations

import numpy as np

from distill_jax.io.errors import UserError


def moved(
    queries: np.ndarray,
    docs: np.ndarray,
    scores: np.ndarray,
    where: np.ndarray,
    *,
    alpha: float = 1.0,
    temperature: float = 1.0,
) -> np.ndarray:
    r"""Queries moved by the weighted mean of their first documents (Rocchio).

    .. math::
        q' = \frac{q + \alpha \sum_i w_i d_i}{\|q + \alpha \sum_i w_i d_i\|}, \quad
        w = \text{softmax}(s / T)

    Source: Rocchio (1971) with positive feedback alone; Li et al. 2022, "Pseudo
    Relevance Feedback with Deep Language Models and Dense Retrievers", of vectors.

    Args:
        queries: [Q, D] of unit length.
        docs: [Q, K, D] vectors of the first documents, of unit length.
        scores: [Q, K] of the order that found them; anything where padded.
        where: [Q, K]. A query without documents stays where it is.
        alpha: how far; 0 does not move.
        temperature: divides the scores; large ones weigh the documents alike.

    Returns:
        float32[Q, D] of unit length.

    Raises:
        UserError: a negative alpha, or a temperature that is not above 0.
    """
    if alpha < 0 or not temperature > 0:
        raise UserError(
            f"feedback with alpha {alpha} and temperature {temperature}",
            "alpha >= 0 and temperature > 0",
        )
    logits = np.where(where, np.asarray(scores, np.float64) / temperature, -np.inf)
    most = logits.max(-1, keepdims=True, initial=-1e30)
    weights = np.exp(logits - most)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    docs = np.where(where[..., None], docs, 0.0)
    found = queries + alpha * np.einsum("qk,qkd->qd", weights, docs)
    lengths = np.linalg.norm(found, axis=-1, keepdims=True)
    return (found / np.maximum(lengths, 1e-12)).astype(np.float32)
