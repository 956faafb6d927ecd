"""Reading: an LLM answers questions from their first documents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from distill_jax.collections.collection import Collection, Queries
from distill_jax.io.draws import generator
from distill_jax.io.files import digest
from distill_jax.runs.run import Run
from distill_jax.teaching import prompts
from distill_jax.teaching.chat import estimated_tokens
from distill_jax.teaching.clients import Completer, Request
from distill_jax.text import replies


class Answered(NamedTuple):
    """The answers of a reader.

    Attributes:
        said: {query id: the reply's first line}, None where the call failed
            or the reply ended within a thought.
        counts: calls, cached, failed, tokens, cost; those of earlier starts included.
    """

    said: dict[str, str | None]
    counts: dict[str, Any]


def answer_questions(
    client: Completer,
    queries: Queries,
    collection: Collection,
    run: Run,
    *,
    top_k: int = 5,
    prompt: str = "reader",
    words: int = 300,
    max_tokens: int = 64,
    at_once: int = 256,
    progress: Callable[[int, int], Any] | None = None,
) -> Answered:
    """Answers each question of a run.

    Args:
        client: an opened client; its cache makes a second run free.
        run: the documents found; the first ``top_k`` of each question are read.
        at_once: questions that are sent together.

    Raises:
        Unfinished: the budget is used up; finished replies are in the cache.
    """
    said = prompts.load(prompt)
    run = run.on(collection).top(top_k)
    job = f"read-{digest(said.digest, run.digest, client.model)[:8]}"
    found: dict[str, str | None] = {}
    for start in range(0, len(run), at_once):
        lines = range(start, min(start + at_once, len(run)))
        requests = []
        for line in lines:
            query_id = run.query_ids[line]
            question = queries.texts[queries.row(query_id)]
            rows = run.rows[line][run.where[line]].tolist()
            messages = _messages(said, question, collection, rows, words)
            requests.append(
                Request(
                    id=f"{job}/{query_id}", messages=messages, max_tokens=max_tokens
                )
            )
        for line, reply in zip(lines, client.complete_all(requests), strict=True):
            found[run.query_ids[line]] = _first_line(reply)
        if progress is not None:
            progress(lines.stop, len(run))
    return Answered(found, client.counts(job))


def estimate(
    cost: Callable[[tuple[int, int]], float | None],
    queries: Queries,
    collection: Collection,
    *,
    top_k: int = 5,
    prompt: str = "reader",
    words: int = 300,
    max_tokens: int = 64,
    sample: int = 50,
    seed: int = 0,
) -> dict[str, Any]:
    """Calls, tokens and cost of reading for every query, before the first call.

    Args:
        cost: of (prompt, completion) tokens, e.g. ``Client.cost``.
        sample: requests that are written out, with documents at random, and measured.
    """
    said, random = prompts.load(prompt), generator(seed, "estimate")
    measured = []
    for _ in range(sample if len(queries) and len(collection) else 0):
        question = queries.texts[int(random.integers(0, len(queries)))]
        rows = random.integers(0, len(collection), top_k).tolist()
        messages = _messages(said, question, collection, rows, words)
        measured.append(estimated_tokens(messages))
    each = float(np.mean(measured)) if measured else 0.0
    tokens = round(len(queries) * each), len(queries) * max_tokens
    return {
        "calls": len(queries),
        "prompt_tokens": tokens[0],
        "completion_tokens": tokens[1],
        "cost": cost(tokens),
    }


def _messages(
    prompt: prompts.Prompt,
    question: str,
    collection: Collection,
    rows: list[int],
    words: int,
) -> list[dict[str, str]]:
    documents = prompts.passages(collection, rows, words)
    return prompt.messages(prompts.plain(question, words), documents)


def _first_line(reply: str | None) -> str | None:
    """The answer in a reply; None if there is no answer, "" if it is empty."""
    text, failure = replies.answer(reply)
    if failure:
        return "" if failure == "empty" else None
    return text.splitlines()[0].removeprefix("Answer:").strip()
