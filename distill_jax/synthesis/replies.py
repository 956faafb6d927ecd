"""What a generator answers, to a query or to a counted reason for having none."""

from __future__ import annotations

import json
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
    r"(?:(?:\w{1,12} )?(?:query|question)|q|user)\s?(?:\d{1,2}\s?)?:\s"
    r"|\d{1,2}[.)]\s|[-*>\u2022]\s"
    r"|(?:sure|certainly|of course|okay|ok|here(?:['’]s| is))\b[^:?]{0,80}:\s",
    re.IGNORECASE,
)
_TAG = re.compile(r"</?(?:query|question|output|response)>", re.IGNORECASE)
# What a model says in place of a query.
_REFUSED = re.compile(
    r"(?:i['’]m|i am) (?:sorry|unable|not able)\b|sorry\b|as an ai\b"
    r"|i (?:cannot|can['’]t) (?:help|assist|provide|generate|write|answer|comply)",
    re.IGNORECASE,
)
_NOTHING = {"n/a", "na", "none", "null", "no query", "no question", "empty"}


def first_line(reply: str) -> str:
    """The first line that is not empty, tabs to blanks, one pair of quotes off.

    Names, numbers and marks before it are taken off; a line that announces what
    follows ("Here is a query:") and a fence are none.
    """
    for line in _TAG.sub(" ", _of_json(reply)).splitlines():
        line = " ".join(line.split()).replace("**", "")
        if line.startswith("```") or line.endswith(":"):
            continue
        line = line[found.end() :] if (found := _AROUND.match(line)) else line
        if len(line) >= 2 and _QUOTES.get(line[0]) == line[-1]:
            line = line[1:-1].strip()
        if line:
            return line
    return ""


def _of_json(reply: str) -> str:
    """The first text of a reply that is JSON; the reply where it is none."""
    text = re.sub(r"\A```\w{0,10}|```\Z", "", reply.strip()).strip()
    if text[:1] not in ("{", "["):
        return reply
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return reply
    while isinstance(found, dict | list) and found:
        found = next(iter(found.values())) if isinstance(found, dict) else found[0]
    return found if isinstance(found, str) else ""


def read(reply: str | None, max_words: int = 30) -> tuple[str | None, str]:
    """``(query, "")``, or ``(None, reason)``.

    The reasons: "failed", "empty", "too long", "cut", "refused".

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
    if _REFUSED.match(query):
        return None, "refused"
    if not any(c.isalnum() for c in query) or query.lower().strip(". ") in _NOTHING:
        return None, "empty"
    if len(query.split()) > max_words or len(query) > 12 * max_words:
        return None, "too long"
    return query, ""
