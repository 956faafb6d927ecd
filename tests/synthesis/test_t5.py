"""Queries from a T5; the decoder is a function of tokens and seeds here."""

from __future__ import annotations

import types

import numpy as np
import pytest

from distill_jax.collections.collection import Collection
from distill_jax.synthesis import t5
from distill_jax.text.tokenizer import Tokenizer

WORDS = ["river", "stone", "bridge", "water", "cloud", "paper", "light", "engine"]


@pytest.fixture(scope="module")
def docs():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=n)) for n in rng.integers(2, 90, 40)]
    texts[7] = "Это совсем другой алфавит"
    return Collection([f"d{i}" for i in range(40)], texts)


@pytest.fixture(scope="module")
def generator(docs):
    texts = [text for text in docs.texts if text.isascii()]
    tokenizer = Tokenizer.train_unigram(texts * 4, vocab_size=150)
    return types.SimpleNamespace(tokenizer=tokenizer, digest="d" * 32)


def echo(pretrained, tokens, *, seeds, mesh=None, max_new_tokens, **sampling):
    """Two tokens of the document, chosen by the row's seed; then </s> and noise."""
    eos = pretrained.tokenizer.eos_id
    out = np.full((len(tokens), max_new_tokens), 5, np.int32)
    for row, (ids, seed) in enumerate(zip(tokens, seeds.tolist())):
        real = [i for i in ids.tolist() if i not in (0, eos)]
        if real:
            picks = [real[seed % len(real)], real[seed // 7 % len(real)]]
            out[row, :3] = [*picks, eos]
        else:
            out[row, 0] = eos
    return out


def make(generator, docs, rows=None, **options):
    rows = np.arange(len(docs)) if rows is None else rows
    return t5.generate(
        generator, docs, rows, samples=3, decode=echo, max_new_tokens=6, **options
    )


def test_queries_belong_to_their_documents(generator, docs):
    made = make(generator, docs)
    assert len(made) > 60
    assert made.dropped["t5: document in a script unknown to the tokenizer"] == 1
    for text, row in zip(made.texts, made.sources):
        assert set(text.replace(" ", "")) <= set(docs.text(row).replace(" ", ""))
    pairs = list(zip(made.sources.tolist(), made.texts))
    assert len(set(pairs)) == len(pairs)


def test_the_batch_the_order_and_the_shards_do_not_matter(generator, docs):
    whole = make(generator, docs)
    by_id = dict(zip(whole.ids, whole.texts))
    small = make(generator, docs, tokens_per_batch=64, shard_size=7)
    assert dict(zip(small.ids, small.texts)) == by_id
    backwards = make(generator, docs, np.arange(40)[::-1])
    assert dict(zip(backwards.ids, backwards.texts)) == by_id
    assert make(generator, docs, seed=1).texts != whole.texts


def test_resumes_after_a_kill(generator, docs, tmp_path):
    calls = []

    def stumbling(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return echo(*arguments, **options)

    options = {"directory": tmp_path, "shard_size": 10}
    with pytest.raises(KeyboardInterrupt):
        t5.generate(
            generator,
            docs,
            np.arange(40),
            samples=3,
            decode=stumbling,
            max_new_tokens=6,
            tokens_per_batch=1 << 20,
            **options,
        )
    finished = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("shard-*")}
    assert finished
    made = make(generator, docs, tokens_per_batch=1 << 20, **options)
    assert made.texts == make(generator, docs).texts
    for name, written in finished.items():
        assert (tmp_path / name).stat().st_mtime_ns == written


def test_an_empty_request(generator, docs):
    assert len(make(generator, docs, np.zeros(0, int))) == 0
