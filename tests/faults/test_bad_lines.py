"""Lines that cannot be read stop a job, or are left out; nothing ever shifts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax.collections import builder
from distill_jax.collections.qrels import Qrels
from distill_jax.collections.schemes import load_collection
from distill_jax.io import reading
from distill_jax.io.bad_lines import parsed_jsonl, tolerated
from distill_jax.io.errors import UserError
from distill_jax.main import main
from distill_jax.runs.run import Run

NUL, BOM = "\0", "\ufeff"
WORD = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1)
LINES = st.lists(WORD, min_size=1, max_size=12, unique=True)

# What becomes of the JSON of a document.
DAMAGE = {
    "cut": lambda line: line[: len(line) // 2],
    "no text": lambda line: line.replace(b'"text"', b'"txt"'),
    "no id": lambda line: line.replace(b'"_id"', b'"id"'),
    "nul": lambda line: line[:-3] + b"\0" + line[-3:],
    "not utf-8": lambda line: line[:-3] + b"\xff" + line[-3:],
    "a list": lambda line: b"[" + line + b"]",
    "two objects": lambda line: line + line,
    "text is a number": lambda line: b'{"_id": "x", "text": 7}',
    "an id with a tab": lambda line: b'{"_id": "a\\tb", "text": "x"}',
}


def beir(folder, lines: list[bytes], ids, end: bytes = b"\n") -> str:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_bytes(b"".join(x + end for x in lines))
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "one"}\n')
    judged = "".join(f"q1\t{doc}\t{n % 2}\n" for n, doc in enumerate(ids))
    head = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels/test.tsv").write_text(head + judged, "utf-8")
    return f"beir:{folder}"


def docs(words: list[str]) -> list[bytes]:
    return [
        json.dumps({"_id": f"d{n}", "title": "", "text": word}).encode()
        for n, word in enumerate(words)
    ]


def rejects(folder) -> list[dict]:
    lines = (folder / "rejects.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(params=["lists", "mapped"])
def kept(request, monkeypatch, tmp_path):
    monkeypatch.setenv("DISTILL_JAX_CACHE", str(tmp_path / "cache"))
    if request.param == "mapped":
        monkeypatch.setattr(builder, "LARGE_BYTES", 0)


@settings(max_examples=60, deadline=None)
@given(LINES, st.data())
def test_bad_documents_are_named_or_left_out(tmp_path_factory, words, data):
    """Any damage to any lines: the rest keeps its ids, and each loss its line."""
    folder = tmp_path_factory.mktemp("damaged")
    lines, rows = docs(words), range(len(words))
    bad = data.draw(st.sets(st.sampled_from(rows), max_size=len(words) - 1))
    for row in bad:
        lines[row] = data.draw(st.sampled_from(list(DAMAGE.values())))(lines[row])
    good = {f"d{row}": words[row] for row in rows if row not in bad}
    spec = beir(folder, lines, good, data.draw(st.sampled_from([b"\n", b"\r\n"])))
    if bad:
        with pytest.raises(UserError) as caught:
            load_collection(spec)
        assert f"corpus.jsonl:{min(bad) + 1}:" in caught.value.what
        assert len(str(caught.value).splitlines()) <= 2
    with tolerated(folder / "rejects.jsonl", most=1.0):
        collection, _, qrels = load_collection(spec)
        load_collection(spec)  # Reading it again counts nothing twice.
    assert dict(zip(collection.ids, collection.texts)) == good
    assert list(qrels.of("q1")) == list(good)
    told = rejects(folder) if bad else []
    assert [reject["line"] - 1 for reject in told] == sorted(bad)
    for reject in told:
        line = lines[reject["line"] - 1]
        assert reject["text"] == line.decode("utf-8", "backslashreplace")
        assert f"corpus.jsonl:{reject['line']}" in reject["reason"]
    said = f"{len(bad)} of {len(words)} lines cannot be read"
    assert any(said in notice for notice in collection.notices) == bool(bad)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=12) | st.sampled_from([b"{}", b'{"a":[1]}', b""])))
def test_any_bytes_at_all_are_read_or_rejected_line_by_line(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("bytes")
    path = folder / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    expected, bad = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        try:
            text = line.removesuffix(b"\r").decode()
            if text and not text.isspace():
                value = json.loads(text)
                (expected if isinstance(value, dict) else bad).append(number)
        except ValueError:
            bad.append(number)
    with tolerated(folder / "rejects.jsonl", most=1.0) as tolerance:
        found = list(parsed_jsonl(path, lambda number, record: number))
    assert found == expected
    assert list(tolerance.files[str(path)][1]) == bad


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("2\tsecond\twith a tab", ":2: 3 columns, but 2 on line 1"),
        ("2 second", ":2: 1 columns"),
        ("2\ta\tb\tc", ":2: 4 columns"),
        ("\tno id", ":2: an empty id"),
        (f"2\tse{NUL}cond", ":2:5: a NUL"),
    ],
)
def test_a_stray_tab_never_makes_a_title(tmp_path, kept, line, told):
    path = tmp_path / "collection.tsv"
    path.write_text(f"1\tfirst\n{line}\n3\tthird\n")
    (tmp_path / "queries.test.tsv").write_text("q1\tone\n")
    (tmp_path / "qrels.test.tsv").write_text("q1\t0\t3\t1\n")
    with pytest.raises(UserError) as caught:
        load_collection(f"msmarco:{tmp_path}")
    assert f"collection.tsv{told}" in caught.value.what
    with tolerated(tmp_path / "rejects.jsonl", most=0.5):
        collection, _, qrels = load_collection(f"msmarco:{tmp_path}")
    assert dict(zip(collection.ids, collection.texts)) == {"1": "first", "3": "third"}
    assert collection.titles is None
    assert qrels.of("q1") == {"3": 1}
    # What was read without its bad line is not taken for the whole file later.
    with pytest.raises(UserError, match=r"collection\.tsv:2"):
        load_collection(f"msmarco:{tmp_path}")


@pytest.mark.parametrize(
    ("head", "line", "told"),
    [
        ("query-id\tcorpus-id\tscore\n", "q1\td1\t1\t2", ":3: 4 columns, but 3"),
        ("query-id\tcorpus-id\tscore\n", "q1\td1", ":3: 2 columns"),
        ("query-id\tcorpus-id\tscore\n", f"q1\td{NUL}1\t1", ":3: a NUL"),
        ("query-id\tcorpus-id\tscore\n", "q1\td1\tx", ":3: grade 'x'"),
        ("q0 0 d0 1\n", "q1 d1 1", ":3: 3 columns, but 4"),
        (f"{BOM}query-id\tcorpus-id\tscore\r\n", "q1\t\t1", ":3: an empty id"),
    ],
)
def test_bad_judgements(tmp_path, head, line, told):
    path = tmp_path / "qrels.tsv"
    good = "q1 0 d{} 1" if " 0 " in head else "q1\td{}\t1"
    text = "\n".join([good.format(8), line, good.format(9), ""])
    path.write_bytes((head + text).encode())
    with pytest.raises(UserError) as caught:
        Qrels.read(path)
    assert f"qrels.tsv{told}" in caught.value.what
    with tolerated(tmp_path / "rejects.jsonl", most=0.5):
        assert Qrels.read(path).of("q1") == {"d8": 1, "d9": 1}


def test_a_first_line_with_numbers_is_no_header(tmp_path):
    path = tmp_path / "qrels.tsv"
    path.write_text("q1\td1\tx\nq1\td2\t1\n")
    with pytest.raises(UserError, match=r"qrels\.tsv:1: grade 'x'"):
        Qrels.read(path)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("q1 Q0 d2 2", ":2: 4 columns"),
        ("q1 Q0 d2", ":2: 3 columns, but 6 on line 1"),
        ("q1 Q0 d2 2 much x", ":2: 'much' is not a number"),
        (f"q1 Q0 d{NUL}2 2 0.5 x", ":2: a NUL"),
        ("q1 Q0 d 2 2 0.5 x", ":2: 7 columns"),
    ],
)
def test_bad_lines_of_a_run(tmp_path, line, told):
    path = tmp_path / "a.trec"
    path.write_text(f"q1 Q0 d1 1 3.5 x\n{line}\nq1 Q0 d3 3 0.25 x\n")
    with pytest.raises(UserError) as caught:
        Run.read(path)
    assert f"a.trec{told}" in caught.value.what
    with tolerated(tmp_path / "rejects.jsonl", most=0.5):
        assert Run.read(path).lists() == {"q1": [("d1", 3.5), ("d3", 0.25)]}


def test_a_line_of_10_mb_is_a_document_and_an_endless_one_is_not(
    tmp_path, kept, monkeypatch
):
    long = "word " * 2_000_000
    spec = beir(tmp_path / "set", docs(["a", long, "c"]), ["d0", "d2"])
    collection = load_collection(spec)[0]
    assert list(collection.texts) == ["a", long, "c"]
    monkeypatch.setattr(reading, "LONGEST_LINE", 1 << 20)
    monkeypatch.setenv("DISTILL_JAX_CACHE", str(tmp_path / "another"))
    with pytest.raises(UserError, match=r"corpus\.jsonl:2: a line of more than 1 MiB"):
        load_collection(spec)
    with tolerated(tmp_path / "rejects.jsonl", most=0.5):
        collection = load_collection(spec)[0]
    assert dict(zip(collection.ids, collection.texts)) == {"d0": "a", "d2": "c"}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """200 documents, one of whose lines is cut."""
    folder = tmp_path_factory.mktemp("cli") / "a set"
    lines = docs([f"word{n} stone river" for n in range(200)])
    lines[41] = lines[41][:20]
    return beir(folder, lines, ["d1", "d7"])


def mine(spec, out, *flags) -> int:
    given = {"COLLECTION": spec, "MODEL_DIR": out, "SPLIT": "test", "TOP_K": 5}
    words = [f"--gin.{name}={value}" for name, value in given.items()]
    return main(["--gin_file=mine.gin", *words, *flags])


def test_the_flag_from_end_to_end(damaged, tmp_path, capsys):
    assert mine(damaged, tmp_path) == 2
    err = capsys.readouterr().err
    assert "corpus.jsonl:42:" in err
    assert len(err.strip().splitlines()) <= 2
    assert not (tmp_path / "rejects.jsonl").exists()

    assert mine(damaged, tmp_path, "--on-bad-line=skip") == 0
    assert "1 of 200 lines cannot be read" in capsys.readouterr().out
    (reject,) = rejects(tmp_path)
    assert reject["line"] == 42
    notices = json.loads((tmp_path / "report.json").read_text())["notices"]
    assert any("1 of 200 lines cannot be read" in notice for notice in notices)

    assert mine(damaged, tmp_path, "--on-bad-line=skip", "--bad-line-rate=0.001") == 2
    err = capsys.readouterr().err
    assert "1 of 200 lines cannot be read, more than 0.001" in err
    assert len(err.strip().splitlines()) <= 2
    # The mode ends with the job.
    assert mine(damaged, tmp_path) == 2


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--on-bad-line=skp", '(did you mean "skip"?)'),
        ("--bad-line-rate=5", "is not between 0 and 1"),
        ("--bad-line-rate=x", "is not between 0 and 1"),
        ("--on-bad-lines=skip", '(did you mean "--on-bad-line"?)'),
    ],
)
def test_wrong_flags(damaged, tmp_path, capsys, flag, told):
    assert mine(damaged, tmp_path, flag) == 2
    assert told in capsys.readouterr().err
