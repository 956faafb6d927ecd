"""What a generator answers, to a query or to a counted reason for having none."""

from __future__ import annotations

import re

from distill_jax.text import replies as text_replies

_QUOTES = {
    '"': '"',
    "'": "'",
    "\u201c": "\u201d",
    "\u2018": "\u2019",
    "\u00ab": "\u00bb",
}


# Decoration of a query: its name, a number or a bullet, marks of bold type.
_AROUND = re.compile(
    r"(?:(?:search )?(?:query|question)|q)\s?(?:\d{1,2}\s?)?:\s"
    r"|\d{1,2}[.)]\s|[-*\u2022]\s",
    re.IGNORECASE,
)


def first_line(reply: str) -> str:
    """The first line that is not empty, tabs to blanks, one pair of quotes off.

    Names, numbers and marks before it are taken off; a line that announces what
    follows ("Here is a query:") and a fence are none.
    """
    for line in reply.splitlines():
        line = " ".join(line.split()).replace("**", "")
        if line.startswith("```") or line.endswith(":"):
            continue
        line = line[found.end() :] if (found := _AROUND.match(line)) else line
        if len(line) >= 2 and _QUOTES.get(line[0]) == line[-1]:
            line = line[1:-1].strip()
        if line:
            return line
    return ""


def read(reply: str | None, max_words: int = 30) -> tuple[str | None, str]:
    """``(query, "")``, or ``(None, reason)``: "failed", "empty", "too long", "cut".

    What a model thinks before it answers is left out; a query that the end of the reply
    cuts in two is dropped.

    Args:
        reply: as it came; None when the call failed for good.
        max_words: longest query that is kept. Prompts ask for fewer than 20.
    """
    if reply is None:
        return None, "failed"
    text, failure = text_replies.answer(reply)
    if failure:
        return None, "cut" if failure.startswith("cut") else failure
    if text_replies.is_cut(reply) and "\n" not in text:
        return None, "cut"
    query = first_line(text)
    if not any(character.isalnum() for character in query):
        return None, "empty"
    if len(query.split()) > max_words or len(query) > 12 * max_words:
        return None, "too long"
    return query, ""
