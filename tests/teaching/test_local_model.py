"""A T5 of our own as the LLM."""

from __future__ import annotations

import numpy as np
import pytest

from distill_jax.collections.collection import Collection, Queries
from distill_jax.io.errors import UserError
from distill_jax.runs.run import Run
from distill_jax.teaching.clients import LocalModel, Request
from distill_jax.teaching.rankings import label_listwise
from tests.export.forms import student

CHAT = [{"role": "user", "content": "how does water boil"}]


def opened(tmp_path, **fields):
    config = LocalModel(checkpoint="x", **fields)
    return config.at(tmp_path, load=lambda name: student("t5_monot5"))


def test_it_completes_greedily_and_by_its_seed(tmp_path):
    session = opened(tmp_path)
    greedy = Request(id="a", messages=CHAT, max_tokens=8)
    other = Request(
        id="b", messages=[{"role": "user", "content": "city"}], max_tokens=8
    )
    sampled = [
        Request(id=f"s{n}", messages=CHAT, temperature=1.0, max_tokens=8, seed=n % 4)
        for n in range(8)
    ]
    replies = session.complete_all([greedy, *sampled, other])
    assert all(isinstance(reply, str) for reply in replies)
    assert replies[1:5] == replies[5:9]
    assert len(set(replies[1:5])) > 1
    # What is said does not depend on what else was asked.
    assert session.complete_all([other, greedy]) == [replies[-1], replies[0]]
    counts = session.counts()
    assert counts["calls"] == counts["succeeded"] == 12
    assert session.model.startswith("local:")


def test_prompts_that_are_too_long_fail_and_are_not_cut(tmp_path):
    session = opened(tmp_path, longest=30)
    long = [{"role": "user", "content": "water " * 60}]
    replies = session.complete_all(
        [Request(id="a", messages=long), Request(id="b", messages=CHAT, max_tokens=4)]
    )
    assert replies[0] is None
    assert replies[1] is not None
    assert session.counts()["failures"] == {"prompt too long": 1}


def test_what_it_cannot_rank_is_a_failure(tmp_path):
    docs = Collection(["a", "b"], ["water", "city"])
    queries = Queries(["q"], ["water"])
    run = Run(["q"], np.asarray([[0, 1]]), np.asarray([[2.0, 1.0]]), docs.ids)
    session = opened(tmp_path)
    labels = label_listwise(
        session, queries, docs, run, tmp_path / "l", most_failed=1.0, reply_tokens=4
    )
    assert labels.failed.tolist() == [True]
    counts = labels.provenance["counts"]
    assert counts["calls"] == counts["replies"] == 2


def test_what_was_asked_before_a_restart_is_counted(tmp_path):
    for name in ("rank-0123abcd/a", "rank-0123abcd/b", "read/c"):
        opened(tmp_path).complete_all([Request(id=name, messages=CHAT, max_tokens=4)])
    counts = opened(tmp_path).counts("rank-0123abcd")
    assert (counts["calls"], counts["succeeded"], counts["cost"]) == (2, 2, 0.0)
    assert counts["prompt_tokens"] > 2
    assert opened(tmp_path).counts()["calls"] == 3


def test_an_encoder_cannot_generate(tmp_path):
    with pytest.raises(UserError, match="cannot generate"):
        LocalModel(checkpoint="x").at(tmp_path, load=lambda name: student("t5_linear"))
