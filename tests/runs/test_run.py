"""Runs in trec_eval's order, whatever their ids; files that give back what they got."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax.collections.collection import Collection
from distill_jax.io.errors import UserError
from distill_jax.runs.run import Run
from distill_jax.runs.trec import ENCODED

any_id = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
score = st.floats(width=32, allow_nan=False)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
lists = st.dictionaries(
    any_id, st.dictionaries(any_id, score, max_size=8), min_size=1, max_size=5
)


def of(lists):
    return Run.from_lists(list(lists), [docs.items() for docs in lists.values()])


def expected(lists):
    """trec_eval: score descending as float32, ties by document id descending."""
    return {
        query: sorted(
            ((doc, float(np.float32(s))) for doc, s in docs.items()),
            key=lambda pair: (pair[1], pair[0].encode()),
            reverse=True,
        )
        for query, docs in lists.items()
    }


@settings(deadline=None)
@given(lists)
def test_lists_are_in_trec_evals_order(lists):
    run = of(lists)
    assert run.lists() == expected(lists)
    assert (run.where == (run.rows >= 0)).all()
    assert (run.scores[~run.where] == -np.inf).all()
    # Padding is at the end of each list.
    assert (np.diff(run.where.astype(int), axis=1) <= 0).all()


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(any_id, st.dictionaries(any_id, finite, max_size=8), min_size=1, max_size=5), st.sampled_from(["run.trec", "run.trec.gz"]))
def test_files_give_back_any_id_and_every_bit(tmp_path_factory, lists, name):
    path = tmp_path_factory.mktemp("runs") / name
    run = of(lists)
    run.write(path)
    # A query without documents leaves no line in a TREC file.
    kept = {query: docs for query, docs in run.lists().items() if docs}
    assert Run.read(path).lists() == kept


def test_only_ids_that_need_it_are_encoded(tmp_path):
    of({"q": {"a/b:%20": 1.0, "日本": 0.5}}).write(tmp_path / "a")
    assert (tmp_path / "a").read_text("utf-8") == (
        "q Q0 a/b:%20 1 1 distill_jax\nq Q0 日本 2 0.5 distill_jax\n"
    )
    of({"q 1": {"a\u00a0b%": 1.0}}).write(tmp_path / "b", tag="mine")
    text = (tmp_path / "b").read_text("utf-8")
    assert text == f"q%201 Q0 a%C2%A0b%25 1 1 mine{ENCODED}\n"
    assert len(text.split()) == 6
    with pytest.raises(UserError, match="empty id"):
        of({"q": {"": 1.0}}).write(tmp_path / "c")
    with pytest.raises(UserError, match="tag"):
        of({"q": {}}).write(tmp_path / "c", tag="a b")


def test_a_written_run_has_the_same_digest(tmp_path):
    rng = np.random.default_rng(0)
    rows = np.stack([rng.permutation(200)[:30] for _ in range(50)])
    run = Run(
        tuple(f"q{i}" for i in range(50)),
        rows,
        rng.normal(size=(50, 30)),
        [f"d{i}" for i in range(200)],
    )
    run.write(tmp_path / "run")
    read = Run.read(tmp_path / "run")
    assert read.digest == run.digest
    assert read.top(29).digest != run.digest
    collection = Collection(run.doc_ids[::-1], [""] * 200)
    on = Run.read(tmp_path / "run", collection)
    assert on.doc_ids is collection.ids
    assert on.digest == run.digest
    assert read.on(collection).lists() == on.lists()
    assert read.on(collection).doc_ids is collection.ids
    assert Run.read(tmp_path / "run", limit=7).digest == run.top(7).digest


def test_published_runs_read_alike_by_both_readers(shared, tmp_path):
    path = shared / "runs/runs/REP_LLAMA.dl19.top100.trec.gz"
    fast = Run.read(path)
    with gzip.open(path, "rt") as lines:
        text = lines.read()
    # Two blanks between columns: only the careful reader takes it.
    (tmp_path / "slow").write_text(text.replace(" ", "  "))
    slow = Run.read(tmp_path / "slow")
    assert fast.rows.shape == (43, 1000)
    assert slow.digest == fast.digest


def test_ms_marco_runs_are_ranked(tmp_path):
    (tmp_path / "run").write_text("1\t10\t2\n1\t11\t1\n2\t10\t1\n")
    run = Run.read(tmp_path / "run")
    assert [doc for doc, _ in run.lists()["1"]] == ["11", "10"]


def test_queries_may_be_scattered_in_the_file(tmp_path):
    (tmp_path / "run").write_text("a Q0 x 1 1 t\nb Q0 y 1 5 t\na Q0 z 1 3 t\n")
    assert Run.read(tmp_path / "run").lists() == {
        "a": [("z", 3.0), ("x", 1.0)],
        "b": [("y", 5.0)],
    }
    (tmp_path / "empty").write_text("\n")
    assert len(Run.read(tmp_path / "empty")) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q Q0 d 1 1 t\nq Q0 e 2 x t\n", r"run:2: 'x' is not a number"),
        ("q Q0 d 1 1 t\nq Q0 e 2 1\n", r"run:2: 5 columns"),
        ("q Q0 d 1 1 t\nq Q0 d 2 0.5 t\n", r"run: query 'q' has document 'd' twice"),
        ("q Q0 d 1 nan t\n", r"run:1: 'nan' is not a finite number"),
        ("q Q0 d 1 1 t\n\n\nq  \n", r"run:4: 1 columns"),
        ("q Q0 unknown 1 1 t\n", r"run: .* not in these docs, e\.g\. 'unknown'"),
    ],
)
def test_faults_are_named(tmp_path, content, message):
    (tmp_path / "run").write_text(content)
    collection = Collection(["d", "e"], ["", ""], name="these docs")
    with pytest.raises(UserError, match=message):
        Run.read(tmp_path / "run", collection)


def test_bad_bytes_and_cut_files(tmp_path):
    (tmp_path / "a").write_bytes(b"q Q0 d 1 1 t\nq Q0 \xff 1 1 t\n")
    with pytest.raises(UserError, match="a:2:6: not UTF-8"):
        Run.read(tmp_path / "a")
    body = b"".join(b"q Q0 d%d 1 1 t\n" % i for i in range(20_000))
    (tmp_path / "a.gz").write_bytes(gzip.compress(body)[:-30])
    with pytest.raises(UserError, match=r"a\.gz:\d+: the compressed"):
        Run.read(tmp_path / "a.gz")
    with pytest.raises(UserError, match="No such file"):
        Run.read(tmp_path / "none")


def test_constructor_checks():
    with pytest.raises(UserError, match="has document 'b' twice"):
        Run(("q",), np.asarray([[1, 1]]), np.asarray([[1.0, 2.0]]), ["a", "b"])
    with pytest.raises(UserError, match="NaN"):
        Run(("q",), np.asarray([[0, 1]]), np.asarray([[1.0, np.nan]]), ["a", "b"])
    with pytest.raises(UserError, match="query 'q' twice"):
        Run(("q", "q"), np.zeros((2, 1)), np.zeros((2, 1)), ["a"])
    with pytest.raises(ValueError, match="row 5"):
        Run(("q",), np.asarray([[5]]), np.zeros((1, 1)), ["a"])
    run = Run(("q",), np.asarray([[-1, 0]]), np.asarray([[np.nan, -np.inf]]), ["a"])
    assert run.lists() == {"q": [("a", -np.inf)]}
    assert len(Run((), np.zeros((0, 3)), np.zeros((0, 3)), [])) == 0


def test_the_callers_arrays_are_not_changed():
    rows = np.asarray([[0, 1], [1, 0]], np.int32)
    scores = np.asarray([[1.0, 1.0], [0.0, 2.0]], np.float32)
    Run(("a", "b"), rows, scores, ["x", "y"])
    assert rows.tolist() == [[0, 1], [1, 0]]
    assert scores.tolist() == [[1.0, 1.0], [0.0, 2.0]]


def test_select():
    run = of({"a": {"x": 1.0}, "b": {"y": 1.0, "z": 2.0}})
    assert run.select(["b"]).lists() == {"b": [("z", 2.0), ("y", 1.0)]}
    with pytest.raises(UserError, match="no query 'c'"):
        run.select(["c"])
    with pytest.raises(UserError, match="1 documents of the run are not in"):
        run.on(Collection(["x", "y"], ["", ""]))


# ------------------------------------------------------------------ joining


def test_reciprocal_rank_fusion_has_the_known_values(cases):
    case = cases["rrf_k60"]
    runs = [
        of({"q": {doc: -float(rank) for doc, rank in ranks.items()}})
        for ranks in case["inputs"]["rank_lists"]
    ]
    fused = Run.fuse(runs, k=case["inputs"]["K"]).lists()["q"]
    assert dict(fused) == pytest.approx(case["expected"]["scores"], rel=1e-6)
    # a and b tie: the higher id first.
    assert [doc for doc, _ in fused] == ["b", "a", "c", "d"]


def test_fusion_of_runs_over_different_queries_and_documents():
    first = of({"q": {"a": 2.0, "b": 1.0}, "only": {"a": 1.0}})
    second = of({"q": {"c": 9.0, "a": 3.0}})
    fused = Run.fuse([first, second], weights=[1.0, 2.0], depth=2).lists()
    assert dict(fused["q"]) == pytest.approx(
        {"c": 2 / 61, "a": 1 / 61 + 2 / 62}, rel=1e-6
    )
    assert dict(fused["only"]) == pytest.approx({"a": 1 / 61}, rel=1e-6)
    shared_ids = first.top(1)
    assert Run.fuse([first, shared_ids]).doc_ids is first.doc_ids


def test_weighted_sums_of_scores():
    first = of({"q": {"a": 10.0, "b": 5.0, "c": 0.0}})
    second = of({"q": {"a": 1.0, "d": 3.0}})
    joined = Run.combine([first, second], [1.0, 2.0], "minmax").lists()["q"]
    assert dict(joined) == pytest.approx({"a": 1.0, "b": 0.5, "c": 0.0, "d": 2.0})
    joined = Run.combine([first, second], None, None).lists()["q"]
    assert dict(joined) == pytest.approx({"a": 11.0, "b": 5.0, "c": 0.0, "d": 3.0})
    joined = dict(Run.combine([first, second], None, "zscore").lists()["q"])
    z = 5 / np.sqrt(50 / 3)
    assert joined == pytest.approx({"a": z - 1, "b": -1.0, "c": -z - 1, "d": 1 - z})
    short = of({"p": {"a": 9.0, "b": 5.0}, "q": {"a": 1.0, "b": 2.0, "c": 5.0}})
    joined = Run.combine([short], None, "minmax").lists()
    assert dict(joined["p"]) == {"a": 1.0, "b": 0.0}
    assert dict(joined["q"]) == {"a": 0.0, "b": 0.25, "c": 1.0}
    flat = of({"q": {"a": 4.0, "b": 4.0}})
    assert dict(Run.combine([flat]).lists()["q"]) == {"a": 0.0, "b": 0.0}
    scores = np.asarray([[1.0, 0.5], [np.inf, 0.0]], np.float32)
    endless = Run(("p", "q"), np.asarray([[0, 1], [0, 1]], np.int32), scores, ["a", "b"])
    with pytest.raises(UserError, match="query 'q': a score is infinite"):
        Run.combine([flat, endless], None, "minmax")
    with pytest.raises(UserError, match="unknown normalisation"):
        Run.combine([flat], None, "softmax")
    with pytest.raises(UserError, match="2 weights for 1 runs"):
        Run.fuse([flat], weights=[1.0, 2.0])
