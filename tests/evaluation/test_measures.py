"""Measures equal pytrec_eval's for each query, and the published figures."""

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax.collections.qrels import Qrels
from distill_jax.evaluation.measures import (
    evaluate,
    evaluate_queries,
    measured_names,
    ties,
)
from distill_jax.io.errors import UserError
from distill_jax.runs.run import Run

NAMES = {
    "nDCG@10": "ndcg_cut_10",
    "AP": "map",
    "R@100": "recall_100",
    "Success@5": "success_5",
    "RR": "recip_rank",
    # ir_measures gives this one to another provider, with ties of its own.
    "RR@1000": "recip_rank",
    "P@10": "P_10",
}
# nDCG@10 to four decimals, as published.
TABLE = [
    ("BM25.dl19.top100", "dl19", 0.5058),
    ("BM25.dl20.top100", "dl20", 0.4796),
    ("BM25.beir-trec-covid.top100", "covid", 0.5947),
    ("BM25_RM3.dl19.top100", "dl19", 0.5216),
    ("D_BERT_KD_TASB.dl20.top100", "dl20", 0.6854),
    ("SPLADE_P_P_ENSEMBLE_DISTIL.dl19.top100", "dl19", 0.7308),
    ("SPLADE_P_P_ENSEMBLE_DISTIL.beir-trec-covid.top100", "covid", 0.7274),
    ("OPEN_AI_ADA2.dl20.top100", "dl20", 0.6759),
    ("REP_LLAMA.dl19.top100", "dl19", 0.7384),
    ("REP_LLAMA.dl20.top100", "dl20", 0.7195),
    ("webis-colbert.dl2019", "dl19", 0.7320),
    ("webis-colbert.dl2020", "dl20", 0.7245),
    ("webis-bm25.dl2019", "dl19", 0.4795),
]
QRELS = {
    "dl19": "qrels.dl19-passage.txt.gz",
    "dl20": "qrels.dl20-passage.txt.gz",
    "covid": "qrels.beir-v1.0.0-trec-covid.test.txt.gz",
}


def pytrec(judgements, lists):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    return pytrec_eval.RelevanceEvaluator(judgements, set(NAMES.values())).evaluate(
        lists
    )


@pytest.mark.parametrize(("name", "qrels", "published"), TABLE)
def test_published_runs(shared, name, qrels, published):
    path = shared / f"runs/runs/{name}.trec.gz"
    run = Run.read(path)
    qrels = Qrels.read(shared / "runs/qrels" / QRELS[qrels])
    values = evaluate_queries(run, qrels, list(NAMES))
    assert round(float(np.mean(list(values["nDCG@10"].values()))), 4) == published
    lists: dict[str, dict[str, float]] = {}
    with gzip.open(path, "rt") as lines:
        for line in lines:
            query, _, doc, _, score, _ = line.split()
            lists.setdefault(query, {})[doc] = float(score)
    theirs = pytrec(qrels.as_dict(), lists)
    assert theirs.keys() == values["AP"].keys()
    for query, expected in theirs.items():
        for ours, name in NAMES.items():
            assert values[ours][query] == pytest.approx(expected[name], abs=1e-6)


def test_anserinis_measures_at_grade_two(shared):
    run = Run.read(shared / "runs/runs/BM25.dl19.top100.trec.gz")
    qrels = Qrels.read(shared / "runs/qrels" / QRELS["dl19"])
    got = evaluate(run, qrels, ["AP(rel=2)@100", "RR(rel=2)@10", "R(rel=2)@100"])
    assert [round(v, 4) for v in got.values()] == [0.2476, 0.7024, 0.4910]


@pytest.mark.parametrize("name", ["ndcg_ties_trec", "trec_float32_ties"])
def test_ties_break_as_trec_eval_breaks_them(cases, name):
    case = cases[name]
    inputs, expected = case["inputs"], case["expected"]
    qrels = Qrels(inputs["qrels"])
    if name == "trec_float32_ties":
        for which in "ab":
            docs = inputs[f"run_{which}"]["q1"]
            got = evaluate(Run.from_lists(["q1"], [docs.items()]), qrels, ["nDCG"])
            assert got["nDCG"] == pytest.approx(expected[f"ndcg_{which}"], abs=1e-9)
        return
    run = Run.from_lists(["q1"], [inputs["run"]["q1"].items()])
    assert [doc for doc, _ in run.lists()["q1"]] == expected["order_used"]
    got = evaluate(run, qrels, ["AP", "RR", "R@3", "nDCG@3", "nDCG@10"])
    names = ["map", "recip_rank", "recall_3", "ndcg_cut_3", "ndcg_cut_10"]
    for value, other in zip(got.values(), names):
        assert value == pytest.approx(expected["pytrec_eval"][other], abs=1e-9)


def test_ties_at_a_cut_break_by_document_descending():
    """Under the order c, b, a: RR@k and Judged@k have no cut in trec_eval."""
    run = Run.from_lists(["q"], [[("a", 1.0), ("b", 1.0), ("c", 1.0)]])
    found = evaluate(run, Qrels({"q": {"a": 1}}), ["RR@10", "RR@2", "Judged@2", "P@2"])
    assert found == {"RR@10": 1 / 3, "RR@2": 0.0, "Judged@2": 0.0, "P@2": 0.0}


