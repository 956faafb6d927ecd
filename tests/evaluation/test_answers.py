from __future__ import annotations

import pytest

from distill_jax.collections.collection import Collection, Queries
from distill_jax.evaluation.answers import (
    accepted,
    evaluate_answers,
    exact_match,
    f1,
    has_answer,
    hit_rates,
    squad_normalise,
    tokens,
)
from distill_jax.io.errors import UserError
from distill_jax.runs.run import Run


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("She was born in Warsaw, Poland.", "warsaw", True),
        ("She was born in Warsaw, Poland.", "Warsaw Poland", False),  # not contiguous
        ("She was born in Warsaw, Poland.", "Warsaw, Poland", True),
        ("Warsawa", "Warsaw", False),  # whole tokens only
        ("Caf\u00e9 Central", "cafe\u0301", True),  # composed and decomposed
        ("Cafe Central", "caf\u00e9", False),  # the mark is part of the token
        ("no. 12-13", "12 - 13", True),
        ("anything", "", False),
        ("\u4e1c\u4eac \u5927\u962a", "\u5927\u962a", True),
    ],
)
def test_answer_strings(text, answer, found):
    assert has_answer(text, [answer]) is found
    assert has_answer(text, ["no such answer", answer]) is found


def test_tokens():
    assert tokens("It's $5.00\tOK\u200b") == ["it", "'", "s", "$", "5", ".", "00", "ok"]


def test_hit_rates():
    texts = ["nothing here", "the tower is in Paris", "Paris again"]
    collection = Collection(["a", "b", "c"], texts, titles=["", "", "Rome"])
    run = Run.from_lists(
        ("q1", "q2", "other"),
        [[("a", 3.0), ("b", 2.0), ("c", 1.0)]] * 3,
        doc_ids=collection.ids,
    )
    answers = {"q1": ["Paris"], "q2": ["London", "Rome"], "q3": ["x"]}
    assert hit_rates(run, answers, collection, (1, 2, 3)) == {
        "HR@1": {"q1": 0.0, "q2": 0.0, "q3": 0.0},
        "HR@2": {"q1": 1.0, "q2": 0.0, "q3": 0.0},
        "HR@3": {"q1": 1.0, "q2": 1.0, "q3": 0.0},
    }


def test_squad_normalisation():
    assert squad_normalise("The  Eiffel-Tower, an icon!") == "eiffeltower icon"


def test_exact_match_and_f1():
    assert exact_match("The Beatles!", ["beatles"]) == 1.0
    assert exact_match("Beatles band", ["beatles"]) == 0.0
    # said: in city of paris (4 tokens), expected: paris; common 1, P 1/4, R 1.
    assert f1("in the city of Paris", ["Paris"]) == pytest.approx(2 * 0.25 / 1.25)
    assert f1("in the city of Paris", ["x", "city of Paris"]) == pytest.approx(
        2 * (3 / 4) / (7 / 4)
    )
    assert f1("a", [""]) == 1.0  # both are nothing after normalisation
    assert f1("word", [""]) == 0.0


def test_unanswered_questions_count():
    assert evaluate_answers({"q1": "Paris"}, {"q1": ["paris"], "q2": ["Rome"]}) == {
        "EM": {"q1": 1.0, "q2": 0.0},
        "F1": {"q1": 1.0, "q2": 0.0},
    }


def test_queries_with_answers_are_found_by_id():
    queries = Queries(["q1", "q2"], ["who", "when"], answers=[["a", "b"], []])
    assert accepted(queries) == {"q1": ["a", "b"]}
    with pytest.raises(UserError, match="no answers to compare with"):
        accepted(Queries(["q1"], ["who"]))
