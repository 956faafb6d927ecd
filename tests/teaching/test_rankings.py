"""Listwise teachers: whole lists, failures as failures, kills that change nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from distill_jax.collections.collection import Collection, Queries
from distill_jax.io.errors import Unfinished, UserError
from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.store import shards
from distill_jax.runs.run import Run
from distill_jax.teaching.clients import Client
from distill_jax.teaching.rankings import estimate, label_listwise
from distill_jax.teaching.reader import answer_questions
from tests.teaching.fake_llm import FakeLLM, answer

WORDS = [
    "amber",
    "birch",
    "cedar",
    "dune",
    "ember",
    "fjord",
    "grove",
    "heath",
    "inlet",
    "knoll",
]


def world(queries=6, docs=50, depth=12, seed=0):
    """Docs of a few words, queries of three, and a run that is in no good order."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(docs)]
    collection = Collection([f"d{i}" for i in range(docs)], texts)
    asked = Queries(
        [f"q{i}" for i in range(queries)],
        [" ".join(rng.choice(WORDS, 3, replace=False)) for _ in range(queries)],
    )
    lists = [
        [(f"d{d}", float(-i)) for i, d in enumerate(rng.permutation(docs)[:depth])]
        for _ in range(queries)
    ]
    return collection, asked, Run.from_lists(asked.ids, lists, collection.ids)


class Model:
    """An LLM in this process: answers by a function of (call's number, request)."""

    model = "in-process"

    def __init__(self, say=lambda number, request: answer(request.messages)):
        self.say, self.requests = say, []

    def complete_all(self, requests):
        found = []
        for request in requests:
            found.append(self.say(len(self.requests), request))
            self.requests.append(request)
        return found

    def counts(self, job=None):
        return {"calls": len(self.requests), "cached": 0, "cost": 0.0, "failures": {}}


def overlap(collection, queries, run, line):
    """Shared words of each of a query's docs."""
    query = set(queries.texts[line].split())
    return [len(query & set(collection.texts[row].split())) for row in run.rows[line]]


@pytest.mark.parametrize("multi_turn", [False, True])
@pytest.mark.parametrize("window", [4, 12, 20])
def test_the_best_come_first_and_every_candidate_has_a_rank(
    tmp_path, window, multi_turn
):
    collection, queries, run = world()
    labels = label_listwise(
        Model(),
        queries,
        collection,
        run,
        tmp_path,
        window=window,
        step=window // 2,
        multi_turn=multi_turn,
    )
    assert labels.kind == "rank"
    assert not labels.failed.any()
    for line in range(len(run)):
        assert sorted(labels.scores[line].tolist()) == list(range(1, 13))
        shared = np.asarray(overlap(collection, queries, run, line))
        order = np.argsort(labels.scores[line])
        best = shared[order]
        # One sliding pass is sure of its first ``step`` places only.
        sure = 12 if window >= 12 else window // 2
        assert best[:sure].tolist() == sorted(shared, reverse=True)[:sure]
        if window >= 12:
            # Equal overlap keeps first-stage order, as the prompt's order is it.
            assert order.tolist() == sorted(range(12), key=lambda i: (-shared[i], i))


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_lists_below_the_window_are_covered(tmp_path, depth):
    collection, queries, run = world(depth=depth)
    model = Model()
    labels = label_listwise(model, queries, collection, run, tmp_path)
    assert len(model.requests) == (0 if depth == 1 else len(run))
    assert labels.where.all()


def test_ragged_lists(tmp_path):
    collection, queries, _ = world()
    lists = [[(f"d{d}", -d) for d in range(n)] for n in (7, 1, 3)]
    run = Run.from_lists(["q0", "q1", "q2"], lists, collection.ids)
    labels = label_listwise(
        Model(), queries, collection, run, tmp_path, window=4, step=2
    )
    assert labels.lengths().tolist() == [7, 1, 3]
    assert not labels.failed.any()
    labels.check()


def test_a_reply_that_cannot_be_used_is_stored_as_a_failure(tmp_path):
    collection, queries, run = world(queries=10)

    def say(number, request):
        if request.id.split("/")[1] in ("q3", "q7"):
            return "I cannot rank these." if "q3" in request.id else None
        return answer(request.messages)

    model = Model(say)
    labels = label_listwise(model, queries, collection, run, tmp_path, most_failed=0.3)
    assert np.flatnonzero(labels.failed).tolist() == [3, 7]
    assert np.isnan(labels.scores[[3, 7]]).all()
    counts = labels.provenance["counts"]
    assert counts["queries_failed"] == 2
    # The refusal was asked for again, with another seed and some temperature.
    assert counts["failures"] == {"no identifiers": 2, "no reply": 1}
    tries = [r for r in model.requests if "/q3/" in r.id]
    assert [r.temperature for r in tries] == [0.0, 0.7]
    assert tries[0].seed != tries[1].seed
    # Failures are done, unless they are asked for again.
    again = Model()
    label_listwise(again, queries, collection, run, tmp_path)
    assert not again.requests
    labels = label_listwise(
        again, queries, collection, run, tmp_path, retry_failed=True
    )
    assert len(again.requests) == 2
    assert not labels.failed.any()
    assert not TeacherLabels.read(tmp_path).failed.any()


