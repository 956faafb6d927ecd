"""ScaNN against exact search, small corpora, and its traps."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from distill_jax.io.errors import UserError
from distill_jax.retrieval import Exact, Scann, scann_build, scann_import
from distill_jax.retrieval.scann import Width, recall_of

pytestmark = pytest.mark.skipif(
    find_spec("scann") is None, reason="scann is not installed"
)


def clustered(rows, seed, width=16, clusters=40):
    centres = np.random.default_rng(5).normal(size=(clusters, width))
    random = np.random.default_rng(seed)
    values = centres[random.integers(0, clusters, rows)]
    return (values + random.normal(size=values.shape) * 0.5).astype(np.float32)


@pytest.fixture(scope="module")
def index():
    return Scann.build(
        clustered(3000, 0), leaves=60, recall=0.9, queries=clustered(99, 1)
    )


def test_reaches_the_recall_that_was_asked_for(index):
    assert index.report["kind"] == "tree"
    assert index.report["met"]
    assert index.report["recall"] >= 0.9
    queries = clustered(200, 2)
    truth = Exact.build(clustered(3000, 0)).search(queries, 10)
    assert recall_of(index.search(queries, 10), truth) > 0.85
    wide = index.search(queries, 10, width=Width(leaves=60, reorder=1000))
    assert recall_of(wide, truth) > 0.99


def test_says_when_a_recall_is_not_met(monkeypatch):
    narrow = [Width(leaves=1, reorder=20)]
    monkeypatch.setattr(Scann, "_widths", lambda self, k: narrow)
    index = Scann.build(clustered(3000, 0), leaves=60, recall=1.0, soar=None)
    assert not index.report["met"]
    assert index.report["recall"] < 1


@pytest.mark.parametrize("docs", [1, 2, 17, 300])
@pytest.mark.parametrize("leaves", [None, 4])
def test_small_corpora(docs, leaves):
    index = Scann.build(clustered(docs, 0), leaves=leaves, recall=1.0)
    run = index.search(clustered(2, 1), 500)
    assert run.rows.shape == (2, docs)
    if index.report["kind"] == "brute force":
        truth = Exact.build(clustered(docs, 0)).search(clustered(2, 1), docs)
        np.testing.assert_array_equal(run.rows, truth.rows)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_a_tree_learnt_from_a_sample_holds_all_docs(monkeypatch, similarity, tmp_path):
    monkeypatch.setattr(scann_build.Tree, "trained_on", 1000)
    docs = clustered(3000, 0) * np.linspace(1, 2, 3000)[:, None]
    np.save(tmp_path / "docs.npy", docs)
    mapped = np.load(tmp_path / "docs.npy", mmap_mode="r")
    index = Scann.build(mapped, leaves=30, similarity=similarity, recall=0.95)
    assert index.report["met"]
    queries = clustered(100, 2)
    truth = Exact.build(docs, similarity=similarity).search(queries, 10)
    wide = Width(leaves=30, reorder=1500)
    found = index.search(queries, 10, width=wide)
    assert recall_of(found, truth) > 0.99
    same = found.rows == truth.rows
    np.testing.assert_allclose(found.scores[same], truth.scores[same], atol=1e-4)
    index.save(tmp_path / "index")
    again = Scann.load(tmp_path / "index").search(queries, 10, width=wide)
    np.testing.assert_array_equal(again.rows, found.rows)


def test_no_room_for_the_docs_is_told(monkeypatch):
    monkeypatch.setattr(scann_build.Tree, "trained_on", 1000)

    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(UserError, match="no room for it"):
        Scann.build(clustered(3000, 0), leaves=30)


def test_cosine_scores_are_cosines():
    docs = clustered(200, 0) * np.linspace(1, 20, 200)[:, None]
    run = Scann.build(docs, similarity="cosine").search(clustered(5, 1), 10)
    truth = Exact.build(docs, similarity="cosine").search(clustered(5, 1), 10)
    np.testing.assert_array_equal(run.rows, truth.rows)
    np.testing.assert_allclose(run.scores, truth.scores, atol=1e-5)


def test_a_saved_index_may_be_moved_but_not_tampered_with(index, tmp_path):
    index.save(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    loaded = Scann.load(tmp_path / "there")
    queries = clustered(50, 3)
    np.testing.assert_array_equal(
        loaded.search(queries, 10).rows, index.search(queries, 10).rows
    )
    assert loaded.report == index.report
    with pytest.raises(UserError, match="other vectors"):
        Scann.load(tmp_path / "there", source="other weights")
    # ScaNN would unpickle this.
    (tmp_path / "there" / "scann" / "scann_docids.pkl").write_bytes(b"cos\nsystem\n")
    with pytest.raises(UserError, match="scann_docids"):
        Scann.load(tmp_path / "there")


@pytest.mark.parametrize(
    "line",
    [
        'asset_path: "/OUT"',
        'asset_path:"/OUT"',
        "asset_path: '/OUT'",
        r'asset_path: "\057OUT"',
        'asset_path: "../../outside.npy"',
        'asset_path: "" "/OUT"',
        'asset_path: "dataset.npy" asset_path: "/OUT"',
        '# asset_path: "dataset.npy"',
    ],
)
def test_a_listing_names_files_of_the_index_alone(index, tmp_path, line):
    folder, outside = tmp_path / "index", tmp_path / "outside.npy"
    index.save(folder)
    shutil.copy(folder / "scann/dataset.npy", outside)
    listing = folder / "scann/scann_assets.pbtxt"
    written = listing.read_text()
    own = 'asset_path: "dataset.npy"'
    assert own in written

    def listed(text):
        listing.write_text(text)
        record = json.loads((folder / "index.json").read_text())
        record["files"][listing.name] = listing.stat().st_size
        (folder / "index.json").write_text(json.dumps(record))

    listed(written.replace(own, '\tasset_path:  "dataset.npy" \r\n'))
    assert Scann.load(folder).dimension == 16
    listed(written.replace(own, line.replace("OUT", str(outside)[1:])))
    with pytest.raises(UserError, match=r"pbtxt:\d+: not a file of this index"):
        Scann.load(folder)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("files", "gone", "index.json does not"),
        ("files", [], "index.json does not"),
        ("files", {}, "is missing"),
        ("width", None, "index.json does not"),
        ("dimension", "gone", "index.json does not"),
    ],
)
def test_a_description_that_is_none(index, tmp_path, name, value, told):
    index.save(tmp_path)
    record = json.loads((tmp_path / "index.json").read_text())
    record[name] = value
    if value == "gone":
        del record[name]
    (tmp_path / "index.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=told):
        Scann.load(tmp_path)


def test_files_that_do_not_make_an_index(index, tmp_path):
    short = dataclasses.replace(index, doc_ids=index.doc_ids[:7])
    short.save(tmp_path / "few")
    with pytest.raises(UserError, match="3000 docs, and there are 7 ids"):
        Scann.load(tmp_path / "few")
    index.save(tmp_path / "blank")
    listing = tmp_path / "blank/scann/scann_assets.pbtxt"
    listing.write_text(" " * listing.stat().st_size)
    with pytest.raises(UserError, match="Error initializing searcher"):
        Scann.load(tmp_path / "blank")


def test_bad_vectors_are_refused(index):
    docs = clustered(30, 0)
    docs[4, 2] = np.nan
    with pytest.raises(UserError, match="row 4"):
        Scann.build(docs)
    with pytest.raises(UserError, match="dimension 16"):
        index.search(np.zeros((1, 9)), 3)
    assert len(index.search(np.zeros((0, 16)), 3)) == 0


def test_a_scann_that_cannot_run_is_an_error_with_a_way_out(monkeypatch):
    scann_import.module.cache_clear()
    monkeypatch.setattr(scann_import, "_TRIAL", "import os; os.kill(os.getpid(), 4)")
    try:
        with pytest.raises(UserError, match="search with Exact"):
            Scann.build(clustered(30, 0))
    finally:
        scann_import.module.cache_clear()


_SCANN = """
import sys, numpy, pathlib, tempfile
from distill_jax.retrieval import Scann
docs = numpy.random.default_rng(0).normal(size=(600, 16)).astype("float32")
index = Scann.build(docs, leaves=12, recall=0.5)
assert index.report["kind"] == "tree"
with tempfile.TemporaryDirectory() as folder:
    index.save(folder)
    found = Scann.load(folder).search(docs[:50], 3).rows[:, 0]
