"""Odd texts have scores, odd ids survive every format, and neither leads elsewhere."""

from __future__ import annotations

import ast
import json
import random
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import distill_jax
from distill_jax.collections.schemes import load_collection
from distill_jax.io.errors import UserError
from distill_jax.jobs.evaluate import _name
from distill_jax.main import main
from distill_jax.predictor import Predictor
from distill_jax.runs.run import Run
from tests.export.forms import student

TEXTS = {
    "empty": "",
    "blanks": " \t\u00a0\u3000 ",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 boil",
    "combining": "e\u0301a\u0302\u0303 vaccine",
    "right to left": "שלום \u202eabc\u202c مرحبا",
    "a lone surrogate": "a \ud800 bone",
    "controls": "\x01\x7f\x85 vitamin",
    "special tokens": "[SEP] </s> <pad> [PAD] [CLS] <extra_id_0>",
    "a million characters": "water " * 166_667,
}
# Ids that look like numbers, values, paths, options, markup and code.
IDS = [
    "007", "7", "7.0", "1e5", "-1", "nan", "None", "true", "a b", " a", "a/b", ".",
    "..", "../../etc/passwd", "/etc/passwd", "~root", "C:\\x", "$(touch pwned)",
    "'; touch pwned; '", "a|b>c&d", "%41", "%2e%2e", "{doc}", "<b>x</b>", "d,e;f",
    'a"b', "日本語", "é", "e\u0301", "😀", "x" * 300, "--gin.SEED=1", "#c", "q\u00a0r",
]  # fmt: skip


@pytest.mark.parametrize("name", ["bert_cross", "t5_monot5", "dual_mean"])
def test_odd_texts_have_finite_scores_of_their_own(name):
    """Empty against empty, and a million characters: cut, never failed."""
    model = Predictor(student(name))
    pairs = [(q, d) for q in ("", "what boils") for d in TEXTS.values()]
    pairs += [(text, "water") for text in TEXTS.values()]
    together = model.score(pairs)
    assert np.isfinite(together).all()
    assert "million" in list(TEXTS)[8]
    alone = model.score([pairs[8]])
    np.testing.assert_allclose(together[8], alone[0], rtol=1e-5, atol=1e-5)


