"""Collections as they are on disk, and every way in which they can be wrong."""

import gzip
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_jax.collections import builder, pydocs
from distill_jax.collections.collection import Collection, Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.collections.schemes import load_collection
from distill_jax.io import bad_lines
from distill_jax.io.errors import UserError
from distill_jax.io.strings import StringTable
from distill_jax.workspace.context import open_workspace

DOCS = [
    {"_id": "007", "title": "Ä title", "text": "first text", "metadata": {"x": "leak"}},
    {"_id": "a b/..", "title": "", "text": "日本\tтекст\nwith 😀"},
    {"_id": "д-3", "text": "third \u2028 text"},
    {"_id": "4", "title": "only a title", "text": ""},
    {"_id": "5", "title": "", "text": " "},
]
QUERIES = [
    {"_id": "q1", "text": "one", "metadata": {"answer": "leak"}},
    {"_id": "q 2", "text": "two é"},
    {"_id": "q3", "text": "of another split"},
]


def write(folder, docs=DOCS, queries=QUERIES, qrels="q1\t007\t1\nq 2\tд-3\t2\n"):
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, records in (("corpus", docs), ("queries", queries)):
        lines = [
            r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)
            for r in records
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return f"beir:{folder}"


@pytest.fixture(params=["lists", "mapped"])
def kept(request, monkeypatch, tmp_path):
    """Small collections are lists; the same ones forced into mapped tables."""
    monkeypatch.setenv("DISTILL_JAX_CACHE", str(tmp_path / "cache"))
    if request.param == "mapped":
        monkeypatch.setattr(builder, "LARGE_BYTES", 0)
    return request.param


def test_beir_reads_back_what_was_written(tmp_path, kept):
    spec = write(tmp_path / "set with blanks")
    collection, queries, qrels = load_collection(spec)
    assert isinstance(collection.texts, StringTable) == (kept == "mapped")
    assert list(collection.ids) == [d["_id"] for d in DOCS]
    assert list(collection.texts) == [d["text"] for d in DOCS]
    assert [collection.title(r) for r in range(5)] == [d.get("title", "") for d in DOCS]
    full = ["Ä title first text", DOCS[1]["text"], DOCS[2]["text"], "only a title", " "]
    assert list(collection.full_texts()) == full
    assert collection.full_texts()[1:3] == full[1:3]
    assert collection.full_texts([3, 0]) == [full[3], full[0]]
    assert queries.ids == ["q1", "q 2"]
    assert queries.texts == ["one", "two é"]
    assert qrels.of("q 2") == {"д-3": 2}
    assert collection.row("a b/..") == 1
    assert collection.rows(["5", "nope", "007"]).tolist() == [4, -1, 0]
    assert collection.notices == ("1 of 5 documents are empty (kept)",)
    everything = " ".join([*collection.full_texts(), *queries.texts])
    assert "leak" not in everything


