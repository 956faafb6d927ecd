"""Tables are read by their columns' names; what is no number, or no rank, is named."""

from __future__ import annotations

import gzip
import itertools
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax.collections.collection import Collection
from distill_jax.collections.qrels import Qrels
from distill_jax.collections.schemes import load_collection, load_docs
from distill_jax.io.bad_lines import tolerated
from distill_jax.io.errors import UserError
from distill_jax.labels.readers import read_labels
from distill_jax.runs.run import Run


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    "order", list(itertools.permutations(["query-id", "corpus-id", "score"]))
)
def test_judgements_are_read_by_their_header(tmp_path, order):
    values = {"query-id": "7", "corpus-id": "2", "score": "1"}
    lines = ["\t".join(order), "\t".join(values[name] for name in order)]
    assert Qrels.read(write(tmp_path / "q.tsv", lines)).as_dict() == {"7": {"2": 1}}


@pytest.mark.parametrize(
    "head", ["query_id q0 doc_id rel", "qid iter docno relevance", "topic 0 pid label"]
)
def test_judgements_of_four_columns_may_have_a_header(tmp_path, head):
    path = write(tmp_path / "q.txt", [head, "7 0 2 1"])
    assert Qrels.read(path).as_dict() == {"7": {"2": 1}}


@pytest.mark.parametrize(
    "head",
    ["query-id\tcorpus-id\tfoo", "query-id\tquery-id\tscore", "query-id\tscore\trank"],
)
def test_a_header_that_is_not_known_is_refused(tmp_path, head):
    path = write(tmp_path / "q.tsv", [head, "7\t2\t1"])
    with pytest.raises(UserError, match=r"q\.tsv:1: the header"):
        Qrels.read(path)


@pytest.mark.parametrize(
    ("head", "line"),
    [
        ("qid\tpid\trank", "q\ta\t1"),
        ("pid\tqid\trank", "a\tq\t1"),
        ("query_id\tdoc_id\tscore", "q\ta\t3.5"),
        ("qid\tpid\trank\tscore", "q\ta\t1\t3.5"),
        ("query\tq0\tdocno\trank\tscore\trun", "q\tQ0\ta\t1\t3.5\tx"),
    ],
)
def test_runs_are_read_by_their_header(tmp_path, head, line):
    lower = line.replace("a", "b").replace("3.5", "2.5")
    lower = lower.replace("\t1", "\t2") if "1" in lower else lower
    run = Run.read(write(tmp_path / "x.tsv", [head, lower, line]))
    assert [doc for doc, _ in run.lists()["q"]] == ["a", "b"]


@pytest.mark.parametrize("bad", ["-1", "0", "1.5", "0.73", "nan", "inf", "x"])
def test_a_third_column_that_is_no_rank_is_refused(tmp_path, bad):
    path = write(tmp_path / "x.tsv", ["q\ta\t1", f"q\tb\t{bad}"])
    with pytest.raises(UserError, match=r"x\.tsv:2: "):
        Run.read(path)


def test_a_rank_given_twice_is_refused_with_both_lines(tmp_path):
    path = write(tmp_path / "x.tsv", ["q\ta\t1", "r\ta\t1", "q\tb\t1"])
    with pytest.raises(UserError, match=r"x\.tsv:3: rank 1 .* line 1"):
        Run.read(path)


@pytest.mark.parametrize("values", ["25 17 12", "3 2 1", "9 7 8", "2 3 4"])
def test_whole_scores_are_not_taken_for_ranks(tmp_path, values):
    lines = [f"q\t{doc}\t{value}" for doc, value in zip("abc", values.split())]
    path = write(tmp_path / "x.tsv", [*lines, "r\ta\t9", "r\tb\t5"])
    with pytest.raises(UserError, match="is not a rank"):
        Run.read(path)
    # A header says which they are.
    run = Run.read(write(tmp_path / "y.tsv", ["qid\tpid\trank", *lines]))
    best = min(zip(values.split(), "abc"), key=lambda pair: int(pair[0]))[1]
    assert run.lists()["q"][0][0] == best


