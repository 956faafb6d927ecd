"""The one path from row numbers to tokens, held to tokenising the joined text."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from distill_jax.batches import DualBatch, DuoBatch, PairBatch
from distill_jax.inputs.feed import Featurizer, Feed
from distill_jax.inputs.streams import ArrayStream
from distill_jax.lists.lists import Lists
from distill_jax.text.features import Features
from distill_jax.text.templates import Template
from distill_jax.text.token_store import TokenStore
from distill_jax.text.tokenizer import Tokenizer

QUERIES = ["how tall is it", "what is a vaccine"]
DOCS = [
    "Everest is 8,849 metres tall.",
    "A vaccine trains the immune system.",
    "It depends on the weather, and on other things besides; nobody knows.",
    "",
]
BUCKETS = (8, 16, 32, 64, 128, 256)
MONOT5 = "Query: {query} Document: {document} Relevant:</s>"
DUO = "Query: {query} Document0: {document0} Document1: {document1} Relevant:</s>"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [*QUERIES, *DOCS, "Query: Document: Document0: Document1: Relevant:"] * 3
    return Tokenizer.train_unigram(texts, 260)


@pytest.fixture(scope="module")
def stores(tokenizer):
    return TokenStore.build(QUERIES, tokenizer), TokenStore.build(DOCS, tokenizer)


def rows_of(doc_rows, **more) -> dict[str, np.ndarray]:
    docs = np.asarray(doc_rows, np.int32)
    count = len(docs)
    return {
        "query_rows": np.arange(count, dtype=np.int32) % 2,
        "doc_rows": docs,
        "labels": np.where(docs >= 0, docs + 0.5, 0).astype(np.float32),
        "labelled": np.ones(count, bool),
        "first": np.full((count, 0), -1, np.int32),
        "second": np.full((count, 0), -1, np.int32),
        "probability": np.zeros((count, 0), np.float32),
        **more,
    }


def bare(tokens: np.ndarray) -> list[int]:
    """A row without its padding."""
    found = np.asarray(tokens).tolist()
    while found and found[-1] == 0:
        found.pop()
    return found


def pair_featurizer(tokenizer, stores, documents, text) -> Featurizer:
    template = Template(text)
    features = Features(template, tokenizer, query=stores[0], document=stores[1])
    return Featurizer(documents=documents, pair=features, buckets=BUCKETS)


def test_a_reranker_reads_the_joined_text(tokenizer, stores):
    featurizer = pair_featurizer(tokenizer, stores, 1, MONOT5)
    batch = featurizer(rows_of([[0, 1, -1], [2, 3, 1]]))
    assert isinstance(batch, PairBatch)
    assert batch.tokens.shape[:2] == (2, 3)
    assert batch.tokens.shape[2] in BUCKETS
    template = Template(MONOT5)
    for i, row in enumerate([[0, 1, -1], [2, 3, 1]]):
        for j, doc in enumerate(row):
            text = template.join(query=QUERIES[i], document=DOCS[doc])
            wanted = tokenizer.encode(text) if doc >= 0 else []
            assert bare(batch.tokens[i, j]) == wanted


def test_encoders_read_both_sides_apart(tokenizer, stores):
    sides = [
        Features(Template("{text}</s>", {"text": 12}), tokenizer, text=store)
        for store in stores
    ]
    featurizer = Featurizer(documents=0, query=sides[0], doc=sides[1], buckets=BUCKETS)
    batch = featurizer(rows_of([[0, 2], [-1, 3]]))
    assert isinstance(batch, DualBatch)
    for i, text in enumerate(QUERIES):
        assert bare(batch.query_tokens[i]) == tokenizer.encode(text)[:12] + [1]
    assert bare(batch.doc_tokens[0, 1]) == tokenizer.encode(DOCS[2])[:12] + [1]
    assert bare(batch.doc_tokens[1, 0]) == []
    assert bare(batch.doc_tokens[1, 1]) == [1]  # an empty text is not padding
    # Each side has a length of its own: queries are not padded to documents.
    assert batch.query_tokens.shape[1] <= batch.doc_tokens.shape[2]


def test_a_duo_reads_both_documents_in_the_pair_s_order(tokenizer, stores):
    featurizer = pair_featurizer(tokenizer, stores, 2, DUO)
    batch = featurizer(
        rows_of(
            [[0, 1, 2]],
            first=np.asarray([[2, 0, -1]], np.int32),
            second=np.asarray([[0, 1, -1]], np.int32),
            probability=np.asarray([[0.25, 1.0, 0.0]], np.float32),
        )
    )
    assert isinstance(batch, DuoBatch)
    for place, (first, second) in enumerate([(2, 0), (0, 1)]):
        text = Template(DUO).join(
            query=QUERIES[0], document0=DOCS[first], document1=DOCS[second]
        )
        assert bare(batch.tokens[0, place]) == tokenizer.encode(text)
    assert batch.targets.where.tolist() == [[True, True, False]]
    assert batch.targets.labels.tolist() == [[0.25, 1.0, 0.0]]


def test_targets_say_where_nothing_is(tokenizer, stores):
    featurizer = pair_featurizer(tokenizer, stores, 1, MONOT5)
    targets = featurizer(rows_of([[0, -1], [2, 3]])).targets
    assert targets.where.tolist() == [[True, False], [True, True]]
    assert targets.doc_rows.tolist() == [[0, -1], [2, 3]]
    assert targets.labels.dtype == np.float32
    assert targets.first is None
    assert targets.query_rows.tolist() == [0, 1]


def test_pairs_ride_along(tokenizer, stores):
    featurizer = pair_featurizer(tokenizer, stores, 1, MONOT5)
    targets = featurizer(
        rows_of(
            [[0, 1]],
            first=np.asarray([[1, -1]], np.int32),
            second=np.asarray([[0, -1]], np.int32),
            probability=np.asarray([[0.75, 0.0]], np.float32),
        )
    ).targets
    assert targets.pair_where.tolist() == [[True, False]]
    assert (targets.first >= 0).all()
    assert (targets.second >= 0).all()
    assert targets.probability.tolist() == [[0.75, 0.0]]


def test_the_length_is_the_least_bucket_that_holds_the_longest(tokenizer, stores):
    featurizer = pair_featurizer(tokenizer, stores, 1, MONOT5)
    for docs in ([[0, 3]], [[3, 3]], [[2, 1]]):
        batch = featurizer(rows_of(docs))
        longest = max(len(bare(row)) for row in batch.tokens[0])
        assert batch.tokens.shape[2] == min(b for b in BUCKETS if b >= longest)


def test_a_long_padded_place_does_not_lengthen_the_batch(tokenizer, stores):
    """Row 0 stands in for padding while tokens are gathered; its length must not."""
    long_first = TokenStore.build([DOCS[2] * 3, "short"], tokenizer)
    features = Features(
        Template("{text}</s>", {"text": 60}), tokenizer, text=long_first
    )
    featurizer = Featurizer(documents=0, query=features, doc=features, buckets=BUCKETS)
    batch = featurizer(rows_of([[1, -1], [1, -1]]))
    assert batch.doc_tokens.shape[2] == BUCKETS[0]


@pytest.mark.parametrize("kind", ["reranker", "splade", "duo"])
def test_hosts_agree_on_shapes_where_one_holds_the_longest(
    tokenizer, stores, tmp_path, kind
):
    """Parts of other shapes are no global array: a program of many hosts hangs."""
    text = Features(Template("{text}</s>"), tokenizer, text=stores[1])
    featurizer = {
        "reranker": pair_featurizer(tokenizer, stores, 1, MONOT5),
        "duo": pair_featurizer(tokenizer, stores, 2, DUO),
        "splade": Featurizer(documents=0, query=text, doc=text, buckets=BUCKETS),
    }[kind]
    # The long document 2 is the last list's alone; its query is the longest too.
    lists = rows_of(
        [[3, 0], [3, -1], [0, 3], [2, 0]],
        query_rows=np.asarray([3, 0, 3, 1] if kind == "splade" else [0, 0, 0, 1]),
        first=np.asarray([[0], [-1], [0], [0]]),
        second=np.asarray([[1], [-1], [1], [1]]),
        probability=np.ones((4, 1), np.float32),
    )

    def part(host: int, hosts: int):
        feed = Feed(
            lists=Lists(**lists),
            featurizer=featurizer,
            stream=ArrayStream(shuffle=False),
            batch_size=4,
            directory=tmp_path,
            host=host,
            hosts=hosts,
        )
        return jax.tree.leaves(next(feed(0)))

    whole, first, second = part(0, 1), part(0, 2), part(1, 2)
    for leaf, ours, theirs in zip(whole, first, second, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_array_equal(np.concatenate([ours, theirs]), leaf)
    # Alone, the first half would be shorter.
    half = featurizer({name: value[:2] for name, value in lists.items()})
    assert [leaf.shape for leaf in jax.tree.leaves(half)] != [x.shape for x in first]