def test_both_forms_have_one_digest(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_JAX_CACHE", str(tmp_path / "cache"))
    spec = write(tmp_path / "set")
    small = load_collection(spec)[0]
    monkeypatch.setattr(builder, "LARGE_BYTES", 0)
    large = load_collection(spec)[0]
    again = load_collection(spec)[0]
    assert small.digest == large.digest == again.digest
    assert large.select([1, 0]).digest == small.select([1, 0]).digest
    write(tmp_path / "set", [*DOCS[:-1], {"_id": "5", "title": "", "text": "x"}])
    changed = load_collection(spec)[0]
    assert changed.digest != large.digest
    assert changed.text(4) == "x"


def test_rows_of_a_large_collection_need_no_dict(monkeypatch):
    from distill_jax.collections import collection as module

    monkeypatch.setattr(module, "_DICT_ROWS", 10)
    ids = [f"д{i * 7919 % 1000}" for i in range(1000)]
    big = Collection(StringTable.of(ids), StringTable.of([""] * 1000))
    assert big.rows(ids[::-1]).tolist() == list(range(999, -1, -1))
    assert big.rows(["x", ids[5]]).tolist() == [-1, 5]
    assert [big.row(i) for i in ids[:50]] == list(range(50))
    with pytest.raises(UserError, match="no document 'x'"):
        big.row("x")


ID = '{"_id": "1", "text": "a"}'


@pytest.mark.parametrize(
    ("docs", "message"),
    [
        ([ID, '{"_id": "2", "text": '], r"corpus\.jsonl:2:\d+: malformed JSON"),
        ([ID, '{"_id": "2", "txt": "a"}'], r'corpus\.jsonl:2: no "text" \(did you'),
        ([ID, '{"text": "a"}'], r'corpus\.jsonl:2: no "_id"'),
        ([ID, '{"_id": "2", "text": ["a"]}'], r'corpus\.jsonl:2: "text" is a list'),
        ([ID, "", '{"_id": "1", "text": "b"}'], r"corpus\.jsonl:3: .*'1'.* on line 1"),
        ([ID, '{"_id": "a\\tb", "text": "b"}'], r"corpus\.jsonl:2: the id 'a\\tb'"),
        ([ID, '{"_id": "a\\nb", "text": "b"}'], r"corpus\.jsonl:2: the id"),
        ([ID, '{"_id": "", "text": "b"}'], r"corpus\.jsonl:2: an empty id"),
        (["[]"], r"corpus\.jsonl:1: a JSON list"),
        ([], "no documents"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path, kept, docs, message):
    spec = write(tmp_path / "set", docs, qrels="q1\t1\t1\n")
    with pytest.raises(UserError, match=message) as caught:
        load_collection(spec)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_repeated_document_is_kept_once_and_counted(tmp_path, kept):
    spec = write(tmp_path / "set", [*DOCS, DOCS[0]])
    collection = load_collection(spec)[0]
    assert len(collection) == 5
    assert "1 document ids given twice with the same text" in collection.notices


def test_number_ids_and_surrogates(tmp_path, kept):
    docs = ['{"_id": 7, "text": "a \\ud800 b \\ud83d\\ude00"}']
    spec = write(tmp_path / "set", docs, qrels="q1\t7\t1\n")
    collection = load_collection(spec)[0]
    assert collection.ids[0] == "7"
    assert collection.text(0) == "a \ufffd b 😀"


def test_compressed_files_and_cut_ones(tmp_path, kept):
    folder = tmp_path / "set"
    spec = write(folder)
    data = gzip.compress((folder / "corpus.jsonl").read_bytes())
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus.jsonl.gz").write_bytes(data)
    assert len(load_collection(spec)[0]) == 5
    (folder / "corpus.jsonl.gz").write_bytes(data[:-12])
    with pytest.raises(UserError, match=r"corpus\.jsonl\.gz:\d+: the compressed"):
        load_collection(spec)


def test_unknown_ids_are_counted_and_none_left_is_an_error(tmp_path):
    more = "q1\tnope\t1\nq9\t007\t1\nq3\tnope\t1\n"
    spec = write(tmp_path / "set", qrels="q1\t007\t1\n" + more)
    collection, queries, qrels = load_collection(spec)
    assert queries.ids == ["q1"]
    assert len(qrels) == 1
    said = " ".join(collection.notices)
    assert "1 unknown queries, e.g. 'q9'" in said
    assert "2 unknown documents, e.g. 'nope'" in said
    assert "1 queries have no judged document left" in said
    write(tmp_path / "set", qrels="q9\t007\t1\n")
    with pytest.raises(UserError, match=r"no judgement is left.*q9"):
        load_collection(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bier:x", r'did you mean "beir"'),
        ("beir:", "nothing after the scheme"),
        ("beir:/no/such", "no such folder"),
        ("msmarco:/no/such", "no such folder"),
        ("pydocs:no_such_package", "no such package"),
        ("pydocs:../etc", "no such package"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(UserError, match=message):
        load_collection(spec)


def test_a_missing_split_lists_those_there_are(tmp_path):
    spec = write(tmp_path / "set")
    with pytest.raises(UserError, match=r"'dev'\navailable splits: test"):
        load_collection(spec, "dev")


def test_msmarco(tmp_path, kept):
    (tmp_path / "collection.tsv").write_text("0\tfirst\n1\tsecond é\n2\tthird\n")
    (tmp_path / "queries.train.tsv").write_text("10\tone\n11\ttwo\n")
    (tmp_path / "qrels.train.tsv").write_text("10\t0\t2\t1\n")
    with gzip.open(tmp_path / "queries.dev.small.tsv.gz", "wt") as out:
        out.write("12\tthree\n")
    (tmp_path / "qrels.dev.small.tsv").write_text("12\t0\t1\t1\n")
    spec = f"msmarco:{tmp_path}"
    collection, queries, qrels = load_collection(spec, "train")
    assert list(collection.texts) == ["first", "second é", "third"]
    assert collection.titles is None
    assert queries.ids == ["10", "11"]
    assert qrels.of("10") == {"2": 1}
    assert "1 of 2 queries are not judged (kept)" in collection.notices
    assert load_collection(spec, "dev")[1].texts == ["three"]
    with pytest.raises(UserError, match=r"dev\.small, train"):
        load_collection(spec, "test")
    (tmp_path / "collection.tsv").write_text("0\tfirst\n1 second\n")
    with pytest.raises(UserError, match=r"collection\.tsv:2: 1 columns"):
        load_collection(spec, "train")


def test_scifacts_counts(shared):
    for split, count, judged in (("train", 809, 919), ("test", 300, 339)):
        collection, queries, qrels = load_collection(
            f"beir:{shared}/collections/scifact", split
        )
        assert (len(collection), len(queries), len(qrels)) == (5183, count, judged)
    collection, queries, qrels = load_collection(f"beir:{shared}/collections/cranfield")
    assert collection.notices == ("2 of 1400 documents are empty (kept)",)


def test_columns_must_fit():
    with pytest.raises(UserError, match="2 ids but 1 texts"):
        Collection(["1", "2"], ["a"])
    with pytest.raises(UserError, match="duplicate document id '1'"):
        Collection(["1", "1"], ["a", "b"])
    with pytest.raises(UserError, match="duplicate query id 'q'"):
        Queries(["q", "q"], ["a", "b"])


def test_relative_paths_are_of_the_working_directory(tmp_path, monkeypatch):
    write(tmp_path / "a set")
    monkeypatch.chdir(tmp_path)
    assert len(load_collection("beir:a set")[0]) == 5
    os.chdir("a set")
    assert len(load_collection("beir:.")[0]) == 5


# ------------------------------------------------------------------ qrels

plain = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="\ufeff"),
    min_size=1,
    max_size=6,
).filter(lambda s: s.split() == [s])


@given(
    st.dictionaries(
        plain, st.dictionaries(plain, st.integers(-2, 4), min_size=1), min_size=1
    )
)
def test_qrels_survive_both_formats(tmp_path_factory, judgements):
    folder = tmp_path_factory.mktemp("qrels")
    for name in ("a.tsv", "a.txt", "a.tsv.gz"):
        Qrels(judgements).write(folder / name)
        assert Qrels.read(folder / name) == Qrels(judgements)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q\td\t1\nq\td\t2\n", r"qrels\.tsv:2: .* has grade 2, but 1 on line 1"),
        ("q 0 d 1\nq 0 d\n", r"qrels\.tsv:2: 3 columns, but 4 on line 1"),
        ("q 0 d 1\nq d\n", r"qrels\.tsv:2: 2 columns"),
        ("q 0 d 1\nq 0 e 0.5\n", r"qrels\.tsv:2: grade '0.5'"),
        ("q\td\t1\nq\t\t1\n", r"qrels\.tsv:2: an empty id"),
        ("q\td\t1\nq\te\tnan\n", r"qrels\.tsv:2: grade 'nan'"),
    ],
)
def test_bad_qrels(tmp_path, content, message):
    (tmp_path / "qrels.tsv").write_text(content)
    with pytest.raises(UserError, match=message):
        Qrels.read(tmp_path / "qrels.tsv")


def test_qrels_of_any_layout(tmp_path):
    path = tmp_path / "qrels"
    path.write_text("q1 0 d1 1\nq1  0\td2 0\n\nq1 0 d1 1\n")
    qrels = Qrels.read(path)
    assert qrels.of("q1") == {"d1": 1, "d2": 0}
    assert qrels.relevant("q1") == ["d1"]
    assert qrels.of("q2") == {}
    assert "1 judgements given twice" in qrels.notices[0]
    path.write_text("\ufeffquery-id\tcorpus-id\tscore\r\nq 1\td 1\t1.0\r\n", "utf-8")
    assert Qrels.read(path).of("q 1") == {"d 1": 1}
    with pytest.raises(UserError, match="blank"):
        Qrels.read(path).write(tmp_path / "a.trec")


# ------------------------------------------------------------------ pydocs


def test_pydocs_is_a_task_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_JAX_CACHE", str(tmp_path / "cache"))
    seen = set()
    for split in ("train", "dev", "test"):
        collection, queries, qrels = load_collection("pydocs", split)
        assert 1000 < len(collection) < 5000
        assert {i.split(".")[0] for i in collection.ids} <= set(pydocs.STANDARD_LIBRARY)
        assert collection.titles is None
        assert set(qrels.query_ids) == set(queries.ids)
        assert not seen.intersection(queries.ids)
        seen.update(queries.ids)
        for query, text in zip(queries.ids, queries.texts):
            (doc,) = qrels.relevant(query)
            assert text not in collection.text(collection.row(doc))
            assert query != doc
        if split == "test":
            assert 200 < len(queries) <= 300
    assert len(set(collection.texts)) == len(collection)
    # The second time it comes from the cache, and is the same.
    assert len(list((tmp_path / "cache/pydocs").iterdir())) == 1
    assert load_collection("pydocs")[0].digest == collection.digest
    with pytest.raises(UserError, match="train, dev, test"):
        load_collection("pydocs", "validation")


def test_pydocs_is_never_a_part_of_the_standard_library(monkeypatch):
    monkeypatch.setattr(pydocs, "STANDARD_LIBRARY", ("json", "tkinterish"))
    with pytest.raises(UserError, match="no sources of 'tkinterish'"):
        load_collection("pydocs", "train")


def test_pydocs_of_named_packages_and_without_a_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_JAX_CACHE", "/dev/null/nowhere")
    collection, _, _ = load_collection("pydocs:json,email", "train")
    assert {i.split(".")[0] for i in collection.ids} == {"json", "email"}
    assert "json.dumps" in list(collection.ids)


def test_tfds_questions():
    from distill_jax.collections.tfds import questions

    records = [
        {"question": b"who?", "answer": [b"me", b"I"]},
        {
            "question": b"what?",
            "question_id": b"t1",
            "answer": {"value": b"a", "aliases": [b"A", b"a"]},
        },
    ]
    collection, queries, qrels = questions(records, "set", "train")
    assert len(collection) == len(qrels) == 0
    assert queries.ids == ["train-1", "t1"]
    assert queries.answers == [["me", "I"], ["a", "A"]]
    with pytest.raises(UserError, match="no 'question'"):
        questions([{"text": b"x"}], "set", "train")


def test_irds(monkeypatch):
    ir_datasets = pytest.importorskip("ir_datasets")
    from collections import namedtuple

    Doc = namedtuple("Doc", "doc_id title text")
    Query = namedtuple("Query", "query_id text")
    Qrel = namedtuple("Qrel", "query_id doc_id relevance")

    class Dataset:
        def has(self, part):
            return True

        def docs_iter(self):
            return iter([Doc("1", "t", "a"), Doc("2", "", "b")])

        def queries_iter(self):
            return iter([Query("q1", "x"), Query("q2", "y")])

        def qrels_iter(self):
            return iter([Qrel("q1", "2", 1)])

    def load(name):
        if name != "mine/test":
            raise KeyError(name)
        return Dataset()

    monkeypatch.setattr(ir_datasets, "load", load)
    collection, queries, qrels = load_collection("irds:mine")
    assert collection.full_texts() == ["t a", "b"]
    assert queries.ids == ["q1"]
    assert qrels.of("q1") == {"2": 1}
    with pytest.raises(UserError, match="no set of that name"):
        load_collection("irds:mine", "dev")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"no split 'validation'"):
        load_collection("irds:beir/scifact", "validation")


