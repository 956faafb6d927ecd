"""A corpus encoded in shards: the same vectors whatever happens on the way."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from distill_jax.inference.forward import encode_all
from distill_jax.io.errors import UserError
from distill_jax.models.colbert import ColbertSpec
from distill_jax.models.dual_encoder import DualEncoderSpec
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.models.pretrained import Pretrained, initial_params
from distill_jax.models.splade import SpladeSpec
from distill_jax.models.templates import side_template
from distill_jax.retrieval import Exact, LateInteraction, Sparse, embeddings
from distill_jax.retrieval.columns import Columns
from distill_jax.text.features import Features
from distill_jax.text.token_store import TokenStore
from distill_jax.text.tokenizer import Tokenizer

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]
WORDS = [f"w{i}" for i in range(40)]
BERT = BertSizes(
    vocab_size=64, d_model=16, d_ff=24, heads=2, layers=1, max_positions=64, sep_id=3
)
SPECS = {
    "dual": DualEncoderSpec(backbone=BERT, doc_length=24, query_length=12),
    "colbert": ColbertSpec(backbone=BERT, dim=8, doc_length=24, query_length=8),
    "splade": SpladeSpec(backbone=BERT, doc_length=24, query_length=12),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    path.write_text("\n".join(SPECIALS + WORDS))
    return Tokenizer.load(path)


def made(kind, tokenizer, seed=0, docs=50):
    spec = SPECS[kind].resolved(tokenizer)
    pretrained = Pretrained(spec, initial_params(spec, seed), tokenizer)
    random = np.random.default_rng(3)
    texts = [
        " ".join(random.choice(WORDS, random.integers(0, 30))) for _ in range(docs)
    ]
    store = TokenStore.build(texts, tokenizer)
    template = side_template(spec, "doc", tokenizer)
    return pretrained, Features(template, tokenizer, text=store)


def dense(vectors):
    if hasattr(vectors, "toarray"):
        return vectors.toarray()
    if hasattr(vectors, "offsets"):
        return np.asarray(vectors.values, np.float32)
    return np.asarray(vectors[:], np.float32)


@pytest.mark.parametrize("kind", list(SPECS))
def test_equals_encoding_in_one_go(kind, tokenizer, tmp_path):
    pretrained, features = made(kind, tokenizer)
    vectors = embeddings.embed_docs(pretrained, features, tmp_path, shard_docs=16)
    whole = encode_all(pretrained, "doc", features, np.arange(50))
    if kind == "colbert":
        assert [len(doc) for doc in whole] == vectors.lengths.tolist()
        whole = np.concatenate(whole)
    np.testing.assert_allclose(dense(vectors), dense(whole), atol=1e-3)
    if kind == "dual":
        found = Exact.build(vectors).search(whole[:5], 1)
        assert isinstance(vectors, np.memmap)
    elif kind == "splade":
        found = Sparse.build(vectors).search(whole[:5], 1)
    else:
        assert vectors.values.dtype == np.float16
        found = LateInteraction.build(vectors).search(vectors, 1)
    assert found.rows.shape[1] == 1


@pytest.mark.parametrize("kind", list(SPECS))
def test_a_kill_costs_the_shard_it_fell_in(kind, tokenizer, tmp_path, monkeypatch):
    pretrained, features = made(kind, tokenizer)
    whole = embeddings.embed_docs(
        pretrained, features, tmp_path / "whole", shard_docs=16
    )
    encoded = []

    def killed(self, shard, parts):
        if shard == 2:  # after part of the third shard reached the disk
            name = next(iter(self.dtypes))
            with open(self._path(name), "ab") as file:
                file.write(b"half a shard")
            raise KeyboardInterrupt
        return append(self, shard, parts)

    append = Columns.append
    with monkeypatch.context() as patch:
        patch.setattr(Columns, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            embeddings.embed_docs(pretrained, features, tmp_path / "cut", shard_docs=16)
    folder = next((tmp_path / "cut").iterdir())
    with pytest.raises(UserError, match="not complete"):
        embeddings.read_embeddings(folder)
    # Another shard size is asked for now; the folder's own stays.
    again = embeddings.embed_docs(
        pretrained, features, tmp_path / "cut", shard_docs=5, progress=encoded.append
    )
    assert encoded[0] == 32
    assert sum(encoded) == 50
    np.testing.assert_array_equal(dense(again), dense(whole))
    encoded.clear()
    more = embeddings.embed_docs(
        pretrained, features, tmp_path / "cut", progress=encoded.append
    )
    assert encoded == [50]
    np.testing.assert_array_equal(dense(more), dense(whole))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_narrow_types_on_disk(dtype, tokenizer, tmp_path):
    pretrained, features = made("dual", tokenizer)
    whole = encode_all(pretrained, "doc", features, np.arange(50))
    vectors = embeddings.embed_docs(pretrained, features, tmp_path, dtype=dtype)
    np.testing.assert_allclose(dense(vectors), whole, atol=0.01)
    size = {"bfloat16": 2, "int8": 1}[dtype] * whole.size
    assert next(tmp_path.glob("*/vectors.bin")).stat().st_size == size


def test_the_key_names_everything_that_matters(tokenizer):
    pretrained, features = made("dual", tokenizer)
    keys = [embeddings.embeddings_key(pretrained, features, "float32", "corpus")]
    other, _ = made("dual", tokenizer, seed=1)
    _, fewer = made("dual", tokenizer, docs=49)
    spec = dataclasses.replace(pretrained.spec, doc_prefix="w1")
    prefixed = Features(
        side_template(spec, "doc", tokenizer), tokenizer, text=features.stores[0]
    )
    keys.append(embeddings.embeddings_key(other, features, "float32", "corpus"))
    keys.append(embeddings.embeddings_key(pretrained, fewer, "float32", "corpus"))
    keys.append(embeddings.embeddings_key(pretrained, prefixed, "float32", "corpus"))
    keys.append(embeddings.embeddings_key(pretrained, features, "int8", "corpus"))
    keys.append(embeddings.embeddings_key(pretrained, features, "float32", "other"))
    assert len(set(keys)) == len(keys)


def test_nan_is_found_while_encoding(tokenizer, tmp_path):
    pretrained, features = made("dual", tokenizer)
    params = jax.tree.map(lambda x: np.asarray(x) * np.nan, pretrained.params)
    with pytest.raises(UserError, match="nan, inf"):
        embeddings.embed_docs(pretrained.replace(params=params), features, tmp_path)


def test_a_column_that_lost_its_end_is_not_filled_with_zeros(tmp_path):
    columns = Columns(tmp_path, {"vectors": "float32"})
    columns.append(0, {"vectors": np.ones(8)})
    with open(tmp_path / "vectors.bin", "r+b") as file:
        file.truncate(20)
    with pytest.raises(UserError, match="shorter than its shards say"):
        columns.append(1, {"vectors": np.ones(4)})
    assert len(columns.finished()) == 1
    assert (tmp_path / "vectors.bin").stat().st_size == 20
    (tmp_path / "vectors.bin").unlink()
    with pytest.raises(UserError, match="shorter than its shards say"):
        columns.append(1, {"vectors": np.ones(4)})


def test_damaged_and_old_folders(tokenizer, tmp_path):
    pretrained, features = made("dual", tokenizer)
    embeddings.embed_docs(pretrained, features, tmp_path)
    folder = next(tmp_path.iterdir())
    with open(folder / "vectors.bin", "r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match="damaged"):
        embeddings.embed_docs(pretrained, features, tmp_path)
