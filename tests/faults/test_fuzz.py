"""Damaged and hostile files: each parser reads them or says what is wrong, twice alike.

Every example takes a sound file apart: bytes are flipped, cut, doubled and exchanged,
words that mean something to one parser or another are put in, and a value of a JSON
document is replaced. A parser may refuse it with a ``UserError`` of two lines; any
other exception, a second of processor time, or another result at the second reading
fails. ``FUZZ=20`` makes twenty times as many examples.
"""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from distill_jax.collections.collection import Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.collections.schemes import load, load_docs
from distill_jax.io.errors import UserError
from distill_jax.io.reading import read_json
from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.readers import read_labels
from distill_jax.recipe.embedding import VectorFile
from distill_jax.runs.run import Run
from distill_jax.synthesis.replies import read as read_query
from distill_jax.teaching.chat import read as read_chat
from distill_jax.teaching.limits import retry_after
from distill_jax.teaching.parsing import parse_ranking, parse_scores
from distill_jax.text.spiece import read_model
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.weights.safe import read_header
from tests.faults.test_tables import GOOD, ODD, places, replaced

pytestmark = pytest.mark.long

MANY = int(os.environ.get("FUZZ", "1"))
WORDS = [
    b"\0", b"\r", b"\n", b"\r\n", b"\t", b" ", b"\xef\xbb\xbf", b"\xff",
    b"\xed\xa0\x80",
    b"\xe2\x80\xa8", b"\xc2\x85", b"\x0b", b'"', b"\\", b"\\ud800", b"%FF", b"%zz",
    b"{", b"}", b"[", b"]", b"[[", b":", b",", b">", b"=", b"<think>", b"</think>",
    b"nan", b"inf", b"-inf", b"1e999", b"1_0", b"-0", b"-1", b"0", b"1.5", b"9" * 400,
    b"null", b"true", b"{}", b"[]", b"qid", b"score", b"query-id", b"title", b"Q0",
    b";ids=percent-encoded", "\u0661".encode(), "\uff12".encode(), "e\u0301".encode(),
]  # fmt: skip


