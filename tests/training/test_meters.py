"""Means that merge."""

from __future__ import annotations

import json
import math

from distill_jax.training.meters import Goodput, Mean, Meters


def test_means_merge_as_sums_and_counts():
    assert (Mean(6, 2) + Mean(0, 1)).value == 2
    assert math.isnan(Mean().value)


def test_a_number_that_is_missing_is_not_counted():
    meters = Meters()
    meters.add({"loss": 1.0, "score_spread": math.nan})
    meters.add({"loss": 4.0, "score_spread": 2.0}, count=2)
    assert meters.flush() == {"loss": 3.0, "score_spread": 2.0}
    assert meters.flush() == {}


def test_meters_survive_json_exactly():
    meters = Meters()
    meters.add({"loss": 0.1})
    meters.add({"loss": 0.2})
    again = Meters.from_json(json.loads(json.dumps(meters.to_json())))
    meters.add({"loss": 0.3})
    again.add({"loss": 0.3})
    assert again.flush() == meters.flush()


def test_seconds_add_up_by_kind():
    goodput = Goodput()
    goodput.add("step", 2.0)
    goodput.add("step", 1.0)
    goodput.add("input", 0.5)
    report = goodput.report()
    assert report["step"] == 3.0
    assert report["goodput"] == 3.0 / report["wall"]
