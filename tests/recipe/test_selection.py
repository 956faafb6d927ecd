"""How the best checkpoint is chosen: what is held out, and how often it is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distill_jax import main
from distill_jax.cli.flags import parse_flags
from distill_jax.collections.collection import Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.io.errors import UserError
from distill_jax.lists.lists import Lists, empty_lists
from distill_jax.recipe import selection
from distill_jax.recipe.candidates import Context
from distill_jax.recipe.training import Training

KINDS = ("questions", "claims", "titles")


def made_from(documents: int) -> dict[str, str]:
    """Query ids, as synthesis writes them, and the document of each."""
    return {f"d{n}|{kind}|0": f"d{n}" for n in range(documents) for kind in KINDS}


def split(known: dict[str, dict[str, int]], **settings) -> tuple[set[str], set[str]]:
    """Query ids on either side."""
    ids = list(known)
    count = len(ids)
    lists = Lists(
        **empty_lists(count, 2, 0) | {"query_rows": np.arange(count, dtype=np.int32)}
    )
    context = Context(
        workspace=None,  # type: ignore[arg-type]
        queries=Queries(ids, ["text"] * count),
        student=None,
        model=None,
        directory=Path(),
        qrels=Qrels(known),
    )
    training = Training(objective=None, measure="loss", dev_share=0.2, **settings)
    train, dev = selection.held_out(training, lists, context)
    assert dev is not None
    return tuple({ids[row] for row in side.query_rows} for side in (train, dev))


def test_the_queries_of_a_document_are_on_one_side():
    """Tamber et al. 2025: a sister query in training would tell the answer."""
    sources = made_from(100)
    train, dev = split({query: {doc: 1} for query, doc in sources.items()})
    assert len(train) + len(dev) == len(sources)
    assert 0.1 < len(dev) / len(sources) < 0.3
    assert not {sources[q] for q in train} & {sources[q] for q in dev}


def test_a_query_with_several_documents_is_split_by_its_own_id():
    known = {f"q{n}": {"same": 1, f"d{n}": 1} for n in range(100)}
    train, dev = split(known)
    assert 0.1 < len(dev) / len(known) < 0.3
    # Whatever else is known: the queries of people are where they were.
    more = split({f"q{n}": {} for n in range(100)})
    assert (train, dev) == more


def period(wanted, *, lists=1000, steps=900) -> int:
    training = Training(objective=None, batch_size=32, eval_period=wanted)
    return selection.period(training, lists, steps)


def test_evaluations_come_by_steps_or_by_epochs():
    assert period(None) == 225
    assert period(7) == 7
    assert period("epoch") == 31
    # Lists that fill no batch, and a training that sees no whole epoch.
    assert period("epoch", lists=10) == 1
    assert period("epoch", steps=12) == 12
    with pytest.raises(UserError, match="no evaluation period 'epochs'"):
        period("epochs")


@pytest.mark.parametrize(
    ("overlays", "measure", "wanted"),
    [((), "loss", "epoch"), (("small",), "loss", 2), (("laptop",), None, "epoch")],
)
def test_specialize_stops_after_two_epochs_without_a_better_one(
    overlays, measure, wanted
):
    """Tamber et al. 2025 evaluate after each epoch."""
    files = [f"--gin_file={name}.gin" for name in ("specialize", *overlays)]
    flags = parse_flags([*files, "--gin.COLLECTION=pydocs:json"])
    training = main.build_job(flags).stages[0].training
    assert (training.measure, training.eval_period) == (measure, wanted)
    assert training.patience == (None if "laptop" in overlays else 2)
