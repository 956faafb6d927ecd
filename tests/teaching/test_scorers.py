"""Pointwise teachers: raw logits, paid for once, the same after any number of kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from distill_jax.collections.collection import Collection, Queries
from distill_jax.inference.forward import score_features
from distill_jax.io.errors import UserError
from distill_jax.labels.labels import TeacherLabels
from distill_jax.runs.run import Run
from distill_jax.teaching.cache import ScoreCache, pair_keys
from distill_jax.teaching.scorers import label_run
from distill_jax.text.features import Features
from distill_jax.text.token_store import TokenStore
from tests.export.forms import student

WORDS = [
    "the",
    "of",
    "and",
    "water",
    "boil",
    "vaccine",
    "city",
    "vote",
    "bus",
    "vitamin",
    "bone",
    "pain",
    "japan",
]


def world(queries=6, docs=40, depth=5, seed=0):
    rng = np.random.default_rng(seed)
    model = student("bert_cross")

    def say(low, high):
        return " ".join(rng.choice(WORDS, rng.integers(low, high)))

    collection = Collection(
        [f"d{i}" for i in range(docs)], [say(2, 14) for _ in range(docs)]
    )
    asked = Queries(
        [f"q{i}" for i in range(queries)], [say(1, 5) for _ in range(queries)]
    )
    rows = np.stack([rng.permutation(docs)[:depth] for _ in range(queries)])
    scores = -np.arange(depth, dtype=np.float32)[None].repeat(queries, 0)
    run = Run(asked.ids, rows, scores, collection.ids)
    features = Features(
        model.spec.template,
        model.tokenizer,
        query=TokenStore.build(asked.texts, model.tokenizer),
        document=TokenStore.build(collection.texts, model.tokenizer),
    )
    return model, features, asked, run


def test_scores_are_the_models_own(tmp_path):
    model, features, queries, run = world()
    labels = label_run(model, features, queries, run, tmp_path, shard_pairs=10)
    assert labels.kind == "score"
    assert labels.provenance["weights"] == model.digest
    assert labels.provenance["candidates"] == run.digest
    for line, query_id in enumerate(labels.query_ids):
        place = run.query_ids.index(query_id)
        alone = score_features(
            model,
            features,
            query=np.full(5, queries.row(query_id)),
            document=run.rows[place],
        )
        ids = [labels.doc_ids[row] for row in labels.rows[line]]
        assert ids == [run.doc_ids[row] for row in run.rows[place]]
        np.testing.assert_allclose(labels.scores[line], alone, atol=1e-5)


def test_pairs_that_are_known_by_text_are_not_scored_again(tmp_path, monkeypatch):
    model, features, queries, run = world()
    cache = tmp_path / "scores"
    first = label_run(model, features, queries, run, tmp_path / "a", cache=cache)
    assert first.provenance["counts"]["computed"] == 30
    # Half of the candidates stay, as in a round of mining.
    rows = run.rows.copy()
    for line in rows:
        line[3:] = np.setdiff1d(np.arange(40), line)[:2]
    again = Run(run.query_ids, rows, run.scores, run.doc_ids)
    second = label_run(model, features, queries, again, tmp_path / "b", cache=cache)
    counts = second.provenance["counts"]
    assert counts["cached"] >= 18
    assert counts["cached"] + counts["computed"] == 30
    fresh = label_run(model, features, queries, again, tmp_path / "c")
    np.testing.assert_allclose(second.scores, fresh.scores, atol=1e-5)
    third = label_run(model, features, queries, again, tmp_path / "d", cache=cache)
    assert third.provenance["counts"]["computed"] == 0
    np.testing.assert_array_equal(third.scores, second.scores)


def test_ragged_and_empty_lists(tmp_path):
    model, features, queries, run = world()
    rows = run.rows.copy()
    rows[1, 2:], rows[3, :] = -1, -1
    ragged = Run(run.query_ids, rows, run.scores, run.doc_ids)
    labels = label_run(model, features, queries, ragged, tmp_path, shard_pairs=1)
    by_id = dict(zip(labels.query_ids, labels.lengths().tolist()))
    assert by_id == {"q0": 5, "q1": 2, "q2": 5, "q3": 0, "q4": 5, "q5": 5}
    assert np.isfinite(labels.scores[labels.where]).all()


def test_another_teacher_or_run_is_refused(tmp_path):
    model, features, queries, run = world()
    label_run(model, features, queries, run, tmp_path)
    with pytest.raises(UserError, match="candidates"):
        label_run(model, features, queries, run.top(3), tmp_path)
    with pytest.raises(UserError, match="length"):
        label_run(model, features, queries, run, tmp_path, provenance={"length": 9})


def test_unknown_queries_are_refused_and_leave_nothing_behind(tmp_path):
    """Their scores would lie in the cache as those of the last query."""
    model, features, queries, run = world()
    ids = (*run.query_ids[:-1], "elsewhere")
    other = Run(ids, run.rows, run.scores, run.doc_ids)
    with pytest.raises(UserError, match=r"1 of 6 queries .*'elsewhere'\n"):
        label_run(
            model, features, queries, other, tmp_path / "a", cache=tmp_path / "scores"
        )
    assert not list(tmp_path.rglob("*.*"))


def test_an_interrupt_is_gone_on_from(tmp_path):
    model, features, queries, run = world()
    whole = label_run(model, features, queries, run, tmp_path / "whole")

    def stop(done, total):
        if done >= 10:
            raise KeyboardInterrupt

    seen = []
    with pytest.raises(KeyboardInterrupt):
        label_run(
            model, features, queries, run, tmp_path / "x", shard_pairs=5, progress=stop
        )
    labels = label_run(
        model, features, queries, run, tmp_path / "x", shard_pairs=5,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen[0][0] > 5
    assert seen[-1] == (30, 30)
    np.testing.assert_allclose(
        labels.select(whole.query_ids).scores, whole.scores, atol=1e-5
    )


def test_counts_cover_the_whole_job_however_often_it_was_stopped(tmp_path):
    """Also what was computed by runs that never came to the end."""
    model, features, queries, run = world()
    # Some pairs are paid for by another job.
    known = run.select(run.query_ids[2:4])
    label_run(
        model, features, queries, known, tmp_path / "other", cache=tmp_path / "scores"
    )

    def stop(done, total):
        if done >= 10:
            raise KeyboardInterrupt

    def again(progress=None):
        return label_run(
            model, features, queries, run, tmp_path / "x", shard_pairs=5,
            cache=tmp_path / "scores", progress=progress,
        )  # fmt: skip

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            again(stop)
    counts = again().provenance["counts"]
    assert (counts["pairs"], counts["computed"], counts["cached"]) == (30, 20, 10)
    assert counts["seconds"] > 0
    # And when there was nothing left to do.
    assert again().provenance["counts"] == counts


def test_the_cache_keeps_scores_through_many_small_additions(tmp_path):
    rng = np.random.default_rng(0)
    cache, known = ScoreCache(tmp_path, "m"), {}
    dtype = [("first", "<u8"), ("second", "<u8"), ("third", "<u8")]
    for n in range(40):
        keys = np.zeros(int(rng.integers(1, 60)), dtype)
        for name in ("first", "second"):
            keys[name] = rng.integers(0, 40, len(keys))
        found = cache.find(keys)
        for key, value in zip(keys.tolist(), found):
            assert (key in known) == np.isfinite(value)
            assert np.isnan(value) or known[key] == value
        new = np.unique(keys[np.isnan(found)])
        scores = rng.normal(size=len(new)).astype(np.float32)
        cache.add(new, scores)
        known |= dict(zip(new.tolist(), scores.tolist()))
        if n % 10 == 9:
            cache = ScoreCache(tmp_path, "m")
        assert len(cache) == len(known)
    assert not len(ScoreCache(tmp_path, "other"))


def test_keys_depend_on_the_texts_only():
    tokenizer = student("bert_cross").tokenizer
    a = TokenStore.build(["water", "bus", "water"], tokenizer)
    b = TokenStore.build(["vote", "water"], tokenizer)
    rows = np.asarray([0, 1, 2])
    keys = pair_keys((a, rows), (b, np.asarray([1, 1, 1])))
    assert keys[0] == keys[2] != keys[1]
    swapped = pair_keys((b, np.asarray([1])), (a, np.asarray([1])))
    assert swapped[0] != keys[1]


CHILD = """
import sys
from tests.teaching.test_scorers import world
from distill_jax.teaching.scorers import label_run
folder, queries, docs, depth, shard = sys.argv[1], *map(int, sys.argv[2:])
model, features, asked, run = world(queries, docs, depth)
print("ready", flush=True)
label_run(model, features, asked, run, folder + "/labels", shard_pairs=shard,
          cache=folder + "/scores")
