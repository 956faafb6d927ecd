"""Cropped queries: by document id, within bounds, with bad input counted."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from distill_jax.collections.collection import Collection
from distill_jax.collections.schemes import load_collection
from distill_jax.io.errors import UserError
from distill_jax.lists.dedup import near_duplicates
from distill_jax.synthesis import seeds
from distill_jax.synthesis.crop import crop, sampled
from distill_jax.synthesis.sentences import words
from distill_jax.synthesis.survey import survey


@pytest.fixture(scope="module")
def collection():
    nouns = ["river", "engine", "garden", "planet", "letter", "window"]
    texts = [
        " ".join(f"The {n} number {i} has {k} odd parts." for k, n in enumerate(nouns))
        for i in range(30)
    ]
    return Collection([f"d{i}" for i in range(30)], texts)


def test_a_document_yields_the_same_in_any_company(collection):
    made = crop(collection, per_doc=2, seed=3)
    assert len(made) == 60
    assert len(set(made.ids)) == 60
    order = np.arange(30)[::-1]
    backwards = crop(collection.select(order), per_doc=2, seed=3)
    assert dict(zip(made.ids, made.texts)) == dict(zip(backwards.ids, backwards.texts))
    some = crop(collection, [4, 9], per_doc=2, seed=3)
    assert set(zip(some.ids, some.texts)) <= set(zip(made.ids, made.texts))
    assert crop(collection, per_doc=2, seed=4).texts != made.texts
    # One sentence a document is the first of two.
    assert crop(collection, seed=3).texts == made.texts[::2]


def test_queries_come_from_their_documents(collection):
    made = crop(collection, per_doc=3)
    for text, row, query_id in zip(made.texts, made.sources, made.ids):
        assert text in collection.text(row)
        assert query_id.startswith(collection.ids[row] + "|crop|")
        assert made.qrels.of(query_id) == {collection.ids[row]: 1}


def test_bounds_on_length():
    text = "Tiny one. Word" + " word" * 90 + ". This one has exactly six words."
    made = crop(Collection(["a"], [text]), per_doc=9, min_words=4, max_words=20)
    assert sorted(map(words, made.texts)) == [6, 20]
    assert made.dropped == {"crop: sentence too short": 1}


def test_bad_documents_are_counted_and_said():
    texts = {
        "empty": "",
        "blank": " \n ",
        "one": "word",
        "cyrillic": "Это предложение на русском языке. Вот ещё одно предложение.",
        "chinese": "这是一个关于搜索引擎的很长的句子。",
        "long": "A sentence of some words here. " * 2000,
        "code": "import numpy;\nnumbers = {2: numpy.zeros()};",
        "good": "A good sentence about cats and dogs.",
        "again": "A good sentence, about CATS and dogs!",
    }
    collection = Collection(list(texts), list(texts.values()))
    found = survey(collection, duplicates=near_duplicates(collection.texts))
    kept = [collection.ids[row] for row in found.rows]
    assert kept == ["cyrillic", "chinese", "long", "code", "good"]
    assert found.counts["empty"] == 2
    assert found.counts["one word"] == 1
    assert found.counts["no Latin letter"] == 2
    assert found.counts["very long"] == 1
    assert any("2 empty documents" in notice for notice in found.notices)
    latin = survey(collection, latin_only=True)
    assert {"cyrillic", "chinese"}.isdisjoint(collection.ids[r] for r in latin.rows)
    made = crop(collection, found.rows)
    assert made.dropped["crop: document without a sentence to take"] == 1
    assert [i.split("|")[0] for i in made.ids] == [
        "cyrillic",
        "chinese",
        "long",
        "good",
    ]


def test_a_duplicate_id_is_refused_by_the_collection():
    with pytest.raises(UserError, match="duplicate"):
        Collection(["a", "a"], ["x", "y"])


def test_samples_are_chosen_by_id(collection):
    rows = sampled(collection, np.arange(30), 7, seed=1)
    back = collection.select(np.arange(30)[::-1])
    others = sampled(back, np.arange(30), 7, seed=1)
    assert {collection.ids[r] for r in rows} == {back.ids[r] for r in others}
    assert len(crop(collection, sample=7)) == 7


def test_splits_are_by_document():
    ids = [f"doc {i}" for i in range(20_000)]
    found = seeds.splits(ids, {"train": 0.8, "dev": 0.1, "test": 0.1})
    share = {name: found.count(name) / len(ids) for name in set(found)}
    assert share["train"] == pytest.approx(0.8, abs=0.01)
    assert share["dev"] == pytest.approx(0.1, abs=0.01)
    assert (
        seeds.splits(ids[::-1], {"train": 0.8, "dev": 0.1, "test": 0.1}) == found[::-1]
    )
    # Pinned: a change would move documents between the splits of existing data.
    parts = [b"0", b"split", b"doc 1"]
    joined = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    expected = hashlib.blake2b(joined, digest_size=8).digest()
    assert seeds.place_of("doc 1") == int.from_bytes(expected, "little") / 2**64
    with pytest.raises(UserError, match="add up to 1"):
        seeds.splits(ids, {"train": 0.8})


def test_a_written_folder_is_a_collection(collection, tmp_path):
    made = crop(collection, per_doc=2)
    made.write(tmp_path, collection, provenance={"how": "crop"})
    docs, queries, qrels = load_collection(f"beir:{tmp_path}", "train")
    _, dev, dev_qrels = load_collection(f"beir:{tmp_path}", "dev")
    assert docs.digest == collection.digest or len(docs) == len(collection)
    assert len(queries) + len(dev) == 60
    sources = [
        {doc for q in part.query_ids for doc in part.of(q)}
        for part in (qrels, dev_qrels)
    ]
    assert sources[0].isdisjoint(sources[1])
    text = dict(zip(made.ids, made.texts))
    assert all(text[i] == queries.text(queries.row(i)) for i in queries.ids)