def test_a_second_try_that_succeeds_is_used(tmp_path):
    collection, queries, run = world()
    say = lambda n, r: answer(r.messages) if r.temperature else "no"  # noqa: E731
    labels = label_listwise(Model(say), queries, collection, run, tmp_path)
    assert not labels.failed.any()
    assert labels.provenance["counts"]["failures"] == {"no identifiers": 6}


def test_too_many_failures_end_the_job_and_keep_nothing_of_the_shard(tmp_path):
    collection, queries, run = world(queries=60)
    say = lambda n, r: answer(r.messages) if n < 30 else "no"  # noqa: E731
    with pytest.raises(UserError, match="no usable reply") as caught:
        label_listwise(Model(say), queries, collection, run, tmp_path, shard_queries=10)
    assert "no identifiers" in str(caught.value)
    kept = len(shards(tmp_path))
    assert kept < 6
    labels = label_listwise(
        Model(), queries, collection, run, tmp_path, shard_queries=10, most_failed=0.9
    )
    assert len(labels) == 60


def test_repairs_are_counted_by_kind_across_shards_and_restarts(tmp_path):
    collection, queries, run = world(queries=6, depth=3)
    say = lambda n, r: "[2] > [2] > [9] > [1]"  # noqa: E731
    for stop in (2, 99):
        some = run.select(run.query_ids)
        model = Model(say)

        def progress(done, total, stop=stop):
            if done >= stop:
                raise KeyboardInterrupt

        if stop == 2:
            with pytest.raises(KeyboardInterrupt):
                label_listwise(
                    model, queries, collection, some, tmp_path,
                    shard_queries=2, progress=progress,
                )  # fmt: skip
        else:
            labels = label_listwise(
                model, queries, collection, some, tmp_path, shard_queries=2
            )
    assert len(model.requests) == 4
    counts = labels.provenance["counts"]
    assert counts["repairs"] == {"duplicate": 6, "missing": 6, "unknown": 6}
    assert counts["replies_repaired"] == counts["replies"] == 6
    assert labels.scores[0].tolist() == [2.0, 1.0, 3.0]


def test_passes_agree_and_their_mean_rank_counts(tmp_path):
    collection, queries, run = world()
    labels = label_listwise(Model(), queries, collection, run, tmp_path / "a", passes=3)
    counts = labels.provenance["counts"]
    assert counts["replies"] == 18
    assert 0.3 < counts["agreement_tau"] < 1.0
    # A model that repeats what it is shown agrees with itself by chance only, and
    # its position bias is perfect.
    lazy = Model(lambda n, r: " > ".join(f"[{i}]" for i in range(1, 13)))
    counts = label_listwise(
        lazy, queries, collection, run, tmp_path / "b", passes=4
    ).provenance["counts"]
    assert abs(counts["agreement_tau"]) < 0.3
    assert counts["position_bias_tau"] == counts["tau_to_shown"] == 1.0


def test_direct_scores(tmp_path):
    collection, queries, run = world()
    model = Model()
    labels = label_listwise(
        model, queries, collection, run, tmp_path, window=5, direct_scores=True
    )
    assert labels.kind == "score"
    assert len(model.requests) == 6 * 3
    for line in range(len(run)):
        shared = np.asarray(overlap(collection, queries, run, line))
        np.testing.assert_allclose(labels.scores[line], shared / 3, atol=1e-3)


def test_labels_know_their_prompt_method_and_candidates(tmp_path):
    collection, queries, run = world()
    label_listwise(Model(), queries, collection, run, tmp_path)
    prompt = tmp_path / "p.txt"
    prompt.write_text("{query} {documents}")
    others = [{"prompt": str(prompt)}, {"window": 6, "step": 3}, {"passes": 2}]
    for other in others:
        with pytest.raises(UserError, match="labels with"):
            label_listwise(Model(), queries, collection, run, tmp_path, **other)
    with pytest.raises(UserError, match="candidates"):
        label_listwise(Model(), queries, collection, run.top(5), tmp_path)
    with pytest.raises(UserError, match="step of 9"):
        label_listwise(Model(), queries, collection, run, tmp_path, window=5, step=9)