@pytest.mark.parametrize("digits", ["1_0", "\u0661", "\uff11"])
def test_forms_of_numbers_that_only_python_reads_are_refused(tmp_path, digits):
    run = write(tmp_path / "x.run", ["q Q0 a 1 2.0 t", f"q Q0 b 2 {digits} t"])
    with pytest.raises(UserError, match=r"x\.run:2: "):
        Run.read(run)
    judged = write(tmp_path / "q.tsv", ["q\ta\t1", f"q\tb\t{digits}"])
    with pytest.raises(UserError, match=r"q\.tsv:2: "):
        Qrels.read(judged)


def test_judgements_with_columns_in_another_order_are_refused(tmp_path):
    for lines in (["q1 d1 0 1", "q1 d2 0 1"], ["0\t7101\td1\t1", "1\t7102\td2\t0"]):
        with pytest.raises(UserError, match=r"q\.txt:2: the second column"):
            Qrels.read(write(tmp_path / "q.txt", lines))
    rounds = ["1 4.5 d1 2", "1 Q0 d2 1", "2 0 d1 0", "3 set d1 0"]
    assert len(Qrels.read(write(tmp_path / "q.txt", rounds))) == 4


def test_both_readers_of_a_run_end_lines_alike(tmp_path):
    path = tmp_path / "x.run"
    path.write_bytes(b"q Q0 a 1 2.0 t\nq Q0 b 2 1.5 t\rq Q0 c 3 1.0 t\n")
    with pytest.raises(UserError, match=r"x\.run:2: 12 columns"):
        Run.read(path)
    path.write_bytes(b"q Q0 a 1 2.0 t\r\nq Q0 b 2 1.5 t\r\n")
    assert [doc for doc, _ in Run.read(path).lists()["q"]] == ["a", "b"]


def test_an_id_that_is_not_encoded_as_its_tag_says_is_named(tmp_path):
    path = write(tmp_path / "x.run", ["q%FF Q0 a 1 2.0 t;ids=percent-encoded"])
    with pytest.raises(UserError, match="'q%FF' is not percent-encoded"):
        Run.read(path)


@pytest.mark.parametrize(
    ("first", "name"),
    [
        (b"\x28\xb5\x2f\xfd\x24\0", "zstd"),
        (b"BZh91AY&SY", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"PK\3\4", "zip"),
        (b"PAR1", "Parquet"),
    ],
)
def test_another_compression_is_named(tmp_path, first, name):
    (tmp_path / "x.run").write_bytes(first + b"\0\xff" * 20)
    for read in (Run.read, Qrels.read):
        with pytest.raises(UserError, match=f"a {name} file: unpack"):
            read(tmp_path / "x.run")


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl", "x.run", "x.txt"])
@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "zip"])
def test_what_is_no_utf_8_is_told_with_its_coding(tmp_path, name, coding):
    path = tmp_path / name
    if coding == "zip":
        path.write_bytes(b"PK\3\4\x14\0\6\0" + bytes(range(256)))
    else:
        path.write_bytes("id\ttext\n1\ta\n".encode(coding))
    read = Run.read if name in ("x.run", "x.txt") else lambda p: load_docs(f"csv:{p}")
    with pytest.raises(UserError) as caught:
        read(path)
    assert name in caught.value.what
    if coding == "utf-16":  # it says so by its first two bytes
        assert "iconv -f UTF-16" in caught.value.todo
    if coding == "zip":
        assert "a zip file: unpack" in caught.value.todo


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf", "NaN", "1e39", "-1e400", "x"])
def test_a_score_that_is_not_finite_is_refused(tmp_path, bad):
    run = write(tmp_path / "x.run", ["q Q0 a 1 2.0 t", f"q Q0 b 2 {bad} t"])
    gpl = write(tmp_path / "x.tsv", ["q\ta\tb\t2.0", f"q\ta\tc\t{bad}"])
    for read in (Run.read, lambda path: read_labels(path, "run", kind="score")):
        with pytest.raises(UserError, match=r"x\.run:2: "):
            read(run)
    with pytest.raises(UserError, match=r"x\.tsv:2: "):
        read_labels(gpl, "gpl")
    infinite = Run(("q",), np.zeros((1, 1), np.int32), np.asarray([[np.inf]]), ["a"])
    with pytest.raises(UserError, match="infinite"):
        Run.combine([infinite, infinite], (1.0, 1.0), normalise="minmax")