"""


def killed(tmp_path, sizes, shard, kills, longest, limit):
    """Labels made by a process that is killed ``kills`` times at random moments."""
    rng = np.random.default_rng(0)
    done = 0
    for _ in range(kills * 3):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), *map(str, (*sizes, shard))],
            stdout=subprocess.PIPE,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        assert child.stdout is not None
        child.stdout.readline()
        if done < kills:
            time.sleep(float(rng.uniform(0.0, longest)))
            child.send_signal(signal.SIGKILL)
            done += child.wait() == -signal.SIGKILL
            continue
        assert child.wait(limit) == 0
        return TeacherLabels.read(tmp_path / "labels")
    raise AssertionError(f"killed {done} times only")


def check_kills(tmp_path, sizes, shard, kills, longest, limit):
    labels = killed(tmp_path / "x", sizes, shard, kills, longest, limit)
    model, features, queries, run = world(*sizes)
    whole = label_run(
        model, features, queries, run, tmp_path / "whole", shard_pairs=shard
    )
    assert labels.query_ids == whole.query_ids
    ids = [[labels.doc_ids[row] for row in rows] for rows in labels.rows.tolist()]
    expected = [[whole.doc_ids[row] for row in rows] for rows in whole.rows.tolist()]
    assert ids == expected
    np.testing.assert_array_equal(labels.scores, whole.scores)
    shards = len(list((tmp_path / "x" / "labels").glob("*.parquet")))
    # Each pair's score was kept once: nothing was scored again after a kill.
    cache = ScoreCache(tmp_path / "x" / "scores", model.digest)
    files = list(cache.directory.glob("*.npz"))
    assert len(files) <= shards + kills


@pytest.mark.long
def test_kills_change_no_label(tmp_path):
    check_kills(tmp_path, (24, 60, 5), 10, kills=2, longest=3.0, limit=120)


@pytest.mark.slow
def test_ten_kills_in_2000_queries_change_no_label(tmp_path):
    check_kills(tmp_path, (2000, 3000, 20), 1000, kills=10, longest=8.0, limit=600)
