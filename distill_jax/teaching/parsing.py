"""From what an LLM says to an order or to scores, or to a counted reason for neither.

A reply is read by the first of these forms that it has:

1. a chain of bracketed numbers, ``[2] > [1] > [3]``, wherever it stands (the longest);
2. one bracket with a list, ``[2, 1, 3]``;
3. bracketed numbers anywhere, ``1. [2]\\n2. [1]``, in their order;
4. ``Document2, Document1``, also ``<Document 2>`` and ``Passage 2``;
5. numbers and separators and nothing else, or a chain ``2 > 1 > 3``.

Numbers in prose are never read as identifiers. Forms 3 to 5 must name at least half of
the documents: one in passing, as in "I cannot rank [1]", is not a ranking.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

REPAIRS = ("prose", "duplicate", "unknown", "missing")

_ID = r"\[\s*(?:Document|Doc|Passage)?\s*\d{1,6}\s*\]"
_CHAIN = re.compile(rf"{_ID}(?:\s*(?:>+|≻|→|->|=>|,|;)\s*{_ID})+", re.IGNORECASE)
_BRACKETED = re.compile(_ID, re.IGNORECASE)
_LIST = re.compile(r"\[\s*\d{1,6}(?:\s*[,>;]\s*\d{1,6})+\s*\]")
_NAMED = re.compile(r"<?\b(?:Document|Doc|Passage)\s*#?\s*(\d{1,6})\b>?", re.IGNORECASE)
_PLAIN_CHAIN = re.compile(r"(?<![\d.])\d{1,6}(?:\s*>+\s*\d{1,6})+(?![\d.])")
_PLAIN = re.compile(r"[\s,;>]*\d{1,6}(?:[\s,;>]+\d{1,6})*[\s,;>.]*")
_NUMBER = re.compile(r"\d{1,6}")
_SCORE = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
_SCORES = re.compile(rf"\[\s*(?:{_SCORE}\s*(?:,\s*)?)*\]")
_LINE_SCORE = re.compile(
    rf"^\W{{0,3}}(?:Document|Doc|Passage)?\s*\[?\s*(\d{{1,6}})\s*\]?\s*[:=]\s*({_SCORE})"
    r"\s*[,;]?\s*$",
    re.IGNORECASE | re.MULTILINE,
)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How a reply orders its documents.

    Attributes:
        order: positions from 0, best first, each of ``count`` once; None of a failure.
        repairs: how often each kind of repair was made: "prose" (there was more than
            the ranking), "duplicate" and "unknown" (identifiers dropped), "missing"
            (documents appended in first-stage order).
        failure: why there is no order, "" when there is one.
    """

    order: tuple[int, ...] | None
    repairs: Mapping[str, int] = dataclasses.field(default_factory=dict)
    failure: str = ""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Numbers in 0-1 for each document in its order; None and a reason of a failure."""

    values: tuple[float, ...] | None
    failure: str = ""


def parse_ranking(reply: str | None, count: int) -> Ranking:
    """An order of ``count`` documents, repaired where that is sure, or a failure."""
    text, failure = _answer(reply)
    if failure:
        return Ranking(None, failure=failure)
    numbers, rest, loose = _identifiers(text)
    if not numbers:
        return Ranking(None, failure="no identifiers")
    repairs: Counter[str] = Counter()
    if any(character.isalnum() for character in rest):
        repairs["prose"] = 1
    seen: dict[int, None] = {}
    for number in numbers:
        if not 1 <= number <= count:
            repairs["unknown"] += 1
        elif number - 1 in seen:
            repairs["duplicate"] += 1
        else:
            seen[number - 1] = None
    if not seen:
        return Ranking(None, failure="unknown identifiers only")
    if loose and 2 * len(seen) < count:
        return Ranking(None, failure="identifiers in passing")
    missing = [place for place in range(count) if place not in seen]
    if missing:
        repairs["missing"] = len(missing)
    return Ranking((*seen, *missing), dict(repairs))


def parse_scores(reply: str | None, count: int) -> Scores:
    """``count`` numbers in 0-1: the last list of a reply, or a line for each document.

    Nothing is repaired: a number too few leaves unknown whose is missing.
    """
    text, failure = _answer(reply)
    if failure:
        return Scores(None, failure)
    lists = [found.group() for found in _SCORES.finditer(text)]
    lists = [[float(n) for n in re.findall(_SCORE, found)] for found in lists]
    lists = [found for found in lists if found]
    lines = {int(n): float(score) for n, score in _LINE_SCORE.findall(text)}
    right = [found for found in lists if len(found) == count]
    if set(lines) == set(range(1, count + 1)):
        values = [lines[number] for number in range(1, count + 1)]
    elif right:
        values = right[-1]
    elif not lists and not lines:
        return Scores(None, "no scores")
    else:
        return Scores(None, "another number of scores")
    if not all(0.0 <= value <= 1.0 for value in values):
        return Scores(None, "scores outside 0-1")
    return Scores(tuple(values))


def rankgpt_parse(reply: str, count: int) -> tuple[int, ...]:
    """As RankGPT reads replies: any digits are identifiers, and nothing ever fails.

    Only to measure against: numbers of a numbered list win over the identifiers, and a
    refusal becomes the first stage's order.
    """
    numbers = [int(n) - 1 for n in re.sub(r"[^0-9]", " ", reply).split()]
    kept = dict.fromkeys(n for n in numbers if 0 <= n < count)
    return (*kept, *(place for place in range(count) if place not in kept))


def _answer(reply: str | None) -> tuple[str, str]:
    """What comes after the thinking, in plain characters; and why it is no answer."""
    if reply is None:
        return "", "no reply"
    # Compatibility forms: full-width digits and brackets become the plain ones.
    text = unicodedata.normalize("NFKC", reply)
    opened, closed = text.rfind("<think>"), text.rfind("</think>")
    if opened > closed:
        return "", "cut while thinking"
    if closed >= 0:
        text = text[closed + len("</think>") :]
    text = text.replace("**", "").replace("`", "").translate(_BRACKETS)
    return (text, "") if text.strip() else ("", "empty")


_BRACKETS = str.maketrans("【】〔〕", "[][]")


def _identifiers(text: str) -> tuple[list[int], str, bool]:
    """Numbers in their order, the text around them, and whether they stand loosely."""
    chains = list(_CHAIN.finditer(text)) + list(_LIST.finditer(text))
    if chains:
        # The longest, and of equals the last: models correct themselves at the end.
        best = max(chains, key=lambda c: (len(set(_ints(c.group()))), c.start()))
        rest = text[: best.start()] + text[best.end() :]
        return _ints(best.group()), rest, False
    for form in (_BRACKETED, _NAMED):
        found = [match.group() for match in form.finditer(text)]
        if found:
            numbers = [n for part in found for n in _ints(part)]
            rest = form.sub(" ", text)
            return numbers, re.sub(r"^\s*\d+\s*[.):]", "", rest, flags=re.M), True
    plain = list(_PLAIN_CHAIN.finditer(text))
    if plain:
        best = max(plain, key=lambda c: (len(set(_ints(c.group()))), c.start()))
        return _ints(best.group()), text[: best.start()] + text[best.end() :], True
    if _PLAIN.fullmatch(text):
        return _ints(text), "", True
    return [], text, True


def _ints(text: str) -> list[int]:
    return [int(number) for number in _NUMBER.findall(text)]


def mean_order(orders: Sequence[Sequence[int]], count: int) -> tuple[int, ...]:
    """The order by mean rank over several orders; ties keep first-stage order."""
    total = [0] * count
    for order in orders:
        for rank, place in enumerate(order):
            total[place] += rank
    return tuple(sorted(range(count), key=lambda place: (total[place], place)))