MARCO = ["1\tA bridge over the river, of steel.\tBridge", "2\tRails cross it.\tRail"]


def marco(folder, lines):
    write(folder / "collection.tsv", lines)
    write(folder / "queries.dev.tsv", ["qid\tquery", "5\twhat crosses"])
    write(folder / "qrels.dev.tsv", ["5\t0\t1\t1"])
    return f"msmarco:{folder}"


def test_ms_marco_columns_are_read_by_their_header(tmp_path):
    spec = marco(tmp_path, ["pid\ttext\ttitle", *MARCO])
    docs, queries, _ = load_collection(spec, split="dev")
    assert list(docs.ids) == ["1", "2"]
    assert list(docs.titles) == ["Bridge", "Rail"]
    assert list(docs.texts) == [line.split("\t")[1] for line in MARCO]
    assert list(queries.texts) == ["what crosses"]


def test_ms_marco_columns_without_a_header_are_told_or_refused(tmp_path):
    with pytest.raises(UserError, match="header"):
        load_collection(marco(tmp_path, MARCO), split="dev")
    turned = ["\t".join(line.split("\t")[i] for i in (0, 2, 1)) for line in MARCO]
    docs, *_ = load_collection(marco(tmp_path, turned), split="dev")
    assert list(docs.titles) == ["Bridge", "Rail"]
    assert any("id, title, text" in notice for notice in docs.notices)


def test_a_compressed_file_is_known_by_its_first_bytes(tmp_path):
    lines = b"q Q0 a 1 2.0 t\nq Q0 b 2 1.0 t\n"
    (tmp_path / "plain.run").write_bytes(lines)
    (tmp_path / "packed.run").write_bytes(gzip.compress(lines))
    (tmp_path / "named.run.gz").write_bytes(lines)
    runs = [
        Run.read(tmp_path / name)
        for name in ("plain.run", "packed.run", "named.run.gz")
    ]
    assert runs[0].lists() == runs[1].lists() == runs[2].lists()


# One good record of each format.
GOOD = {
    "colbert": ["q1", ["d1", 2.0, [[1, -0.5]]], ["d2", 1.0]],
    "pylate": {"query_id": "q1", "document_ids": ["d1", "d2"], "scores": [2.0, 1.0]},
    "sentence_transformers": {"query": "why", "docs": ["da", "db"], "labels": [1, 0]},
    "flag_embedding": {
        "query": "why",
        "pos": ["da"],
        "neg": ["db", "dc"],
        "pos_scores": [2.0],
        "neg_scores": [1.0, 0.5],
    },
    "tevatron": {
        "query_id": "q1",
        "query": "why",
        "positive_passages": [{"docid": "d1", "title": "t", "text": "da"}],
        "negative_passages": [{"docid": "d2", "title": "t", "text": "db"}],
    },
    "twolar": {
        "query": "why",
        "retrieved_passages": [{"docid": "d1", "text": "da"}, {"docid": "d2"}],
    },
    "rankgpt": {"query": "why", "hits": [{"content": "da"}, {"content": "db"}]},
}
ODD = [
    None, "", [], {}, 0, -1, True, 1.5, float("nan"), float("inf"), 10**400, "text",
    "['a']", "[1.0, 2.0]", [[]], [None], [""], [{}], [1], ["a", 1], [[1, 2]], {"a": 1},
]  # fmt: skip


def places(value, at=()):
    """Every place of a nested value that can be replaced."""
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield (*at, key)
            yield from places(value[key], (*at, key))


def replaced(value, at, new):
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = replaced(value[at[0]], at[1:], new)
    return copy