def test_select_keeps_rows_in_order():
    collection = Collection(["a", "b", "c"], ["1", "2", "3"], ["x", "", "z"])
    part = collection.select(np.asarray([2, 0]))
    assert part.full_texts() == ["z 3", "x 1"]
    queries = Queries(["a", "b"], ["1", "2"], answers=[["x"], ["y"]]).select([1])
    assert queries.answers == [["y"]]


def test_a_few_ids_of_millions_are_not_met_in_a_pass_over_all(monkeypatch):
    """Judged lists ask for a few ids of each query: each pass took 0.7 s."""
    from distill_jax.collections import collection as module

    ids = [f"d{i}" for i in np.random.default_rng(0).permutation(3000)]
    docs = Collection(ids, ["text"] * len(ids))
    wanted = ["d7", "nowhere", "d2999", "d0", "é"]
    expected = [ids.index(i) if i in ids else -1 for i in wanted]
    monkeypatch.setattr(module, "_DICT_ROWS", 100)
    passes = []
    monkeypatch.setattr(
        Collection, "rows_of_arrow", lambda self, ids: passes.append(len(ids))
    )
    assert docs.rows(wanted).tolist() == expected
    assert not passes
    docs.rows(ids * 4)
    assert passes == [12000]


def _beir(folder):
    for split in ("train", "dev"):
        write(folder, qrels="q1\t007\t1\n" if split == "dev" else "q3\t4\t1\n")
        (folder / "qrels/test.tsv").rename(folder / f"qrels/{split}.tsv")
    return write(folder, qrels="q 2\tд-3\t2\n"), "corpus.jsonl"


