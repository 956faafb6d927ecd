"""Training lists: who is in them, in which place, and that the draw is the query's."""

from __future__ import annotations

import numpy as np
import pytest

from distill_jax.collections.collection import Collection, Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.io.draws import split_by_hash
from distill_jax.io.errors import UserError
from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.pair_labels import PairLabels
from distill_jax.lists.building import (
    lists_from_judgements,
    lists_from_labels,
    with_judged_pairs,
)
from distill_jax.lists.lists import Lists, concatenate
from distill_jax.runs.run import Run

DOCS = Collection([f"d{i}" for i in range(12)], [f"text {i}" for i in range(12)])
QUERIES = Queries(["q0", "q1", "q2"], ["zero", "one", "two"])
QRELS = Qrels({"q0": {"d3": 1, "d5": 2, "d7": 0}, "q1": {"d1": 1}, "q9": {"d1": 1}})


def run_of(query_ids, width=8):
    rows = [np.roll(np.arange(12), -i)[:width] for i in range(len(query_ids))]
    scores = np.tile(np.arange(width, 0, -1, dtype=np.float32), (len(query_ids), 1))
    return Run(tuple(query_ids), np.asarray(rows, np.int32), scores, DOCS.ids)


def judged(query_ids=("q0", "q1", "q2"), **options):
    return lists_from_judgements(
        run_of(query_ids), QRELS, QUERIES, DOCS, **{"size": 4, **options}
    )


def test_each_positive_leads_its_own_list_best_grade_first():
    lists = judged()
    assert lists.query_rows.tolist() == [0, 0, 1]  # q2 has no judgement
    assert lists.doc_rows[:, 0].tolist() == [5, 3, 1]
    assert lists.labels[:, 0].tolist() == [2, 1, 1]
    assert lists.labelled.all()


def test_negatives_are_of_the_window_and_never_judged_relevant():
    for list_docs, query in zip(judged(window=(2, 8)).doc_rows, (0, 0, 1)):
        pool = set(run_of(("q0", "q1")).rows[query, 2:8].tolist())
        known = {3, 5} if query == 0 else {1}
        negatives = list_docs[1:].tolist()
        assert set(negatives) <= pool - known
        assert len(set(negatives)) == 3


@pytest.mark.parametrize("start", [0, 4])
def test_chances_of_log_random_negatives_are_of_ranks_in_the_run(start):
    drawn = [
        judged(
            ("q1",), size=2, window=(start, 8), sampling="log_random", seed=seed
        ).doc_rows[0, 1]
        for seed in range(400)
    ]
    # Of the run d0, d1, ...; d1 is the positive.
    rows = [row for row in range(start, 8) if row != 1]
    chances = 1 / (start + 1 + np.arange(len(rows)))
    expected = (chances / chances.sum() * rows).sum()
    assert abs(np.mean(drawn) - expected) < 0.25


def test_a_judged_irrelevant_document_keeps_its_grade_of_zero():
    lists = judged(size=7)
    row = lists.doc_rows[0].tolist()
    assert 7 in row
    assert lists.labels[0, row.index(7)] == 0


def test_a_short_window_leaves_a_short_list():
    lists = judged(window=(0, 2))
    assert lists.where.sum(1).tolist() == [3, 3, 2]  # q1's window holds d1 itself
    assert (lists.doc_rows[~lists.where] == -1).all()
    assert (lists.labels[~lists.where] == 0).all()


def test_positives_of_a_query_are_limited():
    assert judged(per_query=1).doc_rows[:, 0].tolist() == [5, 1]


def test_the_draw_belongs_to_the_query_and_the_seed():
    def of(lists, query):
        return lists.doc_rows[lists.query_rows == query].tolist()

    first, turned = judged(), judged(("q1", "q2", "q0"))
    # The run's rows belong to positions here, so give both the same candidates.
    run = run_of(("q0", "q1", "q2"))
    turned = lists_from_judgements(
        run.select(["q1", "q0"]), QRELS, QUERIES, DOCS, size=4
    )
    assert of(first, 0) == of(turned, 0)
    assert of(first, 1) == of(turned, 1)
    assert of(judged(seed=1), 0) != of(first, 0)