def texts_of(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from texts_of(one)


@pytest.mark.parametrize("form", GOOD)
def test_an_odd_field_of_a_label_file_is_named_with_its_line(tmp_path, form):
    """A result is made of the record's own strings, or the line is named."""
    path = tmp_path / "labels.jsonl"
    other = json.dumps(GOOD[form]).replace("why", "how").replace("q1", "q2")
    for at in places(GOOD[form]):
        for odd in ODD:
            record = replaced(GOOD[form], at, odd)
            path.write_text(f"{other}\n{json.dumps(record)}\n")
            for given_form in (form, None):
                try:
                    found = read_labels(path, given_form)
                except UserError as error:
                    said = str(error).splitlines()
                    assert "labels.jsonl:2" in said[0], (at, odd)
                    continue
                labels = found.labels
                assert np.isfinite(labels.scores[labels.where]).all(), (at, odd)
                known = {*texts_of(record), *texts_of(json.loads(other)), ""}
                if found.collection is not None:
                    assert set(found.collection.texts) <= known, (at, odd)


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
@pytest.mark.parametrize(
    "at", [("query",), ("docs", 0), ("pos", 0), ("neg", 1)], ids=lambda at: at[0]
)
def test_a_text_of_blanks_is_no_query_and_no_document(tmp_path, at, text):
    form = "sentence_transformers" if at[0] == "docs" else "flag_embedding"
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(replaced(GOOD[form], at, text)))
    with pytest.raises(UserError, match=r"labels\.jsonl:1: .* is empty"):
        read_labels(path)


PASSAGES = {"positive_passages": [{"docid": "1", "text": "a", "score": 3}]}


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([{"query_id": "q\t1", "document_ids": ["a"], "scores": [1]}], "no run file"),
        ([{"query_id": "q", "document_ids": ["a\0"], "scores": [1]}], "no run file"),
        ([{"query_id": "q", **PASSAGES, "negative_passages": [{"docid": "2"}]}],
         "1 of 2 passages"),
        ([{"query": "x", "hits": [{"content": "a", "rank": 2},
                                  {"content": "b", "rank": 1}]}], "another order"),
        ([{"query": "x", "pos": ["a"], "neg": ["b"], "pos_scores": [9.5],
           "neg_scores": [3.5]}, {"query": "y", "pos": ["a"], "neg": ["b"]}],
         "one kind of label"),
    ],
)  # fmt: skip
def test_labels_of_two_meanings_are_refused(tmp_path, records, told):
    path = write(tmp_path / "x.jsonl", map(json.dumps, records))
    with pytest.raises(UserError, match=f"(?s){len(records)}: .*{told}"):
        read_labels(path)


@pytest.mark.parametrize("line", ["q\ta\tb\t5", "q\ta\ta\t1"])
def test_margins_that_contradict_are_refused(tmp_path, line):
    path = write(tmp_path / "x.tsv", ["q\ta\tb\t1", "q\ta\tb\t1.0001", line])
    with pytest.raises(UserError, match=r"x\.tsv:3: the margin of query 'q'"):
        read_labels(path, "gpl")


