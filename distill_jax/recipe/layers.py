"""A student of fewer layers: some of its teacher's, in their order.

What is left is a start and not a model: it has to be taught (Sanh et al. 2019 took
every second layer of BERT; Wang et al. 2023 find evenly spaced ones hard to beat).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from distill_jax.io.errors import UserError
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.models.pretrained import Pretrained


def with_layers(model: Pretrained, kept: Sequence[int]) -> Pretrained:
    """The model with these layers of each encoder alone.

    Args:
        kept: numbers from 0, ascending.

    Raises:
        UserError: no BERT or ELECTRA, or a layer that it does not have.
    """
    sizes = model.spec.backbone
    if not isinstance(sizes, BertSizes):
        raise UserError(
            "layers are chosen of a BERT or an ELECTRA, not of a T5",
            "leave layers out, or start from another checkpoint",
        )
    wanted = list(kept)
    if (
        not wanted
        or wanted != sorted(set(wanted))
        or not set(wanted) <= {*range(sizes.layers)}
    ):
        raise UserError(
            f"layers {tuple(wanted)} of a model of {sizes.layers}",
            f"ascending numbers from 0 to {sizes.layers - 1}",
        )
    spec = dataclasses.replace(
        model.spec, backbone=dataclasses.replace(sizes, layers=len(wanted))
    )
    return model.replace(spec=spec, params=_chosen(model.params, wanted))


def _chosen(tree: Any, wanted: list[int]) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {
        name: {new: value[old] for new, old in enumerate(wanted)}
        if name == "layers"
        else _chosen(value, wanted)
        for name, value in tree.items()
    }
