"""Question answering: answer strings in passages, and answers against answers."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError

# A token is a run of letters, digits and marks, or one other visible character, as in
# DPR's SimpleTokenizer; in the standard library's words, after NFD: letters and digits
# are \w without _, and marks follow their letter.
_PUNCTUATION = frozenset(string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def accepted(queries: Any) -> dict[str, list[str]]:
    """{query id: its answers} of the queries that have some.

    Raises:
        UserError: none has.
    """
    found = {
        query_id: list(texts)
        for query_id, texts in zip(queries.ids, queries.answers or ())
        if texts
    }
    if not found:
        raise UserError(
            f"{queries.name or 'these queries'} have no answers to compare with",
            'give questions with "answers": QUERIES=jsonl:FILE or tfds:NAME',
        )
    return found


def tokens(text: str) -> list[str]:
    """Uncased tokens of a text in NFD, as DPR and Contriever match answers."""
    found: list[str] = []
    word: list[str] = []
    for character in unicodedata.normalize("NFD", text):
        category = unicodedata.category(character)
        if category[0] in "LNM":
            word.append(character)
            continue
        if word:
            found.append("".join(word).lower())
            word = []
        if category[0] not in "ZC":
            found.append(character)
    if word:
        found.append("".join(word).lower())
    return found


def has_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether one of the answers is in the text, as contiguous tokens."""
    inside = tokens(text)
    places: dict[str, list[int]] = {}
    for place, token in enumerate(inside):
        places.setdefault(token, []).append(place)
    for answer in answers:
        wanted = tokens(answer)
        if wanted and any(
            inside[place : place + len(wanted)] == wanted
            for place in places.get(wanted[0], ())
        ):
            return True
    return False


def hit_rates(
    run: Any,
    answers: Mapping[str, Sequence[str]],
    collection: Any,
    ks: Sequence[int] = (1, 5, 10, 20),
) -> dict[str, dict[str, float]]:
    """{"HR@5": {query id: 1.0 when an answer is in the top 5, else 0.0}, ...}.

    Questions without answers are left out; a question that the run lacks counts 0.
    The titles count: passages are ``title text``.
    """
    found = {f"HR@{k}": dict.fromkeys(answers, 0.0) for k in ks}
    asked = run.on(collection)
    for query_id, rows in zip(asked.query_ids, asked.rows):
        if query_id not in answers:
            continue
        for rank, row in enumerate(rows[: max(ks)], 1):
            text = collection.full_text(int(row)) if row >= 0 else ""
            if has_answer(text, answers[query_id]):
                for k in ks:
                    if rank <= k:
                        found[f"HR@{k}"][query_id] = 1.0
                break
    return found


def squad_normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single blanks (SQuAD 1.1's script)."""
    text = "".join(c for c in text.lower() if c not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, answers: Iterable[str]) -> float:
    """1.0 when the prediction is one of the answers after normalisation."""
    said = squad_normalise(prediction)
    return float(any(said == squad_normalise(answer) for answer in answers))


def f1(prediction: str, answers: Iterable[str]) -> float:
    """Token F1 after normalisation, the best over the answers."""
    return max((_f1(prediction, answer) for answer in answers), default=0.0)


def evaluate_answers(
    predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """{"EM": {query id: value}, "F1": {...}}; a question not answered counts 0."""
    return {
        name: {
            query_id: measure(predictions.get(query_id, ""), expected)
            for query_id, expected in answers.items()
        }
        for name, measure in (("EM", exact_match), ("F1", f1))
    }


def mean(values: Mapping[str, float]) -> float:
    """The mean over queries; nan for none."""
    return float(np.mean(list(values.values()))) if values else float("nan")


def _f1(prediction: str, answer: str) -> float:
    said, expected = (
        squad_normalise(prediction).split(),
        squad_normalise(answer).split(),
    )
    if not said or not expected:
        return float(said == expected)
    common = sum((Counter(said) & Counter(expected)).values())
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(expected)
    return 2 * precision * recall / (precision + recall)