@pytest.mark.parametrize(
    "odd",
    [
        {"score": None}, {"score": float("nan")}, {"score": True}, {"doc_id": 2.0},
        {"query_id": b"q"}, {"query_id": None}, {"doc_id": ""}, {"rank": float("nan")},
    ],
)  # fmt: skip
def test_odd_cells_of_a_parquet_table_are_named(tmp_path, odd):
    row = {"query_id": "q", "doc_id": "a", "score": 1.5, "rank": 1.0}
    pq.write_table(pa.Table.from_pylist([row | odd]), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet, row 0: "):
        read_labels(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("lines", "texts"),
    [
        (["qid\tquery", "7\twhy"], {"7": "why"}),
        (["query\tqid", "why\t7"], {"7": "why"}),
        (["7\twhy", "8\t1984"], {"7": "why", "8": "1984"}),
        (["why", "how"], {"x-1": "why", "x-2": "how"}),
        (["why is it\t7", "how is it\t8"], None),
    ],
)
def test_queries_are_read_by_their_header(tmp_path, lines, texts):
    path = write(tmp_path / "x.tsv", lines)
    if texts is None:
        with pytest.raises(UserError, match="another order"):
            load_collection(f"queries:{path}", split="train")
    else:
        _, queries, _ = load_collection(f"queries:{path}", split="train")
        assert dict(zip(queries.ids, queries.texts)) == texts


def test_texts_before_their_ids_are_refused(tmp_path):
    spec = marco(tmp_path, ["a bridge of steel\t1", "rails cross it\t2"])
    with pytest.raises(UserError, match=r"collection\.tsv:1: '1' is a number"):
        load_collection(spec, split="dev")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("x.csv", 'id,text\n1,"a\n2,b\n3,c\n', "quote that is not closed"),
        ("x.csv", 'id,text\n1,"a" b\n', "in the midst of a field"),
        ("x.jsonl", '{"id": "1", "text": "a"}\n{"text": "b"}\n', r"x\.jsonl:2: no id"),
        ("x.jsonl", '{"id": "1", "text": "a", "title": ["t"]}\n', "title is a list"),
    ],
)
def test_documents_that_would_be_read_as_others_are_refused(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    scheme = "csv" if name.endswith("csv") else "jsonl"
    with pytest.raises(UserError, match=told):
        load_docs(f"{scheme}:{tmp_path / name}")


def test_rows_of_other_fields_are_read_by_their_own(tmp_path):
    rows = [{"id": "1", "text": "a"}, {"_id": "2", "title": "T", "text": "b"}]
    path = write(tmp_path / "x.jsonl", map(json.dumps, rows))
    docs = load_docs(f"jsonl:{path}")
    assert (list(docs.ids), list(docs.titles)) == (["1", "2"], ["", "T"])
    # pandas' index is no title.
    docs = load_docs(f"csv:{write(tmp_path / 'x.csv', [',id,text', '0,7,a'])}")
    assert docs.titles is None or list(docs.titles) == [""]


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ({"answers": {"text": ["b"]}}, ["b"]),
        ({"answers": None, "answer": "z"}, ["z"]),
        ({"answers": {"value": "b", "aliases": "cd"}}, None),
        ({"answers": {"value": "b", "aliases": None}}, None),
        ({"answers": {"spans": ["b"]}}, None),
        ({"answers": "['b', 'c']"}, None),
    ],
)
def test_answers_are_read_whole_or_refused(tmp_path, answers, found):
    line = json.dumps({"id": 1, "question": "a", **answers})
    spec = f"jsonl:{write(tmp_path / 'x.jsonl', [line])}"
    if found is None:
        with pytest.raises(UserError, match=r"x\.jsonl:1: the answers"):
            load_collection(spec, split="train")
    else:
        _, queries, _ = load_collection(spec, split="train")
        assert queries.answers[0] == found


def test_empty_lists_of_scores_are_no_scores(tmp_path):
    path = tmp_path / "x.jsonl"
    record = {"query": "q", "pos": ["a"], "neg": ["b"]}
    expected = None
    for more in ({}, {"pos_scores": [], "neg_scores": []}, {"pos_scores": None}):
        path.write_text(json.dumps(record | more) + "\n")
        found = read_labels(path).labels
        assert found.scores[0].tolist() == [1.0, 0.0]
        expected = expected or found.lists()
        assert found.lists() == expected


def test_a_query_on_two_lines_is_named_with_both(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"query": "q", "pos": ["a"], "neg": []}\n' * 2)
    with pytest.raises(UserError, match=r"x\.jsonl:2: .*'q'.* x\.jsonl:1|jsonl:1"):
        read_labels(path)


