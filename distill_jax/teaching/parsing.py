"""Parses an LLM's reply into an order or scores, or into a counted failure reason.

A reply is read by the first of these forms that it has:

1. a chain of bracketed numbers, ``[2] > [1] > [3]``, anywhere (the longest);
2. one bracket with a list, ``[2, 1, 3]``;
3. bracketed numbers anywhere, ``1. [2]\\n2. [1]``, in their order;
4. ``Document2, Document1``, also ``<Document 2>`` and ``Passage 2``;
5. numbers and separators and nothing else, or a chain ``2 > 1 > 3``.

Numbers in prose are never read as identifiers. A chain is an order only if no bracketed
number outside of it names a document that it lacks. Forms 3 to 5 must name at least
half of the documents: one in passing, as in "I cannot rank [1]", is not a ranking.
Documents that are described in the order in which they were shown are not ranked.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from distill_jax.text import replies
from distill_jax.text.replies import is_cut

REPAIRS = ("prose", "duplicate", "unknown", "missing")

# White space comes as single characters (``text.replies.answer``), and nothing here
# repeats what is optional: a search takes time in proportion to the reply.
_ID = r"\[\s?(?:(?:Document|Doc|Passage)\s?)?\d{1,6}\s?\]"
_BRACKETED = re.compile(_ID, re.IGNORECASE)
_BETWEEN = re.compile(r"\s?(?:>{1,8}|≻|→|->|=>|,|;)\s?")
_LIST = re.compile(r"\[\s?\d{1,6}(?:\s?[,>;]\s?\d{1,6})+\s?\]")
# Text that makes identifiers something other than an order of all documents.
_UNCLOSED = re.compile(
    r"\[\s?(?:Document|Doc|Passage)?\s?(\d{1,6})|(\d{1,6})\s?\]", re.I
)
_RISING = re.compile(r"\]\s?<{1,3}=?\s?\[")
_GAP = re.compile(r">\s?\.\.\.|\.\.\.\s?>")
_ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "last"]
_RATED = re.compile(
    r"\]['\"]? ?(?:[:=(|–—-]|is|was)? ?"
    r"(?:,? ?['\"]?(?:(?P<rank>ranks?|ranked|position|place)"
    r"|(?P<score>scores?|scored|rated|rating|relevance))['\"]? ?[:=]? ?)?"
    rf"#?(?P<number>\d{{1,6}}(?:\.\d{{1,6}})?|{'|'.join(_ORDINALS)})",
    re.IGNORECASE,
)
# What stands between identifiers of a numbered list.
_ENUMERATED = re.compile(
    r"(?:rank|position|place|passage|document|doc|no\.?)?\s?#?\d{1,6}(?:st|nd|rd|th)?\b",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"\b(?:cannot|can not|can['’]t|unable to|not able to|won['’]t)"
    r" (?:\w{1,20} ){0,2}(?:rank|order|sort|assist|help|determine|provide|comply)",
    re.IGNORECASE,
)
# Before a chain that is not the answer.
_OTHER_ORDER = re.compile(
    r"\b(?:initial|initially|original|input|previous|reverse|reversed|not|instead of"
    r"|rather than)\b[\w' ]{0,30}:?\s?\Z",
    re.IGNORECASE,
)
_WORST_FIRST = re.compile(
    r"\b(?:least|worst|lowest)\b[\w ]{0,24}\bto (?:the )?(?:most|best|highest)\b"
    r"|\b(?:least|worst)(?: relevant)? first\b"
    r"|\b(?:ascending|increasing) (?:order(?! of (?:the )?rank)|relevance|level)",
    re.IGNORECASE,
)
_NAMED = re.compile(r"<?\b(?:Document|Doc|Passage)\s?#?\s?(\d{1,6})\b>?", re.IGNORECASE)
_PLAIN_CHAIN = re.compile(r"(?<![\d.])\d{1,6}(?:\s?>{1,8}\s?\d{1,6})+(?![\d.])")
_PLAIN = re.compile(r"[\s\d,;>]*\.?\s?")
_NUMBER = re.compile(r"\d{1,6}")
_SCORE = r"[-+]?(?:\d{1,20}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][-+]?\d{1,3})?"
_SCORES = re.compile(r"\[([^\[\]]*)\]")
_LINE_SCORE = re.compile(
    rf"\W{{0,3}}(?:Document|Doc|Passage)?\s?\[?\s?(\d{{1,6}})\s?\]?\s?[:=]\s?({_SCORE})"
    r"\s?[,;]?\s?",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How a reply orders its documents.

    Attributes:
        order: positions from 0, best first, each of ``count`` once; None of a failure.
        repairs: count of each kind of repair: "prose" (there was more than
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


def parse_ranking(reply: str | None, count: int, *, cut: bool | None = None) -> Ranking:
    """An order of ``count`` documents, repaired where that is sure, or a failure.

    Args:
        cut: the endpoint ended the reply at its most tokens; None takes the reply's own
            mark (``text.replies.Reply``). A reply that was cut is an order only when
            its first identifiers are a whole bracketed chain, or list, of all documents
            and no other order follows: anything less may be a thought, or half of one.
    """
    text, failure = _answer(reply)
    if failure:
        return Ranking(None, failure=failure)
    if is_cut(reply) if cut is None else cut:
        return _cut_ranking(text, count)
    numbers, rest, form = _identifiers(text)
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
    if form == "loose" and 2 * len(seen) < count:
        return Ranking(None, failure="identifiers in passing")
    missing = [place for place in range(count) if place not in seen]
    if form == "chain":
        outside = [n for found in _BRACKETED.findall(rest) for n in _ints(found)]
        if any(n - 1 in missing for n in outside):
            # "[2] is best, then [1] > [3]": the chain is not the whole order.
            return Ranking(None, failure="identifiers outside the chain")
    broken = [int(opened or closed) for opened, closed in _UNCLOSED.findall(rest)]
    if any(n - 1 in missing for n in broken):
        return Ranking(None, failure="unclosed brackets")
    if set(numbers) == set(range(count)):
        return Ranking(None, failure="identifiers from 0")
    if _RISING.search(text) or _WORST_FIRST.search(rest):
        return Ranking(None, failure="written from worst to best")
    if form == "loose" and _rated_otherwise(list(_RATED.finditer(text)), len(seen)):
        return Ranking(None, failure="numbers of documents, not an order")
    if len(seen) > 1 and [*seen] == sorted(seen):
        if _REFUSED.search(rest):
            return Ranking(None, failure="a refusal")
        if form == "loose" and _described(text):
            return Ranking(None, failure="documents in the order of reading")
    if missing and _GAP.search(text):
        return Ranking(None, failure="an order with gaps")
    if missing:
        repairs["missing"] = len(missing)
    return Ranking((*seen, *missing), dict(repairs))


def _rated_otherwise(ratings: Sequence[re.Match[str]], count: int) -> bool:
    """Whether the numbers after the identifiers may give them another order.

    Ranks that rise and scores that fall do not. Numbers of which the reply does not
    say what they are may be either, but for fractions, which are scores.
    """
    if 2 * len(ratings) <= count:
        return False
    values = [
        float(_ORDINALS.index(word) + 1 if word in _ORDINALS else word)
        for word in (rating["number"].lower() for rating in ratings)
    ]
    if all(rating["rank"] for rating in ratings):
        return values != sorted(values)
    scores = all(rating["score"] for rating in ratings)
    scores |= any("." in rating["number"] for rating in ratings)
    return not (scores and values == sorted(values, reverse=True))


def _described(text: str) -> bool:
    """Whether words stand between the identifiers, other than of a numbered list."""
    found = [*_BRACKETED.finditer(text)] or [*_NAMED.finditer(text)]
    between = [text[a.end() : b.start()] for a, b in itertools.pairwise(found)]
    return any(c.isalpha() for part in between for c in _ENUMERATED.sub("", part))


def _cut_ranking(text: str, count: int) -> Ranking:
    chains = sorted(_chains(text), key=lambda chain: chain.start)
    whole = [
        chain for chain in chains if sorted(chain.numbers) == list(range(1, count + 1))
    ]
    first = _BRACKETED.search(text)
    orders = {chain.numbers for chain in whole}
    if len(orders) != 1 or (first and first.start() < whole[0].start):
        return Ranking(None, failure="cut at max_tokens")
    (numbers,) = orders
    rest = text[: whole[0].start] + text[whole[0].end :]
    repairs = {"prose": 1} if any(c.isalnum() for c in rest) else {}
    return Ranking(tuple(number - 1 for number in numbers), repairs)


def parse_scores(reply: str | None, count: int, *, cut: bool | None = None) -> Scores:
    """``count`` numbers in 0-1: the last list of a reply, or a line for each document.

    Nothing is repaired: a number too few leaves unknown whose is missing. Of a reply
    that was cut only one closed list of the right length, at its start, is read.
    """
    text, failure = _answer(reply)
    if failure:
        return Scores(None, failure)
    lists = list(filter(None, map(_numbers, _SCORES.findall(text))))
    right = [found for found in lists if len(found) == count]
    if is_cut(reply) if cut is None else cut:
        # A list in the midst of words may be a thought.
        if len({tuple(found) for found in right}) != 1 or not text.startswith("["):
            return Scores(None, "cut at max_tokens")
        lines = {}
    else:
        found = map(_LINE_SCORE.fullmatch, text.split("\n"))
        pairs = {(int(line[1]), float(line[2])) for line in found if line}
        lines = dict(pairs)
        if len(lines) < len(pairs):
            return Scores(None, "a document with two scores")
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


def _numbers(inside: str) -> list[float] | None:
    """The text between two brackets, if it is only numbers."""
    parts = inside.replace(",", " ").split()
    if not all(re.fullmatch(_SCORE, part) for part in parts):
        return None
    return [float(part) for part in parts]


def _answer(reply: str | None) -> tuple[str, str]:
    """The reply after the thinking part, without markup; or a failure reason."""
    text, failure = replies.answer(reply, plain=True)
    return text.replace("**", "").replace("`", "").translate(_BRACKETS), failure


_BRACKETS = str.maketrans("【】〔〕", "[][]")


class _Chain(NamedTuple):
    numbers: tuple[int, ...]
    start: int
    end: int


def _chains(text: str) -> list[_Chain]:
    """Identifiers that separators join, two or more, and lists in one bracket."""
    found = []
    part: list[re.Match] = []
    for match in (*_BRACKETED.finditer(text), None):
        between = text[part[-1].end() : match.start()] if part and match else ""
        if match and part and len(between) < 12 and _BETWEEN.fullmatch(between):
            part.append(match)
            continue
        if len(part) > 1:
            numbers = tuple(_ints("".join(one.group() for one in part)))
            found.append(_Chain(numbers, part[0].start(), part[-1].end()))
        part = [match] if match else []
    for match in _LIST.finditer(text):
        found.append(_Chain(tuple(_ints(match.group())), match.start(), match.end()))
    return found


def _identifiers(text: str) -> tuple[list[int], str, str]:
    """Numbers in their order, the text around them, and their form.

    The form is "chain" (bracketed and joined) or "loose".
    """
    chains = _chains(text)
    if chains:
        answers = [c for c in chains if not _OTHER_ORDER.search(text[: c.start][-80:])]
        chains = answers or chains
        # The longest, and of equals the last: models correct themselves at the end.
        best = max(chains, key=lambda c: (len(set(c.numbers)), c.start))
        rest = text[: best.start] + " " + text[best.end :]
        return list(best.numbers), rest, "chain"
    for form in (_BRACKETED, _NAMED):
        found = [match.group() for match in form.finditer(text)]
        if found:
            numbers = [n for part in found for n in _ints(part)]
            rest = form.sub(" ", text)
            rest = re.sub(r"^\s?\d{1,6}\s?[.):]", "", rest, flags=re.M)
            return numbers, rest, "loose"
    plain = list(_PLAIN_CHAIN.finditer(text))
    if plain:
        best = max(plain, key=lambda c: (len(set(_ints(c.group()))), c.start()))
        return _ints(best.group()), text[: best.start()] + text[best.end() :], "loose"
    if _PLAIN.fullmatch(text) and all(len(n) <= 6 for n in re.findall(r"\d+", text)):
        return _ints(text), "", "loose"
    return [], text, "loose"


def _ints(text: str) -> list[int]:
    return [int(number) for number in _NUMBER.findall(text)]


def mean_order(orders: Sequence[Sequence[int]], count: int) -> tuple[int, ...]:
    """The order by mean rank over several orders; ties keep first-stage order."""
    total = [0] * count
    for order in orders:
        for rank, place in enumerate(order):
            total[place] += rank
    return tuple(sorted(range(count), key=lambda place: (total[place], place)))