def test_a_query_that_is_missing_counts_zero(cases):
    """trec_eval's -c; without it the mean is over the queries of the run."""
    case = cases["missing_query_c_flag"]
    lists = case["inputs"]["run"]
    run = Run.from_lists(list(lists), [docs.items() for docs in lists.values()])
    qrels = Qrels(case["inputs"]["qrels"])
    assert evaluate(run, qrels, ["RR"])["RR"] == case["expected"]["mean_with_c_flag"]
    found = evaluate_queries(run, qrels, ["RR"])["RR"]
    assert (
        np.mean([found[q] for q in lists]) == case["expected"]["mean_over_run_queries"]
    )


def test_reciprocal_rank_is_zero_beyond_the_cut(cases):
    case = cases["mrr_at_10"]
    ranks = case["inputs"]["relevant_rank"]
    names = [f"q{i}" for i in range(len(ranks))]
    docs = [(f"d{i:02}", 50.0 - i) for i in range(1, 12)]
    lists = [[(f"{q}-{d}", s) for d, s in docs] for q in names]
    relevant = {
        q: {f"{q}-d{rank or 99:02}": 1} for q, rank in zip(names, ranks, strict=True)
    }
    run, qrels = Run.from_lists(names, lists), Qrels(relevant)
    found = evaluate_queries(run, qrels, ["RR@10"])["RR@10"]
    assert list(found.values()) == pytest.approx(case["expected"]["per_query"])
    assert evaluate(run, qrels, ["RR@10"])["RR@10"] == pytest.approx(
        case["expected"]["mean"]
    )


def test_recall_counts_the_grades_it_is_told(cases):
    case = cases["recall_l2"]
    retrieved = case["inputs"]["retrieved_top"]
    docs = [(doc, -float(i)) for i, doc in enumerate(retrieved)]
    run, qrels = Run.from_lists(["q"], [docs]), Qrels({"q": case["inputs"]["qrels"]})
    found = evaluate(run, qrels, ["R@100", "R(rel=2)@100"])
    levels = [case["expected"][f"recall_level{n}"] for n in (1, 2)]
    assert list(found.values()) == pytest.approx(levels)


ids = st.sampled_from([f"d{i}" for i in range(12)] + ["é", "日本"])


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(["q1", "q2", "q3"]),
        st.dictionaries(ids, st.integers(-1, 3), min_size=1),
        min_size=1,
    ),
    st.dictionaries(
        st.sampled_from(["q1", "q2", "q4"]),
        st.dictionaries(ids, st.sampled_from([0.0, -1.0, 0.5, 2.0]), min_size=1),
        min_size=1,
    ),
)
def test_any_small_run_equals_pytrec_eval_with_ties(judgements, lists):
    run = Run.from_lists(list(lists), [docs.items() for docs in lists.values()])
    values = evaluate_queries(run, Qrels(judgements), list(NAMES))
    theirs = pytrec(judgements, lists)
    for ours, name in NAMES.items():
        assert set(values[ours]) == set(judgements)
        for query, value in values[ours].items():
            expected = theirs.get(query, {}).get(name, 0.0)
            assert value == pytest.approx(expected, abs=1e-6)


def test_a_missing_query_counts_zero_and_an_unjudged_one_not_at_all():
    qrels = Qrels({"a": {"x": 1}, "b": {"x": 1}})
    run = Run.from_lists(["a", "c"], [[("x", 1.0)], [("x", 1.0)]])
    assert evaluate(run, qrels, ["nDCG@10", "RR@10"]) == {"nDCG@10": 0.5, "RR@10": 0.5}
    assert evaluate(Run.from_lists([], []), qrels, ["AP"]) == {"AP": 0.0}


def test_ties_are_counted_with_what_they_could_change():
    qrels = Qrels({"q": {"a": 1}})
    run = Run.from_lists(["q"], [[("a", 1.0), ("b", 1.0), ("c", 1.0), ("z", 0.0)]])
    found = ties(run, qrels, ["RR@10"])
    assert found.share == 3 / 6
    assert found.queries == 1.0
    assert found.best == {"RR@10": 1.0}
    assert found.worst == {"RR@10": pytest.approx(1 / 3)}
    apart = Run.from_lists(["q"], [[("a", 1.0), ("b", 0.5)]])
    assert ties(apart, qrels, ["RR@10"]).share == 0.0


def test_unknown_measures_and_no_judgements():
    run = Run.from_lists(["q"], [[("a", 1.0)]])
    with pytest.raises(UserError, match=r'did you mean "nDCG@10"'):
        evaluate(run, Qrels({"q": {"a": 1}}), ["nDGC@10"])
    with pytest.raises(UserError, match="no judgements"):
        evaluate(run, Qrels({}), ["AP"])
    assert measured_names(["AP", "R@5"]) == ["AP", "R@5"]