def test_nothing_judged_is_an_error():
    with pytest.raises(UserError, match="no training list"):
        judged(("q2",))


def labels_of(scores, query_ids=("q0", "q1"), failed=(False, False)):
    scores = np.asarray(scores, np.float32)
    rows = np.tile(np.arange(scores.shape[1], dtype=np.int32), (len(scores), 1))
    rows = np.where(np.isnan(scores), -1, rows).astype(np.int32)
    return TeacherLabels(
        tuple(query_ids), rows, scores, DOCS.ids, failed=np.asarray(failed)
    )


NAN = np.nan
SCORES = [[0.1, 3.0, 2.0, -1.0, 0.5, 0.3], [5.0, NAN, 4.0, 6.0, NAN, NAN]]


def taught(labels=None, **options):
    labels = labels_of(SCORES) if labels is None else labels
    return lists_from_labels(labels, QUERIES, DOCS, **{"size": 3, **options})


def test_lists_are_in_the_teacher_s_order():
    lists = taught(sampling="top")
    assert lists.doc_rows.tolist() == [[1, 2, 4], [3, 0, 2]]
    np.testing.assert_allclose(lists.labels, [[3.0, 2.0, 0.5], [6.0, 5.0, 4.0]])
    assert not lists.labelled.any()
    assert taught(trust_first=True).labelled.all()


@pytest.mark.parametrize("sampling", ["random", "spread", "quantile", "log_random"])
def test_samples_keep_the_best_and_the_order(sampling):
    lists = taught(sampling=sampling, size=4)
    assert lists.doc_rows[0, 0] == 1
    where = lists.where[:, :-1] & lists.where[:, 1:]
    assert (np.diff(lists.labels, axis=1)[where] <= 0).all()


def test_spread_takes_both_ends():
    assert taught(sampling="spread", size=2).doc_rows[0].tolist() == [1, 3]


def steep(count: int = 12) -> TeacherLabels:
    """Scores that halve: most candidates are held nearly alike, at the bottom."""
    return labels_of([[2.0**-i for i in range(count)]], ("q0",), (False,))


def test_quantiles_are_of_the_scores_and_not_of_the_ranks():
    lists = taught(steep(), sampling="quantile", size=8)
    kept = lists.doc_rows[0].tolist()
    # A quarter from the top, and then the nearest to even steps from 2^-2 to 2^-11.
    scores, expected = [2.0**-i for i in range(12)], [0, 1]
    left = list(range(2, 12))
    for wanted in np.linspace(scores[2], scores[11], 6):
        best = min(left, key=lambda i: abs(scores[i] - wanted))
        expected.append(best)
        left.remove(best)
    assert kept == sorted(expected)
    assert taught(steep(), sampling="spread", size=8).doc_rows[0].tolist() != kept


