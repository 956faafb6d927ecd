"""An index from elsewhere is refused, or searched within its bounds."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import random as random_matrix

from distill_jax.io.errors import UserError
from distill_jax.retrieval import BM25, Exact, LateInteraction, Sparse
from distill_jax.retrieval.postings import Postings

DOCS = 30


def bm25():
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(list("bcdfgh"), 5)) for _ in range(DOCS)]
    return BM25.build(texts), ["b c", "d", "q"]


def sparse():
    vectors = random_matrix(DOCS, 20, density=0.3, random_state=0, format="csr")
    return Sparse.build(vectors), vectors[:3]


def exact():
    vectors = np.random.default_rng(0).normal(size=(DOCS, 4)).astype(np.float32)
    return Exact.build(vectors), vectors[:3]


def late():
    draw = np.random.default_rng(0)
    docs = [draw.normal(size=(n % 4 + 1, 4)).astype(np.float32) for n in range(DOCS)]
    return LateInteraction.build(docs), docs[:3]


KINDS = {"bm25": bm25, "sparse": sparse, "exact": exact, "late": late}
# What a stranger writes in the place of a value of index.json.
VALUES = (None, -1, 2**62, "../../x", [], {}, [[-3]], True, 1e308, {"x": {}})


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    index, queries = KINDS[request.param]()
    folder = tmp_path_factory.mktemp(request.param) / "index"
    index.save(folder)
    return type(index), folder, queries


def refused_or_in_bounds(kind, folder, queries) -> bool:
    """Whether it was refused; anything but a clean refusal or a sound run fails."""
    try:
        run = kind.load(folder).search(queries, 5)
    except UserError:
        return True
    assert ((run.rows >= -1) & (run.rows < DOCS)).all()
    assert all(isinstance(name, str) for name in run.doc_ids)
    return False


def test_a_lying_description(saved, tmp_path):
    kind, folder, queries = saved
    record = json.loads((folder / "index.json").read_text())
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    places = [(name,) for name in record]
    places += [("arrays", name) for name in record["arrays"]]
    places += [
        ("arrays", name, key) for name in record["arrays"] for key in ("dtype", "shape")
    ]
    draw, refusals = random.Random(0), 0
    for place in places:
        for value in ("gone", *draw.sample(VALUES, 4)):
            lie = json.loads(json.dumps(record))
            parent = lie
            for name in place[:-1]:
                parent = parent[name]
            if value == "gone":
                del parent[place[-1]]
            else:
                parent[place[-1]] = value
            (copy / "index.json").write_text(json.dumps(lie))
            refusals += refused_or_in_bounds(kind, copy, queries)
    assert refusals > len(places)
    for text in ("", "[]", "7", '"x"', "{", "null"):
        (copy / "index.json").write_text(text)
        assert refused_or_in_bounds(kind, copy, queries), text


def test_arrays_of_noise(saved, tmp_path):
    """The right shapes and types, and numbers that point anywhere."""
    kind, folder, queries = saved
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    draw = np.random.default_rng(1)
    arrays = sorted(copy.rglob("*.npy"))
    assert arrays
    for path in arrays:
        before = path.read_bytes()
        values = np.load(path)
        for _ in range(6):
            noise = np.frombuffer(draw.bytes(values.nbytes), values.dtype)
            np.save(path, noise.reshape(values.shape))
            refused_or_in_bounds(kind, copy, queries)
        if values.size:
            np.save(path, np.full(values.shape, "x", object), allow_pickle=True)
            assert refused_or_in_bounds(kind, copy, queries), path.name
        path.write_bytes(before[: len(before) - 1])
        assert refused_or_in_bounds(kind, copy, queries), path.name
        path.write_bytes(before)
    assert not refused_or_in_bounds(kind, copy, queries)


@pytest.mark.parametrize(
    ("docs", "sound"),
    [
        ([1, 40000, 5, 40001], True),  # two terms, and the second starts lower
        ([40000, 5, 7, 8], False),  # back before the window that is being searched
        ([1, 2, 5, 5], False),
        ([1, 1, 7, 8], False),
    ],
)
def test_docs_ascend_within_a_term(docs, sound):
    count = 50000
    postings = Postings(
        indptr=np.array([0, 0, 2, 4, 4]),
        docs=np.array(docs, np.int32),
        weights=np.ones(4, np.float32),
        count=count,
    )
    if sound:
        assert postings.checked(4, np.arange(count)) is postings
    else:
        with pytest.raises(UserError, match="postings are damaged"):
            postings.checked(4, np.arange(count))


def test_arrays_that_are_links_or_missing(saved, tmp_path):
    kind, folder, queries = saved
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = next(iter(sorted(copy.glob("*.npy"))))
    path.unlink()
    assert refused_or_in_bounds(kind, copy, queries)
    path.symlink_to(Path("/dev/zero"))
    assert refused_or_in_bounds(kind, copy, queries)