def test_odd_texts_are_read_and_bad_utf8_is_named(tmp_path):
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": i, "text": text}) for i, text in TEXTS.items()]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": ""}\n')
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tempty\t1\n")
    collection, queries, _ = load_collection(f"beir:{folder}")
    expected = {**TEXTS, "a lone surrogate": "a \ufffd bone"}
    assert dict(zip(collection.ids, collection.texts)) == expected
    assert "2 of 9 documents are empty (kept)" in collection.notices
    assert "1 of 1 queries are empty" in collection.notices
    assert queries.texts == [""]
    with open(folder / "corpus.jsonl", "ab") as out:
        out.write(b'\n{"_id": "x", "text": "caf\xe9"}\n')
    with pytest.raises(UserError, match=r"corpus\.jsonl:10:26: not UTF-8 \(byte 0xe9"):
        load_collection(f"beir:{folder}")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A working folder with blanks in its name, and a set of odd ids in it."""
    folder = tmp_path_factory.mktemp("odd") / "a world; touch pwned"
    beir = folder / "my set"
    (beir / "qrels").mkdir(parents=True)
    draw = random.Random(0)
    words = [f"{a}{b}{c}o" for a in "bdfgklm" for b in "aeiou" for c in "nprst"]
    draw.shuffle(words)
    docs, queries, judged = [], [], ["query-id\tcorpus-id\tscore"]
    for item, word in zip(IDS, words):
        docs.append({"_id": item, "title": "", "text": f"{word} and more"})
        queries.append({"_id": item, "text": f"{word} more"})
        judged.append(f"{item}\t{item}\t1")
    for name, records in (("corpus", docs), ("queries", queries)):
        lines = [json.dumps(record) + "\n" for record in records]
        (beir / f"{name}.jsonl").write_text("".join(lines))
    (beir / "qrels/test.tsv").write_text("\n".join(judged) + "\n", "utf-8")
    return folder


def run(recipe: str, **flags) -> int:
    given = {"COLLECTION": "beir:my set", "SPLIT": "test", **flags}
    words = [f"--gin.{name}={value}" for name, value in given.items()]
    return main([f"--gin_file={recipe}.gin", *words])


def test_odd_ids_go_through_every_job(world, monkeypatch):
    """Relative paths with blanks; runs, labels and measures keep each id as it is."""
    monkeypatch.chdir(world)
    assert run("mine", MODEL_DIR="runs/of mine", TOP_K=3) == 0
    found = Run.read("runs/of mine/run.trec").lists()
    assert set(found) == set(IDS)
    assert all(docs[0][0] == query for query, docs in found.items())

    labels = {"CHECKPOINT": "fresh:reranker:t5:tiny", "MESH": "data=1"}
    labels["SOURCE"] = "@candidates.RunFile()"
    labels["RUN"] = "runs/of mine/run.trec"
    assert run("label", MODEL_DIR="runs/the labels", TOP_K=3, **labels) == 0
    rows = [
        row
        for path in Path("runs/the labels/labels").glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    assert {row["query_id"] for row in rows} == set(IDS)
    for row in rows:
        assert set(row["doc_ids"]) == {doc for doc, _ in found[row["query_id"]]}

    status = run("evaluate", MODEL_DIR="runs/measured", RUN="runs/of mine/run.trec")
    assert status == 0
    report = json.loads(Path("runs/measured/report.json").read_text())
    assert report["measures"]["run"]["RR@10"] == 1.0
    page = Path("runs/measured/report.html").read_text()
    assert "<b>x</b>" not in page

    assert {path.name for path in Path().iterdir()} == {"my set", "runs"}
    assert {path.name for path in Path("runs").iterdir()} == {
        "of mine",
        "the labels",
        "measured",
    }
    assert not list(world.parent.rglob("pwned"))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/a.trec", "a"),
        ("..", "system"),
        ("../..", "system"),
        ("hf:org/model", "model"),
        ("a b; rm -rf ~.trec", "a_b_rm_-rf_"),
        ("x\n/y\nz.run", "y_z.run"),
        ("é" * 300, "é" * 80),
    ],
)
def test_a_system_s_name_is_a_file_s_name(path, name):
    assert _name(path, {}) == name
    assert _name(path, {name: None}) == f"{name}-2"


# Modules that turn bytes into objects or texts into programs by design.
RUNNERS = {
    "pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle",
    "joblib", "runpy", "code", "codeop",
}  # fmt: skip
CALLS = re.compile(
    r"(os\.(system|popen|exec\w*|spawn\w*)|eval|exec|compile|builtins\.\w+|torch\.load)"
)


def calls(source: str) -> list[str]:
    """What a source does that could run a text as a program, or a file as one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in RUNNERS]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if CALLS.fullmatch(called):
                found.append(called)
            found += [
                keyword.arg
                for keyword in node.keywords
                if keyword.arg in ("shell", "allow_pickle", "trust_remote_code")
                and not (
                    isinstance(keyword.value, ast.Constant)
                    and keyword.value.value is False
                )
            ]
    return found


def test_no_text_becomes_a_program():
    root = Path(distill_jax.__file__).parent
    offences = {
        str(path): found
        for path in sorted(root.rglob("*.py"))
        if (found := calls(path.read_text("utf-8")))
    }
    # Its reader of pickles looks nothing up but tensors: tests/weights/test_pickles.py.
    reader = str(root / "weights/pickles.py")
    assert offences.pop(reader) == ["pickle"]
    assert not offences
    assert calls("subprocess.run(x, shell=True); eval(y)") == ["shell", "eval"]
    assert calls("np.load(x, allow_pickle=False); re.compile(y)") == []
    assert calls("import pickle\npickle.loads(x)") == ["pickle"]
    assert calls("from marshal import loads") == ["marshal"]
    assert calls("os.execvp(x, y)") == ["os.execvp"]
