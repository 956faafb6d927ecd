"""How the best checkpoint is chosen: what is held out, and how often it is asked."""

from __future__ import annotations

import pytest

from distill_jax import main
from distill_jax.ir.errors import UserError
from distill_jax.jobs import recipes, selection
from distill_jax.jobs.training import Training


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
    flags = recipes.parse_flags([*files, "--gin.COLLECTION=pydocs:json"])
    training = main.build_job(flags).stages[0].training
    assert (training.measure, training.eval_period) == (measure, wanted)
    assert training.patience == (None if "laptop" in overlays else 2)
