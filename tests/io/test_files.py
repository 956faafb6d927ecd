"""Files appear whole or not at all; readers name the line of a fault."""

import gzip
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_jax.io.cache import cache_dir
from distill_jax.io.errors import UserError, near
from distill_jax.io.files import atomic_write, digest, digest_texts
from distill_jax.io.reading import read_json, read_jsonl, read_lines, write_json
from distill_jax.io.strings import StringTable, StringTableWriter


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with atomic_write(path) as out:
            out.write("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_written_text_reads_back(tmp_path, name):
    path = tmp_path / "folder" / name
    with atomic_write(path) as out:
        out.write("é\n日本\n")
    assert list(read_lines(path)) == [(1, "é"), (2, "日本")]
    first = path.read_bytes()
    with atomic_write(path) as out:
        out.write("é\n日本\n")
    assert path.read_bytes() == first


def test_written_files_follow_the_umask(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    with atomic_write(tmp_path / "ours") as out:
        out.write("")
    assert (tmp_path / "ours").stat().st_mode == plain.stat().st_mode


def test_digests_tell_parts_shapes_types_and_values_apart():
    zeros = np.zeros(4, np.float32)
    seen = [
        digest("ab"),
        digest("a", "b"),
        digest(b"ab"),
        digest(["ab"]),
        digest(zeros),
        digest(zeros.reshape(2, 2)),
        digest(zeros.astype(np.int32)),
        digest(np.float32(0)),
        digest(zeros + 1),
        digest(None),
        digest(1),
        digest(""),
        digest(),
        digest(np.zeros(0, np.float32)),
    ]
    assert len(set(seen)) == len(seen)
    assert all(len(d) == 32 for d in seen)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(np.arange(6).reshape(2, 3).T) == digest(
        np.ascontiguousarray(np.arange(6).reshape(2, 3).T)
    )


def test_bfloat16_arrays_have_digests():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    ones = np.ones(3, ml_dtypes.bfloat16)
    assert digest(ones) != digest(ones * 2)


def test_text_digests_see_the_borders():
    assert digest_texts(["ab", ""]) != digest_texts(["a", "b"])
    assert digest_texts(["a\ud800"]) != digest_texts(["a"])


def test_lines_without_bom_and_carriage_returns(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes("\ufeffa\r\nb\u2028c\n\rd".encode())
    assert [line for _, line in read_lines(path)] == ["a", "b\u2028c", "\rd"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": \n', "bad.jsonl:2:"),
        (b'{"a": 1}\n\n[1]\n', "bad.jsonl:3: a JSON list"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "bad.jsonl:2:8: not UTF-8"),
        (b'{"a": "\0"}\n', "bad.jsonl:1:"),
        (b"[" * 100_000, "bad.jsonl:1:"),
    ],
)
def test_faults_name_file_and_line(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(read_jsonl(path))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_cut_gzip_is_named(tmp_path):
    path = tmp_path / "cut.jsonl.gz"
    lines = "".join(json.dumps({"a": i}) + "\n" for i in range(5000))
    path.write_bytes(gzip.compress(lines.encode())[:-20])
    with pytest.raises(UserError, match=r"cut\.jsonl\.gz:\d+: the compressed file"):
        list(read_jsonl(path))


def test_json_survives_and_missing_files_are_the_users_error(tmp_path):
    value = {"é": [1, None, "\ud800"]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    with pytest.raises(UserError, match="No such file"):
        read_json(tmp_path / "b.json")
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(UserError, match=r"c\.json:1:2"):
        read_json(tmp_path / "c.json")


def test_messages_stay_two_lines_whatever_an_id_holds():
    assert str(UserError("a\nb\u2028c", "d\r\ne")).splitlines() == ["a b c", "d e"]
    assert near("nDGC", ["nDCG", "RR"]) == ' (did you mean "nDCG"?)'
    assert near("xyz", ["nDCG"]) == ""


def test_the_cache_is_private(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_JAX_CACHE", str(tmp_path / "mine"))
    assert cache_dir().stat().st_mode & 0o777 == 0o700
    os.chmod(tmp_path / "mine", 0o770)
    with pytest.raises(UserError, match="can be written by others"):
        cache_dir()


@given(st.lists(st.text(max_size=8), max_size=20))
def test_string_tables_are_sequences(strings):
    table = StringTable.of(strings)
    assert list(table) == strings
    assert len(table) == len(strings)
    assert table[1:3] == strings[1:3]
    assert table[::-1] == strings[::-1]
    assert table.arrow().to_pylist() == strings
    for i in range(-len(strings), len(strings)):
        assert table[i] == strings[i]
    with pytest.raises(IndexError):
        table[len(strings)]


def test_string_tables_on_disk_are_checked(tmp_path):
    writer = StringTableWriter(tmp_path, "texts")
    strings = [f"text {i} é" for i in range(10_000)]
    for string in strings:
        writer.append(string)
    writer.close()
    assert list(StringTable.read(tmp_path, "texts")) == strings
    with open(tmp_path / "texts.blob", "ab") as out:
        out.write(b"x")
    with pytest.raises(UserError, match="damaged"):
        StringTable.read(tmp_path, "texts")
