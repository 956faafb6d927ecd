"""How a training's best checkpoint is chosen: on what, by what, and how often."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from distill_jax.evaluation.measures import evaluate
from distill_jax.inputs.feed import Featurizer, validation_batches
from distill_jax.io.draws import split_by_hash
from distill_jax.io.errors import UserError
from distill_jax.lists.lists import Lists
from distill_jax.models.pretrained import Pretrained
from distill_jax.recipe.candidates import BM25, Context
from distill_jax.runtime import sharding
from distill_jax.training.validation import validation
from distill_jax.workspace import ranking
from distill_jax.workspace.console import say


class Selection(Protocol):
    """The settings of a training that decide how its checkpoints are measured."""

    @property
    def measure(self) -> str | None: ...
    @property
    def objective(self) -> Any: ...
    @property
    def eval_period(self) -> int | str | None: ...
    @property
    def dev_share(self) -> float: ...
    @property
    def dev_depth(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def chunk(self) -> int | None: ...
    @property
    def micro_batch(self) -> int | None: ...
    @property
    def dev_needed(self) -> bool: ...


def held_out(
    training: Selection, lists: Lists, context: Context
) -> tuple[Lists, Lists | None]:
    """The lists to train on, and those that the loss is measured on.

    None of the latter where another measure chooses, or where a side would be empty.
    """
    if training.measure != "loss":
        return lists, None
    dev = split_by_hash(_names(lists, context), training.dev_share)
    if not dev.any() or dev.all():
        return lists, None
    return lists.take(np.flatnonzero(~dev)), lists.take(np.flatnonzero(dev))


def _names(lists: Lists, context: Context) -> list[str]:
    """The key that each list is split by: its query's one known document, or its query.

    Queries generated from one document are nearly the same: all are on one side
    (Tamber et al. 2025 split by passage).
    """
    names = []
    for row in lists.query_rows:
        query = str(context.queries.ids[row])
        known = context.qrels.of(query) if context.qrels is not None else ()
        names.append(next(iter(known)) if len(known) == 1 else query)
    return names


def period(training: Selection, lists: int, steps: int) -> int:
    """Steps between evaluations.

    Args:
        lists: trained on.
        steps: in all.
    """
    wanted = training.eval_period
    if wanted == "epoch":
        return max(1, min(steps, round(lists / training.batch_size)))
    if isinstance(wanted, str):
        raise UserError(
            f"no evaluation period {wanted!r}", "a number of steps, or 'epoch'"
        )
    return wanted or max(1, steps // 4)


def _pieces(training: Selection, mesh: Any) -> int | None:
    """Queries at a time over all devices, as training takes them."""
    each = training.chunk or training.micro_batch
    return None if each is None else each * sharding.data_devices(mesh)


def evaluation(
    training: Selection,
    student: Pretrained,
    context: Context,
    featurizer: Featurizer,
    dev: Lists | None,
    *,
    searcher: Callable[..., Any] | None = None,
) -> Callable[[Any, int], dict[str, float]] | None:
    """What is measured during training: held-out loss, or ranking of dev queries.

    None where the last checkpoint is kept.

    Args:
        searcher: ``(context, queries, depth=)`` for a search from parameters, where
            documents keep their vectors: dev queries then search them all, which
            costs no more than their own encoding.
    """
    measure, workspace = training.measure, context.workspace
    if measure is None:
        return None
    if measure == "loss":
        if dev is None:
            return None
        run = validation(
            student.graphdef(),
            training.objective,
            lambda: validation_batches(
                dev,
                featurizer,
                training.batch_size,
                multiple_of=sharding.data_devices(workspace.mesh),
                host=jax.process_index(),
                hosts=jax.process_count(),
            ),
            workspace.mesh,
            at_once=_pieces(training, workspace.mesh),
        )
        return lambda params, step: run(params)
    judged = workspace.dev
    if not (training.dev_needed or workspace.dev_is_judged):
        say(f"note: no dev judgements for {measure}: the last checkpoint is kept")
        return None
    if judged is None:
        raise UserError(
            f"{measure} needs dev judgements, and the collection has none",
            "use measure = 'loss', or None for the last checkpoint",
        )
    if searcher is not None:
        search = searcher(context, judged.queries, depth=100)
        return lambda params, step: evaluate(search(params), judged.qrels, [measure])
    source = BM25(depth=training.dev_depth)
    candidates = source(dataclasses.replace(context, queries=judged.queries))

    def rank_dev(params: Any, step: int) -> dict[str, float]:
        del step
        model = student.replace(params=params)
        run = ranking.rerank(model, judged.queries, candidates, workspace)
        return evaluate(run, judged.qrels, [measure])

    return rank_dev