assert (found == numpy.arange(50)).mean() > 0.5, found
"""
_TENSORFLOW = """
import tensorflow as tf
numbers = tf.data.Dataset.range(100).map(lambda number: number * 2).batch(10)
assert sum(int(batch.numpy().sum()) for batch in numbers) == 9900
"""
# The whole package: it must load where TensorFlow is the one it was built for.
_WHOLE = """
try:
    import scann
    assert scann.scann_ops_pybind.builder
except Exception as error:
    import tensorflow
    assert "undefined symbol" in str(error) and "2.20" not in tensorflow.__version__
"""
# What another release of TensorFlow than the one that ScaNN was built for does.
_OTHER_RELEASE = """
import sys
sys.path.insert(0, sys.argv[1])
import tensorflow
try:
    import scann
    raise SystemExit("the real scann package was to fail here")
except RuntimeError as error:
    assert "undefined symbol" in str(error)
"""


@pytest.mark.parametrize(
    "code",
    [
        _SCANN + "assert 'tensorflow' not in sys.modules",
        _SCANN + _TENSORFLOW + _SCANN,
        _TENSORFLOW + _SCANN + _TENSORFLOW,
        _OTHER_RELEASE + _SCANN + "import tensorflow",
        _SCANN + _OTHER_RELEASE + _SCANN,
        "import sys; sys.modules['tensorflow'] = None" + _SCANN,
        pytest.param(_SCANN + _WHOLE, marks=pytest.mark.slow),
        pytest.param(_WHOLE + _SCANN + _WHOLE, marks=pytest.mark.slow),
    ],
    ids=[
        "alone",
        "before TensorFlow",
        "after TensorFlow",
        "after another TensorFlow",
        "before another TensorFlow",
        "without TensorFlow",
        "before the whole package",
        "after the whole package",
    ],
)
def test_scann_works_whatever_tensorflow_is_there(code, tmp_path):
    if _TENSORFLOW in code:
        pytest.importorskip("tensorflow")
    fake = tmp_path / "tensorflow"
    fake.mkdir()
    (fake / "__init__.py").write_text(
        "class Module: pass\n"
        "def function(**options): return lambda method: method\n"
        "def load_op_library(path): raise RuntimeError(path + ': undefined symbol')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_more_leaves_are_opened_where_k_is_larger_than_what_they_hold():
    docs = clustered(600, seed=3, width=9, clusters=10)
    index = Scann.build(docs, leaves=10)
    narrow = Width(leaves=1, reorder=None)
    for k in (10, 300, 500, 600):
        run = index.search(docs[:5], k, width=narrow)
        assert ((run.rows >= 0).sum(1) == k).all()
        assert all(len(set(rows)) == k for rows in run.rows.tolist())
