"""Guards that are silent while all goes well: each test fails without its guard."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from distill_jax import losses
from distill_jax.export import foreign_scorers, subprocess_scorer, verify
from distill_jax.io.cache import cache_dir
from distill_jax.io.errors import UserError
from distill_jax.io.files import atomic_write
from distill_jax.runtime import sharding
from distill_jax.teaching.ledger import Ledger
from distill_jax.text.token_store import TokenStore
from distill_jax.training import checkpoints, optimizers
from distill_jax.training import state as states
from distill_jax.training.loop import Fit
from distill_jax.training.step import make_gradient, train_step
from tests.export import forms
from tests.training import toy

ONE = sharding.make_mesh(devices=jax.devices()[:1])
ADAM = optimizers.adamw(learning_rate=1e-2)


def fit(directory, evaluate=None, **options):
    def feed(start):
        while True:
            yield toy.batch(start)
            start += 1

    graphdef, params = toy.student()
    fixed = {"directory": directory, "mesh": ONE, "show": False}
    run = Fit(**{**fixed, "optimizer": ADAM, "steps": 6, **options})
    return run(graphdef, params, toy.LISTS, feed, evaluate)


@pytest.mark.long
def test_a_nan_gradient_under_a_finite_loss_changes_nothing():
    graphdef, params = toy.student()
    good = make_gradient(graphdef, toy.LISTS)

    def spoilt(*given):
        value, grads = good(*given)
        leaves, tree = jax.tree.flatten(grads)
        leaves[-1] = leaves[-1].at[(0,) * leaves[-1].ndim].set(np.nan)
        return value, jax.tree.unflatten(tree, leaves)

    before = states.create(params, ADAM, ONE, seed=0)
    after, numbers = train_step(
        before, toy.batch(0), gradient=spoilt, optimizer=ADAM, dropout=False
    )
    assert np.isfinite(numbers["loss"])
    assert not numbers["finite"]
    for kept, old in zip(jax.tree.leaves(after), jax.tree.leaves(before)):
        if not jax.dtypes.issubdtype(old.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(kept, old)


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
    bursts = optax.stateless(
        lambda updates, params: jax.tree.map(lambda u: u + np.inf, updates)
    )
    optimizer = optimizers.Optimizer(
        transform=optax.chain(ADAM.transform, bursts), schedule=ADAM.schedule
    )
    with pytest.raises(UserError, match="step 1 are not finite; not saved"):
        fit(tmp_path, optimizer=optimizer, checkpoint_period=1)
    assert checkpoints.steps(tmp_path / "checkpoints") == []


def test_a_failed_save_ends_the_run_at_the_next_step(tmp_path, monkeypatch):
    saved, dispatched = [], []
    save = checkpoints.Checkpoints.save

    def noted(self, step, *given, **options):
        saved.append(step)
        return save(self, step, *given, **options)

    def check(self):
        dispatched.append(1)
        if saved:
            raise UserError(f"the save of step {saved[-1]} failed")

    monkeypatch.setattr(checkpoints.Checkpoints, "save", noted)
    monkeypatch.setattr(checkpoints.Checkpoints, "check", check)
    with pytest.raises(UserError, match="the save of step 2 failed"):
        fit(tmp_path, checkpoint_period=2)
    assert len(dispatched) == 3


def test_a_save_knows_the_best_step_before_it_deletes(tmp_path, monkeypatch):
    known = {}
    save = checkpoints.Checkpoints.save

    def noted(self, step, *given, **options):
        known[step] = self.best
        return save(self, step, *given, **options)

    monkeypatch.setattr(checkpoints.Checkpoints, "save", noted)
    measured = iter((0.3, 0.5, 0.4))
    fit(
        tmp_path,
        lambda *given: {"nDCG@10": next(measured)},
        steps=3,
        eval_period=1,
        checkpoint_period=1,
        best_measure="nDCG@10",
    )
    assert known == {1: 1, 2: 2, 3: 2}


def test_a_list_that_does_not_count_takes_no_negatives_from_others():
    rng = np.random.default_rng(0)
    similarity = rng.normal(size=(3, 3, 2)).astype(np.float32)
    # List 1, of the same query as list 0, holds doc 5 for relevant and does not count.
    ids = np.asarray([[0, 1], [5, 2], [3, 5]])
    rows = np.asarray([7, 7, 8])

    def first(labelled, query_rows):
        return losses.in_batch_contrastive(
            similarity,
            ids,
            np.zeros((3, 2), np.float32),
            labelled=np.asarray(labelled),
            query_rows=query_rows,
            temperature=1.0,
            reduce_fn=lambda losses, where: losses[0],
        )

    apart = first([True, True, True], None)
    np.testing.assert_allclose(first([True, False, True], rows), apart, rtol=1e-6)
    assert first([True, True, True], rows) < apart


def test_each_tokenizer_has_its_own_store_of_the_same_texts(tmp_path):
    texts = ["the water and the city council", "a vaccine"]
    for tokenizer in (forms.bert_tokenizer(), forms.t5_tokenizer()) * 2:
        store = TokenStore.build(texts, tokenizer, tmp_path)
        for row, ids in enumerate(tokenizer.encode_batch(texts)):
            np.testing.assert_array_equal(store[row], ids)
    assert len([folder for folder in tmp_path.iterdir() if folder.is_dir()]) == 2


def test_calls_of_a_job_that_is_alive_are_left_to_it(tmp_path, monkeypatch):
    path = tmp_path / "ledger.sqlite"
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        monkeypatch.setattr(os, "getpid", lambda: other.pid)
        ledger = Ledger(path)
        call = ledger.reserve("test-00000000/1", "k", (70, 30), 0.5)
        monkeypatch.undo()
        assert Ledger(path).counts("test-00000000")["failures"] == {}
        ledger.settle(call, "succeeded", "", (70, 10), 0.4, 1.0)
    finally:
        other.kill()
        other.wait()
    assert Ledger(path).counts("test-00000000")["failures"] == {}


def test_scores_that_are_nan_fail_an_exports_verification(tmp_path, monkeypatch):
    model = forms.student("bert_cross")

    def library(pretrained, folder, format):
        return "a library", lambda tuples: np.full(len(tuples), np.nan)

    monkeypatch.setattr(foreign_scorers, "scorer", library)
    monkeypatch.setattr(subprocess_scorer, "needed", lambda: False)
    monkeypatch.setattr(verify.weights, "load", lambda folder: model)
    with pytest.raises(UserError, match="failed its verification by a library"):
        verify.verified(model, tmp_path, "transformers")


def test_a_cache_that_belongs_to_someone_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_JAX_CACHE", str(tmp_path / "cache"))
    assert cache_dir().stat().st_mode & 0o077 == 0
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(UserError, match="written by others"):
        cache_dir()


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def synced(handle):
        events.append(("fsync", os.fstat(handle).st_size))
        fsync(handle)

    def renamed(old, new, **options):
        events.append(("rename", Path(new).name))
        replace(old, new, **options)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    with atomic_write(tmp_path / "a.txt") as file:
        file.write("x" * 1000)
    assert events[:2] == [("fsync", 1000), ("rename", "a.txt")]
