"""Bucketed inference over rows: complete, in order, few shapes, one batch ahead."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from distill_jax.inference import forward, programs, vectors
from distill_jax.io.errors import UserError
from distill_jax.models.templates import side_template
from distill_jax.runtime.sharding import make_mesh
from distill_jax.text.features import Features
from distill_jax.text.token_store import TokenStore
from tests.export.forms import student

TEXTS = ["water " * n for n in (1, 30, 7, 0, 12, 44, 3, 3, 21, 9)]


def pair_features(model):
    store = TokenStore.build(TEXTS, model.tokenizer)
    return Features(model.spec.template, model.tokenizer, query=store, document=store)


def side_features(model, side):
    template = side_template(model.spec, side, model.tokenizer)
    store = TokenStore.build(TEXTS, model.tokenizer)
    return Features(template, model.tokenizer, text=store)


def test_scores_are_in_the_order_of_the_rows():
    model = student("bert_cross")
    features = pair_features(model)
    rng = np.random.default_rng(0)
    query, document = rng.integers(0, len(TEXTS), (2, 57))
    done = []
    scores = forward.score_features(
        model,
        features,
        tokens_per_batch=256,
        progress=done.append,
        query=query,
        document=document,
    )
    assert sum(done) == 57
    one = {}
    for q, d, score in zip(query, document, scores):
        assert one.setdefault((q, d), score) == pytest.approx(score, abs=1e-5)
    for (q, d), score in list(one.items())[:5]:
        alone = forward.score_features(
            model, features, compact=True, query=np.array([q]), document=np.array([d])
        )
        np.testing.assert_allclose(alone, score, atol=1e-5)


@pytest.mark.parametrize("mesh", ["data=4", "data=2,fsdp=2", "data=2,model=2"])
def test_a_mesh_changes_nothing(mesh):
    model = student("bert_cross")
    features = pair_features(model)
    rows = {"query": np.arange(10), "document": np.arange(10)[::-1]}
    one = forward.score_features(model, features, **rows)
    many = forward.score_features(model, features, mesh=make_mesh(mesh), **rows)
    np.testing.assert_allclose(one, many, atol=1e-5)


@pytest.mark.parametrize("name", ["dual_mean", "colbert", "splade"])
@pytest.mark.parametrize("side", ["query", "doc"])
def test_each_row_is_encoded_once(name, side):
    model = student(name)
    features = side_features(model, side)
    rows = np.array([3, 1, 1, 9, 0])
    positions = [
        at
        for at, _ in forward.encode_features(
            model, side, features, rows, tokens_per_batch=64
        )
    ]
    assert sorted(np.concatenate(positions)) == [0, 1, 2, 3, 4]
    found = forward.encode_all(model, side, features, rows, tokens_per_batch=64)
    again = forward.encode_all(model, side, features, rows[::-1])
    if name == "splade":
        found, again = found.toarray(), again.toarray()
    for ours, theirs in zip(found, again[::-1]):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_next_batch_is_dispatched_before_the_last_is_fetched(monkeypatch):
    model = student("dual_mean")
    events = []
    apply = programs.applied(model.spec, "doc", None)

    def noted(params, tokens):
        events.append("dispatch")
        return apply(params, tokens)

    fetch = forward._fetched

    def fetched(values):
        events.append("fetch")
        return fetch(values)

    monkeypatch.setattr(forward, "applied", lambda *_: noted)
    monkeypatch.setattr(forward, "_fetched", fetched)
    features = side_features(model, "doc")
    rows = np.arange(10)
    list(forward.encode_features(model, "doc", features, rows, tokens_per_batch=96))
    count = events.count("dispatch")
    assert count >= 3
    assert events == ["dispatch", *["dispatch", "fetch"] * (count - 1), "fetch"]


def test_what_does_not_fit_is_computed_in_parts(monkeypatch, caplog):
    """The allocator of a device with room for three texts, then for none."""
    model = student("dual_mean")
    features, rows = side_features(model, "doc"), np.arange(10)
    whole = forward.encode_all(model, "doc", features, rows)
    apply, room = programs.applied(model.spec, "doc", None), 3

    def small(params, tokens):
        if len(tokens) > room:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return apply(params, tokens)

    monkeypatch.setattr(forward, "applied", lambda *_: small)
    found = forward.encode_all(model, "doc", features, rows)
    np.testing.assert_allclose(found, whole, atol=1e-6)
    assert "do not fit on a device" in caplog.text
    room = 0
    monkeypatch.setattr(forward, "applied", lambda *_: lambda p, t: small(p, t))
    with pytest.raises(UserError, match="do not fit"):
        forward.encode_all(model, "doc", features, rows)


def test_small_requests_share_few_shapes():
    model = student("bert_cross")
    features = pair_features(model)
    sizes = set()
    for count in range(1, 40):
        rows = {"query": np.zeros(count, int), "document": np.zeros(count, int)}
        work = forward._work(model, features, rows, None, 4096, True)
        sizes |= {(batch.size, batch.length) for batch in work}
    assert len(sizes) <= 4


def test_ragged_splits_where_texts_end():
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    ragged = vectors.Ragged(values, np.array([2, 0, 4]))
    assert [len(part) for part in ragged.split()] == [2, 0, 4]
    np.testing.assert_array_equal(ragged.split()[2], values[2:])
