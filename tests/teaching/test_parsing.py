"""Replies to orders: RankGPT's cases, repairs by kind, and what must never be one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_jax.teaching.parsing import (
    mean_order,
    parse_ranking,
    parse_scores,
)
from distill_jax.teaching.windows import chunks, kendall_tau, windows


def test_ours_differs_from_rankgpts_where_it_is_wrong(cases):
    found = cases["rankgpt_parse"]
    ours = [
        parse_ranking(reply, n)
        for reply, n in zip(found["inputs"]["responses"], found["inputs"]["n"])
    ]
    expected = [list(order) for order in found["expected"]["order_0based"]]
    # A refusal is a failure, and a numbered list is read by its identifiers.
    expected[3], expected[4] = None, [2, 0, 1]
    assert [r.order and list(r.order) for r in ours] == expected
    assert ours[0].repairs == {}
    assert ours[1].repairs == {"duplicate": 1, "missing": 2}
    assert ours[2].repairs == {"unknown": 1, "missing": 2}
    assert ours[3].failure == "no identifiers"
    assert ours[4].repairs == {}
    assert ours[5].repairs == {}
    assert ours[6].repairs == {"missing": 8}
    assert ours[7].repairs == {"unknown": 1, "missing": 1}


@pytest.mark.parametrize(
    ("reply", "order", "repairs"),
    [
        ("[3]>[1]>[2]", (2, 0, 1), {}),
        ("Sure! The order is: [3] > [1] > [2].", (2, 0, 1), {"prose": 1}),
        ("[1] is on topic.\n[3] > [1] > [2]", (2, 0, 1), {"prose": 1}),
        ("[1] > [2]\nCorrection: [3] > [2] > [1]", (2, 1, 0), {"prose": 1}),
        ("<think>[1] > [2] > [3]</think>[3] > [1] > [2]", (2, 0, 1), {}),
        ("no tag</think>\n\n[2] > [1] > [3]", (1, 0, 2), {}),
        ("**[2]** > **[1]** > **[3]**", (1, 0, 2), {}),
        ("```\n[2] > [1] > [3]\n```", (1, 0, 2), {}),
        ("[2, 1, 3]", (1, 0, 2), {}),
        ("[2], [1], [3]", (1, 0, 2), {}),
        ("2 > 1 > 3", (1, 0, 2), {}),
        ("2\n1\n3\n", (1, 0, 2), {}),
        ("2, 1, 3", (1, 0, 2), {}),
        ("Document 2, Document 1, Document 3", (1, 0, 2), {}),
        ("<Document2> <Document1> <Document3>", (1, 0, 2), {}),
        ("[Document 2] > [Document 1] > [Document 3]", (1, 0, 2), {}),
        ("［２］ ＞ ［１］ ＞ ［３］", (1, 0, 2), {}),
        ("【2】 > 【1】 > 【3】", (1, 0, 2), {}),
        ("- [2]\n- [1]\n- [3]", (1, 0, 2), {}),
        ("[2] 0.9\n[1] 0.5\n[3] 0.0", (1, 0, 2), {"prose": 1}),
        ("|1|[2]|0.9|\n|2|[1]|0.5|\n|3|[3]|0.1|", (1, 0, 2), {"prose": 1}),
        ("At least two are relevant to it: [2] > [1] > [3]", (1, 0, 2), {"prose": 1}),
        ("From most to least relevant: [2] > [1] > [3]", (1, 0, 2), {"prose": 1}),
        ("[1] > [2] > [3]\n<answer>[2] > [1]</answer>", (1, 0, 2), {"missing": 1}),
        ("[2] > [1] > [3]\nThe initial one: [1] > [2] > [3]", (1, 0, 2), {"prose": 1}),
        ("Best: [2] > [1] > [3]; reversed: [3] > [1] > [2]", (1, 0, 2), {"prose": 1}),
        ("[2] > [1] > [3], not [1] > [2] > [3]", (1, 0, 2), {"prose": 1}),
        ("My original answer: [2] > [1] > [3]", (1, 0, 2), {"prose": 1}),
        ("[2] > [1] > [3]<|eot_id|>assistant\n\n[1] > [2] > [3]", (1, 0, 2), {}),
        ("<|im_start|>[2] > [1] > [3]<|im_end|>", (1, 0, 2), {}),
        ("[2] > [1] > [3]</s>[3] > [1] > [2]", (1, 0, 2), {}),
        ("Rank 1: [2]\nRank 2: [1]\nRank 3: [3]", (1, 0, 2), {"prose": 1}),
        ("1. Passage 1\n2. Passage 2\n3. Passage 3", (0, 1, 2), {}),
        ("[2] (score 9)\n[1] (score 5)\n[3] (score 1)", (1, 0, 2), {"prose": 1}),
        ("[2] (rank 1), [1] (rank 2), [3] (rank 3)", (1, 0, 2), {"prose": 1}),
        ("Ascending order of rank: [2] > [1] > [3]", (1, 0, 2), {"prose": 1}),
        ("I cannot rank all surely: [2] > [1] > [3]", (1, 0, 2), {"prose": 1}),
        ("[2] > [2] > [9]", (1, 0, 2), {"duplicate": 1, "unknown": 1, "missing": 2}),
    ],
)  # fmt: skip
def test_forms_and_repairs(reply, order, repairs):
    found = parse_ranking(reply, 3)
    assert (found.order, dict(found.repairs), found.failure) == (order, repairs, "")


@pytest.mark.parametrize(
    ("reply", "failure"),
    [
        (None, "no reply"),
        ("", "empty"),
        (" \n ", "empty"),
        ("I cannot rank these.", "no identifiers"),
        ("In 2024, 3 of 5 studies found 2 effects.", "no identifiers"),
        ("first, second, third", "no identifiers"),
        ("B > A > C", "no identifiers"),
        ("[0] > [9] > [77]", "unknown identifiers only"),
        ("I will not rank [1].", "identifiers in passing"),
        ("Document 2 says nothing of it.", "identifiers in passing"),
        ("<think>[1] > [2] > [3]", "cut while thinking"),
        ("<think>hm</think>", "empty"),
        ("1. 3\n2. 1\n3. 2", "no identifiers"),
        ('{"error": "context length 4096 exceeded"}', "no identifiers"),
        ("ERROR::reduce_length", "no identifiers"),
        ("The score is 0.5 and 3.14", "no identifiers"),
        ("[2] > [3 > [1] > [4] > [5]", "identifiers outside the chain"),
        ("[2] > [3] > [1] > [4] > [5", "unclosed brackets"),
        ("[2] > [1] > [4] > 3] > 5]", "unclosed brackets"),
        ("[0] > [4] > [1] > [3] > [2]", "identifiers from 0"),
        ("[0, 4, 1, 3, 2]", "identifiers from 0"),
        ("[1] < [2] < [3] < [5] < [4]", "written from worst to best"),
        ("[1] <= [2] <= [3] < [5]", "written from worst to best"),
        ("[1]: 3\n[2]: 1\n[3]: 2", "numbers of documents, not an order"),
        ("[1] = 0.2, [2] = 0.9, [3] = 0.5", "numbers of documents, not an order"),
        ("[1] ranks 2, [2] ranks 1, [3] ranks 3", "numbers of documents, not an order"),
        ("[1] (3rd), [2] (1st), [3] (2nd)", "numbers of documents, not an order"),
        ("|[1]|3|\n|[2]|1|\n|[3]|2|", "numbers of documents, not an order"),
        ("[1] - 0.2\n[2] - 0.9\n[3] - 0.5", "numbers of documents, not an order"),
        ("[1] – 3, [2] – 2, [3] – 1", "numbers of documents, not an order"),
        ("Least to most relevant: [1] > [2] > [3] > [5]", "written from worst to best"),
        ("Worst first: [1], [2], [3]", "written from worst to best"),
        ("lowest relevance to the highest: [1] [2] [3]", "written from worst to best"),
        ("[3] > [2] > ... > [1]", "identifiers outside the chain"),
        ("[3] > [2] > ...", "an order with gaps"),
        ("[3] > … > [2] > … > [1]", "an order with gaps"),
        ("In ascending order of relevance: [3] > [1]", "written from worst to best"),
        ("[3] > [1] (by increasing relevance)", "written from worst to best"),
        ("[1] - Rank 2\n[2] - Rank 1\n[3] - Rank 3",
         "numbers of documents, not an order"),
        ("[1] is ranked third, [2] first, [3] last",
         "numbers of documents, not an order"),
        ("[1] (Score: 1)\n[2] (Score: 5)\n[3] (Score: 9)",
         "numbers of documents, not an order"),
        ('[{"passage": "[1]", "score": 0.1}, {"passage": "[2]", "score": 0.9}, '
         '{"passage": "[3]", "score": 0.5}]', "numbers of documents, not an order"),
        ("[1] (irrelevant)\n[2] (relevant)\n[3] (vague)",
         "documents in the order of reading"),
        ("Document 1 is off topic, Document 2 is best, Document 3 names it",
         "documents in the order of reading"),
        ("I cannot rank [1], [2], [3] without more context.", "a refusal"),
        ("Sorry, I can't assist with ranking [1] > [2] > [3].", "a refusal"),
        ("<reasoning_content>[1] > [2] > [3] > [4] > [5]", "cut while thinking"),
        ("<my:scratchpad_1>[1] > [2] > [3] > [4] > [5]", "cut while thinking"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_a_failure_and_never_an_order(reply, failure):
    found = parse_ranking(reply, 5)
    assert found.order is None
    assert found.failure == failure


@given(st.text(), st.integers(1, 12))
def test_any_text_gives_a_whole_order_or_none(reply, count):
    found = parse_ranking(reply, count)
    assert bool(found.failure) == (found.order is None)
    if found.order is not None:
        assert sorted(found.order) == list(range(count))


@given(st.lists(st.integers(-3, 15), max_size=20), st.integers(1, 12))
def test_repairs_add_up(numbers, count):
    found = parse_ranking(" > ".join(f"[{n}]" for n in numbers), count)
    if found.order is None or min(numbers) < 0 or len(numbers) < 2:
        return
    repairs = dict.fromkeys(("duplicate", "unknown", "missing"), 0) | found.repairs
    kept = len(numbers) - repairs["duplicate"] - repairs["unknown"]
    assert kept + repairs["missing"] == count


@given(st.permutations(range(8)))
def test_a_correct_reply_is_never_repaired(order):
    found = parse_ranking(" > ".join(f"[{place + 1}]" for place in order), 8)
    assert (found.order, found.repairs) == (tuple(order), {})


@pytest.mark.parametrize(
    ("reply", "values"),
    [
        ("[0.1, 0.9, 1]", (0.1, 0.9, 1.0)),
        ("Scores: [0.1, .9, 1.0]", (0.1, 0.9, 1.0)),
        ("[0.5, 0.5, 0.5] no: [0.1, 0.9, 1.0]", (0.1, 0.9, 1.0)),
        ("<think>[1, 1, 1]</think>[0, 0, 1]", (0.0, 0.0, 1.0)),
        ("[1]: 0.1\n[2]: 0.9\n[3]: 1", (0.1, 0.9, 1.0)),
        ("Document 2: 0.9\nDocument 1: 0.1\nDocument 3: 1e-3", (0.1, 0.9, 0.001)),
    ],
)
def test_scores(reply, values):
    assert parse_scores(reply, 3).values == values


@pytest.mark.parametrize(
    ("reply", "failure"),
    [
        (None, "no reply"),
        ("none of them", "no scores"),
        ("[0.1, 0.2]", "another number of scores"),
        ("[0.1, 0.2, 0.3, 0.4]", "another number of scores"),
        ("[1]: 0.1\n[2]: 0.9", "another number of scores"),
        ("[10, 20, 30]", "scores outside 0-1"),
        ("[-0.1, 0.2, 0.3]", "scores outside 0-1"),
        ("[]", "no scores"),
    ],
)
def test_scores_are_never_guessed(reply, failure):
    found = parse_scores(reply, 3)
    assert (found.values, found.failure) == (None, failure)


def test_windows_equal_the_corrected_loop(cases):
    found = cases["sliding_windows"]
    for (start, end, window, step), expected in zip(
        found["inputs"]["start_end_window_step"], found["expected"]["rank_llm_sync"]
    ):
        assert start == 0
        assert [list(w) for w in windows(end, window, step)] == expected


@given(st.integers(2, 150), st.integers(2, 40), st.data())
def test_windows_cover_every_rank_and_meet(count, window, data):
    step = data.draw(st.integers(1, window))
    found = windows(count, window, step)
    assert found[-1][0] == 0
    assert found[0][1] == count
    covered = {rank for start, end in found for rank in range(start, end)}
    assert covered == set(range(count))
    assert all(0 < end - start <= window for start, end in found)


def test_chunks_cover_each_rank_once():
    assert chunks(45, 20) == [(0, 20), (20, 40), (40, 45)]
    assert chunks(0, 20) == []
    assert windows(1, 20, 10) == windows(0, 20, 10) == []


def test_mean_order_and_agreement():
    from scipy.stats import kendalltau

    assert mean_order([[0, 1, 2], [0, 2, 1]], 3) == (0, 1, 2)
    assert mean_order([[2, 1, 0], [2, 0, 1], [0, 2, 1]], 3) == (2, 0, 1)
    first, second = [3, 1, 4, 0, 2], [0, 1, 2, 3, 4]
    ranks = [[order.index(x) for x in range(5)] for order in (first, second)]
    assert kendall_tau(first, second) == pytest.approx(kendalltau(*ranks)[0])
