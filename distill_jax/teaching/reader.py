"""Reading: an LLM answers questions from their first documents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distill_jax.ir.collection import Collection, Queries
from distill_jax.ir.files import digest
from distill_jax.ir.run import Run
from distill_jax.teaching import prompts
from distill_jax.teaching.clients import Request


def answer_questions(
    client: Any,
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
) -> dict[str, str | None]:
    """{query id: the reply's first line}, None where the call failed.

    Args:
        client: an opened client; its cache makes a second run free.
        run: the documents found; the first ``top_k`` of each question are read.
        at_once: questions that are sent together.
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
            rows = run.rows[line][run.where[line]].tolist()
            question = prompts.plain(queries.texts[queries.row(query_id)], words)
            documents = prompts.passages(collection, rows, words)
            requests.append(
                Request(
                    id=f"{job}/{query_id}",
                    messages=said.messages(question, documents),
                    max_tokens=max_tokens,
                )
            )
        for line, reply in zip(lines, client.complete_all(requests), strict=True):
            found[run.query_ids[line]] = None if reply is None else _first_line(reply)
        if progress is not None:
            progress(lines.stop, len(run))
    return found


def _first_line(reply: str) -> str:
    reply = reply.rpartition("</think>")[2]
    lines = [line.strip() for line in reply.splitlines() if line.strip()]
    return lines[0].removeprefix("Answer:").strip() if lines else ""
