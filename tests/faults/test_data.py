"""Data that does not fit together, is damaged, leaks or is stale."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax import weights
from distill_jax.collections import builder
from distill_jax.collections.schemes import load_collection
from distill_jax.inputs.streams import SeqioStream
from distill_jax.io.bad_lines import tolerated
from distill_jax.io.errors import UserError
from distill_jax.io.reading import read_lines
from distill_jax.lists.lists import FIELDS, Lists
from distill_jax.main import main
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.workspace.context import open_workspace
from tests.export.forms import bert_tokenizer, student

DOCS = {f"d{n}": f"word{n} stone" for n in range(8)}


def beir(folder: Path, queries: dict[str, str], **splits: dict[str, str]) -> str:
    """A folder; a split is {query id: its relevant document}."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, texts in (("corpus", DOCS), ("queries", queries)):
        lines = [json.dumps({"_id": i, "text": t}) + "\n" for i, t in texts.items()]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    for name, judged in splits.items():
        lines = [f"{query}\t{doc}\t1\n" for query, doc in judged.items()]
        text = "query-id\tcorpus-id\tscore\n" + "".join(lines)
        (folder / f"qrels/{name}.tsv").write_text(text)
    return f"beir:{folder}"


# A run and judgements that do not name the same queries and documents


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> tuple[str, Path]:
    """Three judged queries; a run has two of them and a stranger."""
    folder = tmp_path_factory.mktemp("judged")
    queries = {f"q{n}": f"word{n}" for n in range(3)}
    spec = beir(folder, queries, test={f"q{n}": f"d{n}" for n in range(3)})
    path = folder / "found.trec"
    path.write_text("q0 Q0 d0 1 2 x\nq1 Q0 d5 1 2 x\nq1 Q0 d1 2 1 x\nz Q0 d1 1 1 x\n")
    return spec, path