def test_bad_lines_of_labels_may_be_left_out(tmp_path):
    path = tmp_path / "x.jsonl"
    good = [json.dumps([f"q{n}", ["a", 1.0], ["b", 0.5]]) for n in range(5)]
    path.write_text("\n".join([*good, '["q9", ["a", null], ["b", 1.0]]', "{", ""]))
    with pytest.raises(UserError, match=r"x\.jsonl:6"):
        read_labels(path, "colbert")
    with tolerated(tmp_path / "rejects.jsonl", most=0.5):
        assert len(read_labels(path, "colbert").labels) == 5
    lines = (tmp_path / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == [6, 7]


def test_docs_that_the_collection_lacks_are_counted(tmp_path):
    path = write(tmp_path / "x.jsonl", [json.dumps(["q", ["a", 2.0], ["z", 1.0]])])
    found = read_labels(path, collection=Collection(["a"], ["t"]), unknown="drop")
    assert any("1 of 2 labelled docs" in notice for notice in found.notices)
    with pytest.raises(UserError, match="none of its 2 docs"):
        read_labels(path, collection=Collection(["c"], ["t"]), unknown="drop")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["q", "1", "2.5", "\t", " ", "nan", "Q0", "rank", "\n"]))
)
def test_any_table_is_read_or_refused(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("any") / "x.tsv"
    path.write_text("".join(parts))
    readers = (
        lambda p: Run.read(p).lists(),
        lambda p: {
            query: found.of(query) for found in [Qrels.read(p)] for query in found
        },
        lambda p: read_labels(p, "gpl").labels.lists(),
    )
    for read in readers:
        first, again = outcome(read, path), outcome(read, path)
        assert first == again
        # What is read has finite numbers only; what is refused says in which file.
        if first.startswith("{"):
            assert not re.search(r"(?<!['\w])nan(?!['\w])", first)
        else:
            assert str(path) in first


def outcome(read, path) -> str:
    """What is read, as text, or why it is not."""
    try:
        return repr(read(path))
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("form", ["run", "parquet"])
def test_labels_whose_scores_rise_with_their_ranks_are_noticed(tmp_path, form):
    """As of a search by distances, where the best document has the least."""

    def read(scores):
        rows = [
            {"query_id": "q", "doc_id": f"d{n}", "rank": n, "score": score}
            for n, score in enumerate(scores, 1)
        ]
        if form == "parquet":
            path = tmp_path / "x.parquet"
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            lines = [f"q Q0 {r['doc_id']} {r['rank']} {r['score']} t" for r in rows]
            path = write(tmp_path / "x.run", lines)
        return read_labels(path, form).notices

    (notice,) = read([0.1, 0.5, 0.9])
    assert "score rises with the rank" in notice
    for scores in ([0.9, 0.5, 0.1], [0.1, 0.5, 0.4], [0.5, 0.5, 0.5], [0.1, 0.5]):
        assert read(scores) == ()


def test_an_order_against_its_scores_is_refused(tmp_path):
    def hits(*scores):
        return {
            "query": "why",
            "hits": [
                {"docid": f"d{n}", "content": f"text {n}", "score": score}
                for n, score in enumerate(scores)
            ],
        }

    path = write(tmp_path / "x.jsonl", [json.dumps(hits(1.0, 2.0, 3.0))])
    with pytest.raises(UserError, match=r"x\.jsonl:1: .* opposite order to its scores"):
        read_labels(path)
    # What a teacher put in another order than the first stage's is what is learnt.
    path = write(tmp_path / "x.jsonl", [json.dumps(hits(1.0, 3.0, 2.0))])
    (docs,) = read_labels(path).labels.lists().values()
    assert [doc for doc, _ in docs] == ["d0", "d1", "d2"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("x.run", "q Q0 {} 1 2.0 t"),
        ("x.tsv", "{}\td1\td2\t0.5"),
        ("x.tsv", "q\t{}\td2\t0.5"),
        ("x.tsv", "q\td1\t{}\t0.5"),
    ],
)
def test_ids_that_no_run_can_hold_are_no_labels(tmp_path, name, line):
    bad = ["d\0", "d\u2028"] if name.endswith("tsv") else ["d\0"]
    for odd in [*bad, *([""] if name.endswith("tsv") else [])]:
        with pytest.raises(UserError, match=rf"{name}:1: an id is "):
            read_labels(write(tmp_path / name, [line.format(odd)]))


def test_a_table_of_labels_is_known_by_its_header(tmp_path):
    lines = ["docid\tqid\tscore\trank", "d1\tq\t3.5\t1", "d2\tq\t2.5\t2"]
    found = read_labels(write(tmp_path / "x.tsv", lines))
    assert found.labels.lists() == {"q": [("d1", 1.0), ("d2", 2.0)]}
    lines = ["neg\tpos\tqid\tmargin", "d2\td1\tq\t3.5"]
    found = read_labels(write(tmp_path / "y.tsv", lines))
    assert found.labels.lists() == {"q": [("d1", 0.0), ("d2", -3.5)]}


def test_lone_surrogates_of_labels_become_a_replacement_character(tmp_path):
    line = '{"query": "why \\ud800", "docs": ["a\\udfff", "b"], "labels": [1, 0]}'
    found = read_labels(write(tmp_path / "x.jsonl", [line]))
    assert list(found.queries.texts) == ["why \ufffd"]
    assert list(found.collection.texts) == ["a\ufffd", "b"]
