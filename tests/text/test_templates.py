"""Tokens joined are the joined text's tokens; each field is cut alone."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax.io.errors import UserError
from distill_jax.text.features import Features
from distill_jax.text.templates import Template
from distill_jax.text.token_store import TokenStore
from distill_jax.text.tokenizer import Tokenizer

T5 = "Query: {query} Document: {document} Relevant:</s>"
BERT = "[CLS] {query} [SEP] {document} [SEP]"
DUO = "Query: {query} Document0: {document0} Document1: {document1} Relevant:</s>"
INSTRUCTION = (
    "Is the document relevant to the query (Yes or No)?\n\n"
    "Query: {query}\n\nDocument: {document}</s>"
)


@pytest.fixture(scope="module")
def tokenizers(shared):
    return {
        "t5": Tokenizer.load(shared / "vocab/t5"),
        "bert": Tokenizer.load(shared / "vocab/bert-base-uncased"),
    }


@pytest.fixture(scope="module")
def texts(shared):
    folder = shared / "collections/medquad"

    def read(name, count):
        with gzip.open(folder / name, "rt") as lines:
            return [json.loads(line)["text"] for line, _ in zip(lines, range(count))]

    return read("queries.jsonl.gz", 1000), read("corpus.jsonl.gz", 1000)


@pytest.mark.parametrize(
    ("kind", "text"), [("t5", T5), ("t5", INSTRUCTION), ("bert", BERT)]
)
def test_joining_tokens_is_tokenising_the_joined_text(tokenizers, texts, kind, text):
    tokenizer, (queries, docs) = tokenizers[kind], texts
    template = Template(text)
    features = Features(
        template,
        tokenizer,
        query=TokenStore.build(queries, tokenizer),
        document=TokenStore.build(docs, tokenizer),
    )
    rows = np.arange(1000)
    lengths = features.lengths(query=rows, document=rows)
    tokens = features.tokens(int(lengths.max()), query=rows, document=rows)
    joined = tokenizer.encode_batch(
        [template.join(query=q, document=d) for q, d in zip(queries, docs)]
    )
    for row, length, expected in zip(tokens, lengths, joined):
        assert row[:length].tolist() == expected
        assert (row[length:] == tokenizer.pad_id).all()


def test_pairs_equal_transformers_pairs(shared, tokenizers, texts):
    transformers = pytest.importorskip("transformers")
    bert, (queries, docs) = tokenizers["bert"], texts
    theirs = transformers.BertTokenizer.from_pretrained(
        shared / "vocab/bert-base-uncased"
    )
    features = Features(
        Template(BERT),
        bert,
        query=TokenStore.build(queries[:50], bert),
        document=TokenStore.build(docs[:50], bert),
    )
    rows = np.arange(50)
    length = int(features.lengths(query=rows, document=rows).max())
    expected = theirs(queries[:50], docs[:50], padding=True)["input_ids"]
    assert (features.tokens(length, query=rows, document=rows) == expected).all()


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=100, deadline=None)
@given(words, words)
def test_joining_holds_for_any_text_without_leading_marks(tokenizers, query, doc):
    for kind, text in (("t5", T5), ("bert", BERT)):
        tokenizer, template = tokenizers[kind], Template(text)
        features = Features(
            template,
            tokenizer,
            query=TokenStore.build([query], tokenizer),
            document=TokenStore.build([doc], tokenizer),
        )
        tokens = features.tokens(256, query=[0], document=[0])[0]
        length = features.lengths(query=[0], document=[0])[0]
        joined = tokenizer.encode(template.join(query=query, document=doc))
        assert tokens[:length].tolist() == joined


def brute(template, tokenizer, length, **texts):
    """One sequence by Python lists."""
    ids = tokenizer.encode(template.literals[0])
    for name, literal in zip(template.fields, template.literals[1:]):
        most = template.lengths.get(name, 10**9)
        ids += tokenizer.encode(texts[name])[:most] + tokenizer.encode(literal)
    return ids + [tokenizer.pad_id] * (length - len(ids))


def test_each_field_is_cut_alone_and_literals_never(tokenizers, texts):
    t5, (queries, docs) = tokenizers["t5"], texts
    store = TokenStore.build(docs[:20], t5, limit=60)
    template = Template(DUO, {"query": 6, "document0": 50, "document1": 3})
    features = Features(
        template, t5, query=TokenStore.build(queries[:20], t5), document=store
    )
    rng = np.random.default_rng(0)
    q, a, b = rng.integers(0, 20, (3, 40))
    lengths = features.lengths(query=q, document0=a, document1=b)
    assert lengths.dtype == np.int32
    assert lengths.max() <= template.max_tokens(t5)
    tokens = features.tokens(96, query=q, document0=a, document1=b)
    assert tokens.dtype == np.int32
    for i in range(40):
        expected = brute(
            template,
            t5,
            96,
            query=queries[q[i]],
            document0=docs[a[i]],
            document1=docs[b[i]],
        )
        assert tokens[i].tolist() == expected
        assert (tokens[i] != 0).sum() == lengths[i]


def test_padding_rows_are_padding_and_nothing_is_cut_silently(tokenizers, texts):
    bert = tokenizers["bert"]
    store = TokenStore.build(texts[1][:3], bert)
    features = Features(Template("[CLS] {text} [SEP]"), bert, text=store)
    tokens = features.tokens(4096, text=np.asarray([-1, 2, -1]))
    assert (tokens[[0, 2]] == 0).all()
    assert tokens[1, 0] == bert.cls_id
    with pytest.raises(ValueError, match="longer than"):
        features.tokens(8, text=np.asarray([0]))
    assert features.tokens(8, text=np.zeros(0, int)).shape == (0, 8)
    with pytest.raises(TypeError, match="fields"):
        features.tokens(8, query=np.asarray([0]))


def test_an_empty_text_joins(tokenizers):
    t5 = tokenizers["t5"]
    store = TokenStore.build(["", "a"], t5)
    features = Features(Template(T5), t5, query=store, document=store)
    tokens = features.tokens(16, query=[0, 1], document=[0, 0])
    assert t5.decode(tokens[0]) == "Query: Document: Relevant:"
    assert t5.decode(tokens[1]) == "Query: a Document: Relevant:"


@pytest.mark.parametrize(
    ("text", "lengths", "message"),
    [
        ("no fields</s>", {}, "must have fields"),
        ("{a} {a}", {}, "each once"),
        ("{query}", {"doc": 3}, "not fields of"),
        ("{query}", {"query": 0}, "cut at 0"),
    ],
)
def test_bad_templates(text, lengths, message):
    with pytest.raises(UserError, match=message):
        Template(text, lengths)


def test_templates_that_do_not_join_are_refused(tokenizers):
    with pytest.raises(UserError, match="glues"):
        Template("Query:{query}x</s>").compile(tokenizers["t5"])
    with pytest.raises(UserError, match="does not have"):
        Template("[CLS] {text} [SEP]").compile(tokenizers["t5"])
    store = TokenStore.build(["a"], tokenizers["t5"])
    with pytest.raises(UserError, match="no texts"):
        Features(Template(T5), tokenizers["t5"], query=store)


def test_templates_hash_and_survive_json():
    template = Template(T5, {"query": 32, "document": 180})
    again = Template.from_json(json.loads(json.dumps(template.to_json())))
    assert again == template
    assert hash(again) == hash(template)
    assert template != Template(T5, {"query": 16, "document": 180})


def test_token_stores_are_made_once(tokenizers, texts, tmp_path):
    t5, docs = tokenizers["t5"], texts[1][:200]
    calls = []
    first = TokenStore.build(
        docs, t5, tmp_path, 64, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(200, 200)]
    second = TokenStore.build(
        docs, t5, tmp_path, 64, progress=lambda done, total: calls.append((done, total))
    )
    assert len(calls) == 1
    plain = TokenStore.build(docs, t5, limit=64)
    for store in (first, second):
        assert isinstance(store.ids, np.memmap)
        assert store.ids.dtype == np.uint16
        assert (store.ids == plain.ids).all()
        assert (store.offsets == plain.offsets).all()
        assert store.digest == plain.digest
        assert store.truncated == plain.truncated > 0
    for row, text in enumerate(docs):
        assert plain[row].tolist() == t5.encode(text)[:64]
    assert TokenStore.build(docs, t5, tmp_path, 32).digest != first.digest
    assert TokenStore.build(docs[1:], t5, tmp_path, 64).digest != first.digest
    other = TokenStore.build(docs, tokenizers["bert"], tmp_path, 64)
    assert other.digest != first.digest
    assert len(list(tmp_path.iterdir())) == 4


def test_damaged_token_stores_are_refused(tokenizers, tmp_path):
    t5 = tokenizers["t5"]
    store = TokenStore.build(["a b c", ""], t5, tmp_path)
    assert store[1].tolist() == []
    folder = tmp_path / store.digest
    data = (folder / "ids.bin").read_bytes()
    (folder / "ids.bin").write_bytes(data[:-2])
    with pytest.raises(UserError, match="damaged"):
        TokenStore.build(["a b c", ""], t5, tmp_path)
    (folder / "ids.bin").write_bytes(data)
    assert len(TokenStore.read(folder)) == 2
    with pytest.raises(UserError, match="damaged"):
        TokenStore.read(folder, expect="another")
    assert len(TokenStore.build([""], t5, tmp_path)) == 1
    assert len(TokenStore.build([], t5, tmp_path)) == 0