def _msmarco(folder):
    folder.mkdir()
    (folder / "collection.tsv").write_text("1\tone text\n2\tanother text\n")
    for number, split in enumerate(("train", "dev", "test")):
        (folder / f"queries.{split}.tsv").write_text(f"q{number}\ta {split} query\n")
        (folder / f"qrels.{split}.tsv").write_text(f"q{number} 0 1 1\n")
    return f"msmarco:{folder}", "collection.tsv"


@pytest.mark.parametrize("made", [_beir, _msmarco])
def test_a_job_parses_the_documents_once_for_all_splits(tmp_path, monkeypatch, made):
    spec, corpus = made(tmp_path / "set")
    read, raw_lines = [], bad_lines.raw_lines
    monkeypatch.setattr(
        bad_lines, "raw_lines", lambda path: read.append(path.name) or raw_lines(path)
    )
    workspace = open_workspace(tmp_path, spec)
    assert read.count(corpus) == 1
    splits = workspace.train, workspace.dev, workspace.test
    for split, name in zip(splits, ("train", "dev", "test")):
        docs, queries, qrels = load_collection(spec, name)
        assert split.queries.ids == queries.ids
        assert split.qrels.of(queries.ids[0]) == qrels.of(queries.ids[0])
        assert docs.digest == workspace.collection.digest
