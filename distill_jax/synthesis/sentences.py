"""Sentences of a text, without cutting at abbreviations, numbers, lists or code."""

from __future__ import annotations

import re
import unicodedata

# Words whose full stop seldom ends a sentence. Lower case, without the last stop.
_TITLES = "dr mr mrs ms prof st sr jr gen col sgt capt lt rev hon pres gov sen rep"
_LATIN = "vs e.g i.e eg ie cf approx ca ed eds viz resp incl z.b bzw usw d.h u.a bsp nr"
_FIRMS = "dept univ inc ltd co corp bros assn ave blvd rd mt ft u.s u.k u.n d.c"
_DATES = "jan feb mar apr jun jul aug sep sept oct nov dec ph.d m.d b.a m.a b.sc m.sc"
_ABBREVIATIONS = frozenset(" ".join((_TITLES, _LATIN, _FIRMS, _DATES)).split())
# These only before a number: "no. 5", "fig. 2".
_NUMBERED = frozenset(
    ("no", "nos", "vol", "vols", "p", "pp", "fig", "figs", "eq", "eqs", "sec", "ch")
)
# A stop with what may close it, then a blank (none is needed after CJK stops).
_STOP = re.compile(
    r"[.!?\u2026]+[\"'\u201d\u2019)\]]*(?=\s)|[\u3002\uff01\uff1f]+[\u300d\u300f\u201d]*"
)
_LIST_ITEM = re.compile(
    r"^\s*(?:[-*+\u2022\u2023\u25e6]|\(?\d{1,3}[.)]|\(?[a-zA-Z][.)])\s+"
)
_CODE_LINE = re.compile(
    r"^\s*(?:>>>|\.\.\.(?:\s|$)|\$ |#!|import \w|from \w+ import|def \w+\("
    r"|class \w+[(:]|return\b|@\w+|</?\w+[^>]*>\s*$)|[;{}]\s*$|^\s*[\w.\[\]]+\s*=\s*\S"
)
_FENCE = re.compile(r"^\s*(?:```|~~~)")
_SYMBOLS = frozenset("{}[]()<>=;|\\/_*#$%^&~`@+")


def sentences(text: str) -> list[str]:
    """The sentences of a text in order, blanks squeezed; code lines are left out.

    Blank lines and list items end a sentence; other line ends are blanks.
    """
    found: list[str] = []
    for block in _blocks(text):
        found.extend(_split(" ".join(block.split())))
    return found


def looks_like_code(line: str) -> bool:
    """True for prompts, statements and lines that are mostly symbols."""
    if _CODE_LINE.search(line):
        return True
    dense = [c for c in line if not c.isspace()]
    return len(dense) >= 8 and sum(c in _SYMBOLS for c in dense) > 0.2 * len(dense)


def words(text: str) -> int:
    """Length in words; where words are not spaced, two characters count as one."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text if not c.isascii())
    return len(text.split()) + wide // 2


def _blocks(text: str) -> list[str]:
    """Paragraphs and list items, code left out."""
    blocks: list[str] = []
    lines: list[str] = []
    fenced = False

    def close() -> None:
        if lines:
            blocks.append(" ".join(lines))
            lines.clear()

    for line in text.splitlines():
        if _FENCE.match(line):
            fenced = not fenced
            close()
            continue
        if fenced or not line.strip() or looks_like_code(line):
            close()
            continue
        item = _LIST_ITEM.match(line)
        if item:
            close()
            line = line[item.end() :]
        elif lines and _heading(lines[-1]) and line.strip()[0].isupper():
            close()
        lines.append(line.strip())
    close()
    return blocks


def _heading(line: str) -> bool:
    """A short line without a stop, before one that begins with a capital."""
    return len(line) < 50 and line[-1] not in ".,;:-!?\u2026"


def _split(block: str) -> list[str]:
    caseless = block == block.lower()
    found, start = [], 0
    for stop in _STOP.finditer(block):
        if _ends_sentence(block, start, stop, caseless):
            found.append(block[start : stop.end()])
            start = stop.end()
    found.append(block[start:])
    stripped = (_LIST_ITEM.sub("", sentence).strip() for sentence in found)
    return [sentence for sentence in stripped if any(c.isalnum() for c in sentence)]


def _ends_sentence(block: str, start: int, stop: re.Match, caseless: bool) -> bool:
    mark = stop.group()
    after = block[stop.end() :].lstrip()
    if mark[0] in "\u3002\uff01\uff1f" or not after:
        return True
    # The next sentence begins with a capital, a number, a quote, another script ...
    if after[0].islower() and not caseless:
        return False
    before = block[start : stop.start()].split()
    if mark != "." or not before or block[stop.start() - 1].isspace():
        return True
    word = before[-1].lstrip("([\"'\u201c\u2018").lower()
    if word in _ABBREVIATIONS or (word in _NUMBERED and after[0].isdigit()):
        return False
    if len(word) == 1 and word.isalpha() and word != "i" and not caseless:
        return False  # an initial: J. Smith
    # "1. Introduction": a number alone before its stop is a label.
    return not (len(before) == 1 and word.rstrip(".").isdigit())