@pytest.mark.parametrize(
    ("count", "mean", "fate"),
    [(True, 1.5 / 3, "count 0"), (False, 1.5 / 2, "are left out")],
)
def test_missing_queries_are_counted_and_a_flag_chooses(
    judged, tmp_path, count, mean, fate
):
    spec, path = judged
    flags = {"COLLECTION": spec, "RUN": path, "MODEL_DIR": tmp_path}
    argv = [f"--gin.{k}={v}" for k, v in {**flags, "COUNT_MISSING": count}.items()]
    assert main(["--gin_file=evaluate.gin", *argv]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["measures"]["found"]["RR@10"] == pytest.approx(mean)
    said = "\n".join(report["notices"])
    assert (
        f"found has no ranking of 1 of 3 queries, e.g. 'q2': they {fate}" in said
        or (
            f"found has no ranking of 1 of 3 queries, e.g. 'q2': they are {fate}"
            in said
        )
    )
    assert "found ranks 1 queries that are not of this split, e.g. 'z'" in said


def test_a_run_of_unknown_documents_is_refused(judged, tmp_path, capsys):
    spec, _ = judged
    path = tmp_path / "other.trec"
    path.write_text("q0 Q0 d0 1 2 x\nq0 Q0 nope 2 1 x\n")
    flags = {"COLLECTION": spec, "RUN": path, "MODEL_DIR": tmp_path}
    argv = [f"--gin.{name}={value}" for name, value in flags.items()]
    assert main(["--gin_file=evaluate.gin", *argv]) == 2
    assert "other.trec: at least 1 documents are not in" in capsys.readouterr().err


# What is held out is not trained on


def test_training_queries_with_a_held_out_text_are_left_out(tmp_path, capsys):
    queries = {
        "a": "What boils?",
        "b": "something else",
        "c": "  what  BOILS? ",
        "d": "asked in dev",
        "e": "Asked in DEV",
    }
    spec = beir(
        tmp_path / "set",
        queries,
        train={"a": "d1", "b": "d2", "e": "d3"},
        dev={"d": "d3"},
        test={"c": "d1"},
    )
    workspace = open_workspace(tmp_path, spec)
    assert workspace.train is not None
    assert workspace.train.queries.ids == ["b"]
    assert workspace.train.qrels.query_ids == ("b",)
    told = "2 training queries have the text of a held-out one, e.g. 'What boils?'"
    assert told in capsys.readouterr().out
    assert any(told in notice for notice in workspace.collection.notices)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_held_out_query_in_training_ends_the_job(tmp_path, split):
    splits = {"train": {"a": "d1", "b": "d2"}, "test": {"c": "d1"}}
    splits[split] = {"b": "d2"}
    spec = beir(tmp_path / "set", {"a": "one", "b": "two", "c": "three"}, **splits)
    with pytest.raises(UserError, match=f"1 {split} queries are also in training.*'b'"):
        open_workspace(tmp_path, spec)


def test_the_training_split_itself_may_be_measured(tmp_path):
    spec = beir(tmp_path / "set", {"a": "one", "b": "two"}, train={"a": "d1"})
    workspace = open_workspace(tmp_path, spec, test_split="train", dev_share=0.0)
    # The other query was never judged: it is ranked, and not measured.
    assert workspace.judged.qrels.query_ids == ("a",)


def test_a_dev_split_that_is_tested_on_chooses_no_model(tmp_path):
    ids = [f"q{number}" for number in range(40)]
    spec = beir(
        tmp_path / "set",
        {query: f"question {query}" for query in ids},
        train=dict.fromkeys(ids[:30], "d1"),
        dev=dict.fromkeys(ids[30:], "d2"),
    )
    workspace = open_workspace(tmp_path, spec, test_split="dev", dev_share=0.3)
    train, dev, test = (workspace.train, workspace.dev, workspace.test)
    assert train is not None
    assert dev is not None
    assert test is not None
    assert test.queries.ids == ids[30:]
    assert dev.queries.ids
    assert not {*dev.queries.ids} & {*test.queries.ids}
    assert sorted([*train.queries.ids, *dev.queries.ids]) == sorted(ids[:30])


def test_nothing_but_leaks_is_no_training_set(tmp_path):
    spec = beir(
        tmp_path / "set",
        {"a": "one", "b": "One"},
        train={"a": "d1"},
        dev={"b": "d2"},
        test={"b": "d2"},
    )
    with pytest.raises(UserError, match="every training query has the text"):
        open_workspace(tmp_path, spec)


# The vocabulary that weights were made for


def test_another_tokenizer_of_the_same_size_is_refused(tmp_path):
    """It fits the table, and every id would mean another word."""
    made = student("bert_cross")
    made.save(tmp_path / "model")
    assert weights.load(str(tmp_path / "model")).digest == made.digest
    words = (tmp_path / "model/tokenizer/vocab.txt").read_text().split("\n")
    words[60], words[61] = words[61], words[60]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    other = Tokenizer.load(tmp_path / "vocab.txt")
    assert other.vocab_size == bert_tokenizer().vocab_size
    shutil.rmtree(tmp_path / "model/tokenizer")
    other.save(tmp_path / "model/tokenizer")
    with pytest.raises(UserError, match="tokenizer is another one than the weights'"):
        weights.load(str(tmp_path / "model"))


# Damaged records never make a shorter epoch


def lists(count: int = 6) -> Lists:
    rows = np.arange(count)
    return Lists(
        query_rows=rows.astype(np.int32),
        doc_rows=np.stack([rows, rows + 1], 1).astype(np.int32),
        labels=np.ones((count, 2), np.float32),
        labelled=np.ones(count, bool),
        first=np.zeros((count, 0), np.int32),
        second=np.zeros((count, 0), np.int32),
        probability=np.zeros((count, 0), np.float32),
    )


@pytest.mark.parametrize("damage", ["cut between records", "cut", "flipped", "emptied"])
def test_a_damaged_record_file_is_written_again(tmp_path, caplog, damage):
    pytest.importorskip("seqio")

    def epoch() -> list[int]:
        stream = SeqioStream().rows(lists(), tmp_path, 0, 0)
        return sorted(int(next(stream)["query_rows"]) for _ in range(6))

    assert epoch() == list(range(6))
    (path,) = tmp_path.glob("*.tfrecord")
    whole = path.read_bytes()
    damaged = {
        "cut between records": whole[: len(whole) // 6 * 4],
        "cut": whole[:-5],
        "flipped": whole[:40] + bytes([whole[40] ^ 1]) + whole[41:],
        "emptied": b"",
    }[damage]
    path.write_bytes(damaged)
    assert epoch() == list(range(6))
    assert path.read_bytes() == whole
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_damaged_lists_are_refused(tmp_path, name, damage):
    made = dataclasses.replace(
        lists(),
        first=np.zeros((6, 1), np.int32),
        second=np.ones((6, 1), np.int32),
        probability=np.full((6, 1), 0.5, np.float32),
    )
    made.save(tmp_path)
    assert Lists.load(tmp_path).digest == made.digest
    path = tmp_path / f"{name}.npy"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        flipped = data[:-4] + bytes([data[-4] ^ 1]) + data[-3:]
        path.write_bytes(data[:-1] if damage == "cut" else flipped)
    with pytest.raises(UserError, match=str(tmp_path)) as caught:
        Lists.load(tmp_path)
    assert caught.value.todo == "delete the folder and run the job again"


# Compressed files


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> tuple[Path, bytes, list[str]]:
    lines = [f"line {n} with some words" for n in range(300)]
    data = gzip.compress(("\n".join(lines) + "\n").encode())
    return tmp_path_factory.mktemp("packed") / "x.jsonl.gz", data, lines


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_byte_or_a_cut_never_passes_for_the_text(packed, data):
    path, whole, lines = packed
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:place])
    else:
        bit = 1 << data.draw(st.integers(0, 7))
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :]
        )
    try:
        found = [line for _, line in read_lines(path)]
    except UserError as error:
        found, told = None, error.what
    # A time stamp or a flag of the header may differ; or there is nothing at all.
    if found is None:
        assert f"{path}:" in told
    else:
        assert found == lines or not path.stat().st_size


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("bit", [1, 64])
def test_a_damaged_mark_of_gzip_is_no_text(packed, place, bit):
    path, whole, _ = packed
    for data in (
        whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :],
        whole[:1],
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match="cut or damaged"):
            list(read_lines(path))