def test_strata_give_one_candidate_each():
    for seed in range(5):
        lists = taught(steep(), sampling="stratified", size=4, seed=seed)
        assert [place // 3 for place in lists.doc_rows[0].tolist()] == [0, 1, 2, 3]


def test_log_random_draws_first_ranks_more_often():
    counts = np.zeros(12)
    for seed in range(400):
        lists = taught(steep(), sampling="log_random", size=3, seed=seed)
        counts[lists.doc_rows[0]] += 1
    assert counts[0] == 400
    # P(rank 2 among two draws) by chances of 1/2 .. 1/12, summed out.
    chances = 1 / np.arange(2, 13)
    chances /= chances.sum()
    second = chances[0] + sum(c * chances[0] / (1 - c) for c in chances[1:])
    assert abs(counts[1] / 400 - second) < 0.08
    assert counts[1] > counts[5] > 0


def test_an_unknown_sampling_names_those_that_are():
    with pytest.raises(UserError, match="quantil"):
        taught(steep(), sampling="quantil")


def test_a_judged_positive_comes_first_and_labels_the_list():
    lists = taught(qrels=Qrels({"q0": {"d3": 1}}), sampling="top")
    assert lists.doc_rows[0].tolist() == [3, 1, 2]  # kept, though the teacher's last
    assert lists.labels[0, 0] == -1.0
    assert lists.labelled.tolist() == [True, False]


def test_padding_is_no_candidate():
    lists = taught(size=5)
    assert lists.where.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert (lists.doc_rows[1, 3:] == -1).all()
    assert (lists.labels[1, 3:] == 0).all()


def test_failed_queries_make_no_list():
    lists = taught(labels_of(SCORES, failed=(True, False)))
    assert lists.query_rows.tolist() == [1]
    with pytest.raises(UserError, match="no training list"):
        taught(labels_of(SCORES, failed=(True, True)))


def test_a_random_list_does_not_depend_on_the_other_queries():
    both = taught(sampling="random", size=3)
    alone = taught(
        labels_of(SCORES[1:], query_ids=("q1",), failed=(False,)), sampling="random"
    )
    turned = taught(labels_of(SCORES[::-1], ("q1", "q0")), sampling="random")
    assert both.doc_rows[1].tolist() == alone.doc_rows[0].tolist()
    assert both.doc_rows.tolist() == turned.doc_rows[::-1].tolist()


def test_judged_pairs_point_into_the_list():
    pairs = PairLabels(
        ("q0",),
        np.asarray([[3, 5, 0]], np.int32),
        np.asarray([[5, 1, -1]], np.int32),
        np.asarray([[0.9, 0.2, np.nan]], np.float32),
        DOCS.ids,
    )
    lists = taught(pairs=pairs, size=3)
    docs = lists.doc_rows[0]
    assert set(docs.tolist()) == {1, 3, 5}  # documents of pairs before others
    found = {
        (int(docs[a]), int(docs[b])): round(float(p), 3)
        for a, b, p in zip(lists.first[0], lists.second[0], lists.probability[0])
        if a >= 0
    }
    assert found == {(3, 5): 0.9, (5, 1): 0.2}
    assert (lists.first[1] == -1).all()


def test_pairs_of_judgements_are_of_unequal_grades_either_way_round():
    lists = judged(size=6)
    paired = with_judged_pairs(lists, ["q0", "q0", "q1"], pairs=4, seed=0)
    where = paired.first >= 0
    assert where.any(1).all()
    first = np.take_along_axis(lists.labels, np.maximum(paired.first, 0), 1)
    second = np.take_along_axis(lists.labels, np.maximum(paired.second, 0), 1)
    better = first > second
    assert (better == (paired.probability == 1.0))[where].all()
    assert (first != second)[where].all()
    assert 0 < better[where].sum() < where.sum(), "every pair lies the same way round"


def test_concatenation_pads_to_the_widest():
    narrow, wide = judged(size=2), with_judged_pairs(judged(size=4), ["q"] * 3, 2, 0)
    both = concatenate([narrow, wide])
    assert both.doc_rows.shape == (6, 4)
    assert both.first.shape == (6, 2)
    assert (both.doc_rows[:3, 2:] == -1).all()
    assert (both.first[:3] == -1).all()
    assert (both.doc_rows[3:] == wide.doc_rows).all()


def test_saved_lists_are_the_same_lists(tmp_path):
    lists = with_judged_pairs(judged(), ["q0", "q0", "q1"], 2, 0)
    lists.save(tmp_path)
    assert Lists.load(tmp_path).digest == lists.digest
    other = lists.replace(labels=lists.labels + 1)
    assert other.digest != lists.digest


def test_a_label_that_is_no_number_is_refused():
    lists = judged()
    labels = lists.labels.copy()
    labels[1, 0] = np.inf
    with pytest.raises(UserError, match="list 1"):
        lists.replace(labels=labels)


def test_the_dev_side_is_a_property_of_the_name():
    names = [f"query-{i}" for i in range(2000)]
    dev = split_by_hash(names, 0.1)
    assert 0.07 < dev.mean() < 0.13
    assert (split_by_hash(names[::-1], 0.1)[::-1] == dev).all()
    # A larger share only adds names.
    assert (split_by_hash(names, 0.2) >= dev).all()


def test_a_recipe_may_name_every_sampling():
    import typing

    from distill_jax.lists.building import SAMPLINGS
    from distill_jax.recipe.examples import FromTeacher

    named = typing.get_args(typing.get_type_hints(FromTeacher)["sampling"])
    assert set(named) == set(SAMPLINGS)
