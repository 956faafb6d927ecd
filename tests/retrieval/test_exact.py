"""Exact search against numpy, ties included, however it is laid out."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from distill_jax.io.errors import UserError
from distill_jax.retrieval import Exact
from distill_jax.retrieval.columns import QuantisedVectors, quantise
from distill_jax.retrieval.scann import recall_of


def integers(rows, width, seed):
    """Small integers: products are exact, and there are many ties."""
    return np.random.default_rng(seed).integers(-2, 3, (rows, width)).astype(np.float32)


def ids_of(count, seed=7):
    return [f"{i:x}" for i in np.random.default_rng(seed).permutation(count)]


def argsort(queries, docs, ids, k):
    """Rows and scores by (score descending, id descending)."""
    scores = queries @ docs.T
    places = np.argsort(np.argsort(np.array(ids)))
    order = np.lexsort((np.broadcast_to(-places, scores.shape), -scores), axis=-1)
    order = order[:, :k]
    return order, np.take_along_axis(scores, order, 1)


@pytest.mark.parametrize(
    ("docs", "queries", "k", "block"),
    [(1000, 17, 10, 50), (700, 5, 100, None), (3, 4, 10, None), (1, 1, 1, None)],
)
def test_equals_argsort_ties_included(docs, queries, k, block):
    corpus, asked, ids = integers(docs, 8, 0), integers(queries, 8, 1), ids_of(docs)
    run = Exact.build(corpus, ids).search(asked, k, doc_block=block, query_tile=16)
    rows, scores = argsort(asked, corpus, ids, k)
    np.testing.assert_array_equal(run.rows, rows)
    np.testing.assert_array_equal(run.scores, scores)


def test_large_blocks_take_the_two_stage_top_k():
    corpus, asked, ids = integers(30_000, 6, 2), integers(9, 6, 3), ids_of(30_000)
    mesh = Mesh(np.array(jax.devices()[:1]), ("x",))
    run = Exact.build(corpus, ids, mesh=mesh).search(asked, 20)
    rows, scores = argsort(asked, corpus, ids, 20)
    np.testing.assert_array_equal(run.rows, rows)
    np.testing.assert_array_equal(run.scores, scores)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_any_number_of_devices_gives_the_same_run(devices):
    corpus, asked, ids = integers(333, 8, 0), integers(5, 8, 1), ids_of(333)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("x",))
    run = Exact.build(corpus, ids, mesh=mesh).search(asked, 12, doc_block=40)
    np.testing.assert_array_equal(run.rows, argsort(asked, corpus, ids, 12)[0])


def test_cosine_and_zero_vectors():
    random = np.random.default_rng(0)
    corpus = random.normal(size=(50, 8)).astype(np.float32) * random.uniform(
        1, 9, (50, 1)
    )
    corpus[7] = 0
    asked = np.concatenate([random.normal(size=(3, 8)), np.zeros((1, 8))])
    run = Exact.build(corpus, similarity="cosine").search(asked, 50)
    norms = np.linalg.norm(corpus, axis=1) * np.linalg.norm(asked, axis=1)[:, None]
    expected = asked @ corpus.T / np.maximum(norms, 1e-9)
    got = np.take_along_axis(expected, run.rows, 1)
    np.testing.assert_allclose(run.scores, got, atol=1e-5)
    assert (run.scores[3] == 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_reads_memory_maps_of_every_stored_type(tmp_path, dtype):
    import ml_dtypes

    corpus = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    asked = np.random.default_rng(1).normal(size=(20, 16)).astype(np.float32)
    truth = Exact.build(corpus).search(asked, 10)
    if dtype == "int8":
        vectors = QuantisedVectors(*quantise(corpus))
    else:
        stored = np.dtype(getattr(ml_dtypes, dtype, dtype))
        file = np.memmap(tmp_path / "v", stored, "w+", shape=corpus.shape)
        file[:] = corpus
        vectors = np.memmap(tmp_path / "v", stored, "r", shape=corpus.shape)
    run = Exact.build(vectors).search(asked, 10, doc_block=16)
    assert recall_of(run, truth) > (0.999 if dtype == "float32" else 0.95)


def test_approximate_top_k_is_an_option():
    corpus = np.random.default_rng(0).normal(size=(4000, 16)).astype(np.float32)
    truth = Exact.build(corpus).search(corpus[:20], 10)
    near = Exact.build(corpus, recall_target=0.95).search(corpus[:20], 10)
    assert recall_of(near, truth) > 0.9


def test_bad_input_says_where():
    corpus = integers(10, 4, 0)
    index = Exact.build(corpus, list("abcdefghij"))
    with pytest.raises(UserError, match="dimension 4"):
        index.search(integers(1, 5, 0), 1)
    with pytest.raises(UserError, match="query '1'"):
        index.search(np.array([[0, 0, 0, 0], [0, np.inf, 0, 0]]), 1)
    with pytest.raises(UserError, match="3 query ids"):
        index.search(corpus[:2], 1, ["a", "b", "c"])
    corpus[6, 1] = np.nan
    with pytest.raises(UserError, match="doc 'g' \\(row 6\\)"):
        Exact.build(corpus, list("abcdefghij"))
    with pytest.raises(UserError, match="empty corpus"):
        Exact.build(np.zeros((0, 4)))
    with pytest.raises(UserError, match="similarity 'l2'"):
        Exact.build(integers(3, 4, 0), similarity="l2")
    assert len(index.search(np.zeros((0, 4)), 3)) == 0


def test_saved_and_loaded(tmp_path):
    corpus, asked, ids = integers(60, 8, 0), integers(5, 8, 1), ids_of(60)
    index = Exact.build(corpus, ids, similarity="cosine")
    index.save(tmp_path)
    run = Exact.load(tmp_path).search(asked, 5)
    np.testing.assert_array_equal(run.rows, index.search(asked, 5).rows)
    assert list(run.doc_ids) == ids


_WORKER = """
import sys
import jax
import numpy as np
process, port, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if process >= 0:
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
from distill_jax.text.token_store import TokenStore
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.text.features import Features
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.models.dual_encoder import DualEncoderSpec
from distill_jax.models.pretrained import Pretrained, initial_params
from distill_jax.runtime.sharding import make_mesh
from distill_jax.models.templates import side_template
from distill_jax.retrieval import Exact, embeddings
assert len(jax.devices()) == 8
tokenizer = Tokenizer.load(f"{out}/vocab.txt")
sizes = BertSizes(
    vocab_size=64, d_model=16, d_ff=24, heads=2, layers=1, max_positions=32, sep_id=3
)
spec = DualEncoderSpec(backbone=sizes, doc_length=24).resolved(tokenizer)
params = jax.tree.map(np.asarray, initial_params(spec, 0))
random = np.random.default_rng(0)
words = [f"w{i}" for i in range(40)]
texts = [" ".join(random.choice(words, random.integers(1, 20))) for _ in range(90)]
store = TokenStore.build(texts, tokenizer)
features = Features(side_template(spec, "doc", tokenizer), tokenizer, text=store)
vectors = embeddings.embed_docs(
    Pretrained(spec, params, tokenizer),
    features,
    f"{out}/vectors{'' if process < 0 else '-of-two'}",
    mesh=make_mesh(),
    shard_docs=40,
    tokens_per_batch=256,
)
run = Exact.build(vectors).search(np.asarray(vectors[:9]), 7, doc_block=8)
np.savez(f"{out}/{process}.npz", rows=run.rows, scores=run.scores)
"""


@pytest.mark.long
def test_two_processes_encode_and_search_as_one(tmp_path):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = special + [f"w{i}" for i in range(40)]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def start(process, devices):
        flags = f"--xla_force_host_platform_device_count={devices}"
        root = Path(__file__).resolve().parents[2]
        env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(root)}
        command = [sys.executable, "-c", _WORKER, str(process), port, str(tmp_path)]
        return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)

    workers = [start(-1, 8), start(0, 4), start(1, 4)]
    try:
        for worker in workers:
            _, told = worker.communicate(timeout=120)
            assert worker.returncode == 0, told[-2000:]
    finally:
        for worker in workers:
            worker.kill()
    one = np.load(tmp_path / "-1.npz")
    for process in (0, 1):
        part = np.load(tmp_path / f"{process}.npz")
        np.testing.assert_array_equal(part["rows"], one["rows"])
        np.testing.assert_allclose(part["scores"], one["scores"], rtol=1e-6)