def test_plain_text_may_be_named_gz(tmp_path):
    (tmp_path / "x.jsonl.gz").write_text("a line\n")
    assert list(read_lines(tmp_path / "x.jsonl.gz")) == [(1, "a line")]


def test_a_cut_file_is_no_bad_line(tmp_path):
    spec = beir(tmp_path / "set", {"q": "one"}, test={"q": "d1"})
    corpus = tmp_path / "set/corpus.jsonl"
    data = gzip.compress(corpus.read_bytes())
    corpus.unlink()
    (tmp_path / "set/corpus.jsonl.gz").write_bytes(data[:-9])
    refused = pytest.raises(UserError, match="the compressed file is cut or damaged")
    with tolerated(tmp_path / "rejects.jsonl", most=1.0), refused:
        load_collection(spec)


# What was made from another file is not used


def test_a_changed_file_gets_a_cache_of_its_own(tmp_path, monkeypatch):
    """Same path, same size; the old one stays whole until the new one is."""
    monkeypatch.setenv("DISTILL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(builder, "LARGE_BYTES", 0)
    spec = beir(tmp_path / "set", {"q": "one"}, test={"q": "d1"})
    first = load_collection(spec)[0]
    kept = set((tmp_path / "cache/collections").iterdir())
    corpus = tmp_path / "set/corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("word3", "w0rd3"))

    def killed(folder, path, items, titles):
        (folder / "texts.blob").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(builder, "_write_large", killed)
        with pytest.raises(KeyboardInterrupt):
            load_collection(spec)
    assert set((tmp_path / "cache/collections").iterdir()) == kept
    second = load_collection(spec)[0]
    assert (first.text(3), second.text(3)) == ("word3 stone", "w0rd3 stone")
    assert first.digest != second.digest


def test_a_cache_of_another_version_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(builder, "LARGE_BYTES", 0)
    spec = beir(tmp_path / "set", {"q": "one"}, test={"q": "d1"})
    load_collection(spec)
    (record,) = (tmp_path / "cache/collections").glob("*/collection.json")
    old = json.loads(record.read_text())
    record.write_text(json.dumps({**old, "format": 0, "digest": "of another version"}))
    assert load_collection(spec)[0].digest != "of another version"
    assert json.loads(record.read_text()) == old