def edits(data: bytes, draw: Any) -> bytes:
    """``data`` after one to four edits."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 12))
        kind = draw(st.integers(0, 6))
        if kind == 0:
            data = data[:at] + draw(st.sampled_from(WORDS)) + data[at:]
        elif kind == 1:
            data = data[:at] + draw(st.sampled_from(WORDS)) + data[at + size :]
        elif kind == 2:
            data = data[:at] + data[at + size :]
        elif kind == 3:
            data = data[:at] + data[at : at + 4 * size] + data[at:]
        elif kind == 4:
            data = data[:at]
        elif kind == 5:
            lines = data.split(b"\n")
            draw_line = st.integers(0, len(lines) - 1)
            i, j = draw(draw_line), draw(draw_line)
            lines[i], lines[j] = lines[j], lines[i]
            data = b"\n".join(lines)
        else:
            data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    return data


def records(data: bytes) -> list[Any]:
    """The values of JSON lines, or of one document; none of another file."""
    for parts in (data.splitlines(), [data]):
        try:
            return [json.loads(part) for part in parts]
        except ValueError:
            continue
    return []


@st.composite
def damaged(draw: Any, sound: bytes) -> bytes:
    """A file like a sound one; of JSON lines often one whose values are odd."""
    if (lines := records(sound)) and draw(st.booleans()):
        at = draw(st.integers(0, len(lines) - 1))
        where = draw(st.sampled_from([(), *places(lines[at])]))
        lines[at] = replaced(lines[at], where, draw(st.sampled_from(ODD)))
        data = b"\n".join(json.dumps(line).encode() for line in lines)
        return data if draw(st.booleans()) else edits(data, draw)
    data = edits(sound, draw)
    return gzip.compress(data) if draw(st.integers(0, 15)) == 0 else data


def outcome(read: Callable[[Any], Any], given_: Any) -> str:
    """What is read, as text, or the two lines that say why it is not."""
    try:
        return repr(read(given_))
    except UserError as error:
        said = str(error)
        assert 1 <= len(said.splitlines()) <= 2, said
        return said


def check(read: Callable[[Any], Any], given_: Any) -> None:
    found, seconds = [], []
    for _ in range(2):
        began = time.thread_time()
        found.append(outcome(read, given_))
        seconds.append(time.thread_time() - began)
    # The quicker of two: other threads, and what is collected meanwhile, cost too.
    assert min(seconds) < 1.0
    assert found[0] == found[1]


def fuzz(count: int):
    return settings(
        max_examples=count * MANY,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        # The same examples each time, but for a longer run, which looks for others.
        derandomize="FUZZ" not in os.environ,
    )


@st.composite
def edited(draw: Any, sound: bytes) -> bytes:
    """Bytes like sound ones."""
    return edits(sound, draw)


def damage_each(file: Path, how: Any, holds: Callable[[], None], count: int) -> None:
    """Calls ``holds`` for a file in many states, and puts it back."""
    sound = file.read_bytes()

    @fuzz(count)
    @given(how(sound))
    def tried(data):
        file.write_bytes(data)
        holds()

    tried()
    file.write_bytes(sound)


def jsonl(*records: Any) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def of_labels(form: str | None, kind: Any = None) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        found = read_labels(path, form, kind=kind)
        texts = found.collection and list(found.collection.texts)
        assert np.isfinite(found.labels.scores[found.labels.where]).all()
        return found.labels.lists(), texts, found.notices

    return read


def of_questions(scheme: str) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        docs, queries, _ = load(f"{scheme}:{path}", "train")
        return list(queries.ids), list(queries.texts), queries.answers, docs.notices

    return read


def of_docs(scheme: str, up: int = 0) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        docs = load_docs(f"{scheme}:{path if not up else path.parents[up - 1]}")
        return list(docs.ids), list(docs.texts), list(docs.titles or ()), docs.notices

    return read


def qrels(path: Path) -> Any:
    return Qrels.read(path).as_dict()


def run(path: Path) -> Any:
    found = Run.read(path)
    assert np.isfinite(found.scores[found.where]).all()
    return found.lists()


QUESTIONS = jsonl(
    {"_id": "q1", "question": "why", "answers": ["a", "b"]},
    {"id": 2, "text": "how", "answer": {"value": "c", "aliases": ["d"]}},
)
DOCS = jsonl(
    {"_id": "d1", "title": "T", "text": "one two"},
    {"_id": 2, "text": "three", "metadata": {"x": [1]}},
)
TABLES: dict[str, tuple[str, bytes, Callable[[Path], Any]]] = {
    "beir qrels": (
        "x.tsv",
        b"query-id\tcorpus-id\tscore\nq1\td1\t1\nq 2\td2\t0\n",
        qrels,
    ),
    "trec qrels": ("x.txt", b"q1 0 d1 1\nq1 0 d2 -1\nq2 0 d1 2\n", qrels),
    "run": ("x.run", b"q1 Q0 d1 1 2.5 t\nq1 Q0 d2 2 1.5 t\nq2 Q0 d1 1 3 t\n", run),
    "encoded run": (
        "x.run",
        b"q%201 Q0 d%251 1 2.5 t;ids=percent-encoded\n"
        b"q%201 Q0 d2 2 1.5 t;ids=percent-encoded\n",
        run,
    ),
    "marco run": ("x.tsv", b"q1\td1\t1\nq1\td2\t2\nq2\td1\t1\n", run),
    "run with a header": ("x.tsv", b"qid\tpid\tscore\nq1\td1\t1.5\nq2\td1\t1\n", run),
    "run as labels": (
        "x.run",
        b"q1 Q0 d1 1 2.5 t\nq1 Q0 d2 2 1.5 t\n",
        of_labels("run", "score"),
    ),
    "gpl": ("x.tsv", b"q1\td1\td2\t1.5\nq1\td3\td1\t-2\n", of_labels("gpl")),
    "questions": ("x.jsonl", QUESTIONS, of_questions("jsonl")),
    "queries": ("x.tsv", b"q1\twhy\nq2\thow\n", of_questions("queries")),
    "lines": ("x.txt", b"why\nhow is it\n", of_questions("queries")),
    "csv": ("x.csv", b'id,title,text\n1,T,"a, b"\n2,U,c\n', of_docs("csv")),
    "tsv": ("x.tsv", b"id\ttext\n1\ta b\n2\tc\n", of_docs("csv")),
    "docs": ("x.jsonl", DOCS, of_docs("jsonl")),
    "corpus": ("b/corpus.jsonl", DOCS, of_docs("beir", 1)),
    "collection": (
        "m/collection.tsv",
        b"1\tT\tone two\n2\tU\tthree four\n",
        of_docs("msmarco", 1),
    ),
    "markdown": (
        "f/x.md",
        b"# T\n\none\n\n## U\n```\na\n```\ntwo\n",
        of_docs("files", 1),
    ),
    "page": (
        "f/x.html",
        b"<html><title>T</title><h1>A</h1><p>one<script>x</script><p>&amp;two</html>",
        of_docs("files", 1),
    ),
    "json": ("x.json", b'{"a": [1, 2.5, "x", null], "b": {"c": true}}', read_json),
    **{
        f"labels {form}": (
            "x.jsonl",
            jsonl(
                record,
                json.loads(
                    json.dumps(record).replace("why", "how").replace("q1", "q2")
                ),
            ),
            of_labels(None),
        )
        for form, record in GOOD.items()
    },
}


@pytest.mark.parametrize("name", TABLES)
def test_a_damaged_table_is_read_or_refused(name, tmp_path_factory):
    file, sound, read = TABLES[name]
    path = tmp_path_factory.mktemp("fuzz") / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(sound)
    read(path)  # the sound one is

    @fuzz(250)
    @given(damaged(sound))
    def holds(data):
        path.write_bytes(data)
        check(read, path)

    holds()


def shard(folder: Path) -> Path:
    labels = TeacherLabels.from_lists(
        ["q1", "q2"], [[("d1", 1.0), ("d2", 0.5)], [("d1", 2.0)]]
    )
    labels.write(folder)
    return next(folder.glob("*.parquet"))


def parquet(path: Path) -> None:
    rows = [
        {"query_id": "q1", "document_ids": ["a", "b"], "scores": [0.5, 0.25]},
        {"query_id": "q2", "document_ids": ["a"], "scores": [1.0]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def spiece() -> bytes:
    texts = ["the river flows below the old bridge", "true false yes no"] * 40
    return Tokenizer.train_unigram(texts, 60)._spiece or b""


def wordpiece(folder: Path) -> None:
    texts = ["the river flows below the old bridge"] * 20
    Tokenizer.train_wordpiece(texts, 80).save(folder)


def tokens(path: Path) -> Any:
    found = Tokenizer.load(path)
    return found.encode("the old bridge, Flows"), found.frame, found.vocab_size


def test_a_damaged_binary_file_is_read_or_refused(tmp_path):
    path = shard(tmp_path / "labels")
    parquet(tmp_path / "x.parquet")
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5/spiece.model").write_bytes(spiece())
    save_file({"a": np.zeros((2, 3), np.float32)}, str(tmp_path / "x.safetensors"))
    readers = {
        path: lambda p: TeacherLabels.read(p.parent).lists(),
        tmp_path / "x.parquet": of_labels("parquet"),
        tmp_path / "t5/spiece.model": lambda p: tokens(p) and read_model(p),
        tmp_path / "x.safetensors": read_header,
    }
    for file, read in readers.items():
        read(file)
        damage_each(file, edited, lambda file=file, read=read: check(read, file), 250)


@pytest.mark.parametrize("name", ["shard", "labels", "vectors", "docs"])
def test_each_byte_of_a_parquet_file_may_be_damaged(name, tmp_path):
    path = tmp_path / "x.parquet"
    read: Callable[[Path], Any] = of_labels("parquet")
    if name == "shard":
        path = shard(tmp_path / "labels")
        read = lambda path: TeacherLabels.read(path.parent).lists()  # noqa: E731
    elif name == "labels":
        parquet(path)
    elif name == "vectors":
        rows = [{"id": f"d{i}", "embedding": [1.0, float(i)]} for i in range(3)]
        pq.write_table(pa.Table.from_pylist(rows), path)
        texts = Queries([f"document:d{i}" for i in range(3)], ["a", "b", "c"])
        read = lambda path: VectorFile(path=str(path))(  # noqa: E731
            SimpleNamespace(queries=texts, workspace=None)
        )
    else:
        pq.write_table(
            pa.Table.from_pylist(
                [{"id": "d1", "text": "one"}, {"id": "d2", "text": ""}]
            ),
            path,
        )
        read = of_docs("parquet")
    sound, whole, refused = path.read_bytes(), outcome(read, path), 0
    for at in range(len(sound)):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 0x80]) + sound[at + 1 :])
        refused += outcome(read, path) != whole
    assert refused > 100


@pytest.mark.parametrize("base", ["bert", "t5"])
def test_a_damaged_file_of_a_tokenizer_is_read_or_refused(base, tmp_path):
    folder = tmp_path / "tokenizer"
    if base == "bert":
        wordpiece(folder)
    else:
        texts = ["the river flows below the old bridge", "true false yes no"] * 40
        Tokenizer.train_unigram(texts, 60).save(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    record = json.loads((folder / "tokenizer_config.json").read_text())
    record["added_tokens_decoder"] = {
        "0": {"content": "[PAD]" if base == "bert" else "<pad>", "special": True}
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(record))
    tokens(folder)
    hidden = folder / "tokenizer.json"

    def holds():
        check(tokens, folder)
        aside = hidden.rename(tmp_path / "aside")
        try:
            check(tokens, folder)
        finally:
            aside.rename(hidden)

    for file in sorted(folder.iterdir()):
        damage_each(file, damaged, holds, 60)


REPLIES = [
    "[2] > [1] > [3]",
    "<think>[1] > [2]</think>The order:\n[3] > [1] > [2]",
    "1. [2]\n2. [1]\n3. [3]",
    "Document2, Document1, Document3",
    "[0.5, 0.25, 1]",
    "Document 1: 0.5\nDocument 2: 0.1\nDocument 3: 0.9",
    "<|channel|>analysis<|message|>hm<|channel|>final<|message|>[2, 1, 3]",
    '{"order": ["2", "1", "3"]}',
]
BODY = {
    "choices": [
        {
            "message": {"role": "assistant", "content": "[2] > [1]"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 5},
    "error": {"message": "no", "param": "seed"},
}


@fuzz(1500)
@given(st.data())
def test_a_damaged_reply_is_read_or_refused(data):
    sound = data.draw(st.sampled_from(REPLIES)).encode()
    reply = edits(sound, data.draw).decode("utf-8", "replace")
    for read in (
        lambda text: parse_ranking(text, 3),
        lambda text: parse_ranking(text, 3, cut=True),
        lambda text: parse_scores(text, 3),
        read_query,
        lambda text: retry_after(text, 0.0),
    ):
        check(read, reply)
    found = parse_ranking(reply, 3)
    assert found.order is None or sorted(found.order) == [0, 1, 2]


@fuzz(400)
@given(st.data())
def test_a_body_of_another_shape_is_an_outcome(data):
    where = data.draw(st.sampled_from([(), *places(BODY)]))
    body = replaced(BODY, where, data.draw(st.sampled_from(ODD)))
    check(read_chat, body)
    check(read_chat, json.loads(json.dumps(body)))