def test_the_estimate_is_what_it_takes(tmp_path):
    collection, queries, run = world(queries=20)
    client = Client(base_url="http://x/v1", model="m", price_in=1.0, price_out=2.0)
    model = Model()
    label_listwise(
        model, queries, collection, run, tmp_path, window=5, step=3, passes=2
    )
    found = estimate(client.cost, queries, collection, run, window=5, step=3, passes=2)
    assert found["calls"] == len(model.requests)
    from distill_jax.teaching.chat import estimated_tokens

    tokens = sum(estimated_tokens(r.messages) for r in model.requests)
    assert found["prompt_tokens"] == pytest.approx(tokens, rel=0.1)
    most = sum(r.max_tokens for r in model.requests)
    assert found["completion_tokens"] == most
    assert found["cost"] == pytest.approx((tokens + 2 * most) / 1e6, rel=0.1)
    bare = estimate(client.cost, queries, collection, depth=12, window=5, step=3)
    assert bare["calls"] * 2 == found["calls"]


def test_the_budget_stops_cleanly_and_a_higher_one_ends_with_the_same_labels(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("NO_PROXY", "*")
    collection, queries, run = world(queries=12)
    expected = label_listwise(Model(), queries, collection, run, tmp_path / "whole")
    with FakeLLM(["good", "duplicates"]) as llm:
        args = queries, collection, run, tmp_path / "labels"
        client = Client(base_url=llm.base_url, model="m", budget_calls=7)
        session = client.at(tmp_path)
        with pytest.raises(Unfinished, match="7 of 7"):
            label_listwise(session, *args, shard_queries=4)
        assert len(llm.calls) == 7
        assert len(shards(tmp_path / "labels")) == 1
        session.close()
        llm.behave = lambda number, body: "good"
        client = Client(base_url=llm.base_url, model="m", budget_calls=12)
        labels = label_listwise(client.at(tmp_path), *args, shard_queries=4)
        assert len(llm.calls) == 12
    counts = labels.provenance["counts"]
    assert counts["calls"] == counts["succeeded"] == 12
    assert counts["cached"] == 3
    assert (labels.scores[8:] == expected.scores[8:]).all()


CHILD = """
import sys
from pathlib import Path
from tests.teaching.test_rankings import world
from distill_jax.teaching.clients import Client
from distill_jax.teaching.rankings import label_listwise
url, folder, queries = sys.argv[1:]
collection, asked, run = world(int(queries))
client = Client(base_url=url, model="m", concurrency=4)
print("ready", flush=True)
label_listwise(client.at(folder), asked, collection, run, Path(folder) / "labels",
               shard_queries=4, window=6, step=3)
"""


@pytest.mark.long
def test_kills_lose_no_label_and_pay_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    collection, queries, run = world(queries=40)
    expected = label_listwise(
        Model(), queries, collection, run, tmp_path / "whole", window=6, step=3
    )
    rng = np.random.default_rng(0)
    with FakeLLM("late", late=0.02) as llm:
        kills = 0
        for _ in range(30):
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD, llm.base_url, str(tmp_path / "x"), "40"],
                stdout=subprocess.PIPE,
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
            )
            assert child.stdout is not None
            child.stdout.readline()
            if kills < 4:
                time.sleep(float(rng.uniform(0.05, 0.5)))
                child.send_signal(signal.SIGKILL)
                kills += child.wait() == -signal.SIGKILL
                continue
            assert child.wait(60) == 0
            break
        assert kills == 4
    labels = TeacherLabels.read(tmp_path / "x" / "labels", collection=collection)
    order = labels.select(expected.query_ids)
    np.testing.assert_array_equal(order.scores, expected.scores)
    np.testing.assert_array_equal(order.rows, expected.rows)
    # Only what was in flight at a kill was asked for again.
    asked = Counter(str(call["messages"]) for call in llm.calls)
    assert sum(asked.values()) - len(asked) <= 4 * 4
    counts = labels.provenance["counts"]
    assert counts["succeeded"] + counts["failed"] == counts["calls"]
    assert counts["failures"] == {}
    assert counts["queries"] == counts["replies"] / 3 == 40


def test_a_reader_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    collection, queries, run = world()
    with FakeLLM() as llm:
        client = Client(base_url=llm.base_url, model="m").at(tmp_path)
        said, counts = answer_questions(client, queries, collection, run, top_k=2)
        assert counts["calls"] == counts["succeeded"] == 6
        again = answer_questions(client, queries, collection, run, top_k=2)
        assert again.said == said
        assert (again.counts["calls"], again.counts["cached"]) == (6, 6)
        assert len(llm.calls) == 6
    for line, query_id in enumerate(run.query_ids):
        first = collection.texts[run.rows[line, 0]].split()[:3]
        assert said[query_id] == " ".join(first)
