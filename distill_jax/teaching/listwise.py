"""One list before an LLM: its windows, its requests, and what replies do to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from distill_jax.collections.collection import Collection, Queries
from distill_jax.io.draws import generator
from distill_jax.io.errors import UserError
from distill_jax.io.files import digest
from distill_jax.runs.run import Run
from distill_jax.teaching import parsing, prompts, windows
from distill_jax.teaching.clients import Request


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """How lists are shown and read.

    Attributes:
        window, step: documents of a call, and how far the window moves. With direct
            scores the windows do not overlap.
        prompt: a shipped name or a path; None takes "listwise" or "scores".
        multi_turn: one passage a turn.
        passes: times each list is ordered; from the second on its documents are
            shuffled. The mean rank counts, and the passes' agreement is measured.
        direct_scores: numbers in 0-1 instead of an order.
        words: what is shown of a document.
        temperature: of the first try; further ones use at least 0.7, since at 0 the
            same reply would come again.
        tries: calls for a reply that can be used.
        reply_tokens: longest reply; None allows what the form needs. Models that think
            before they answer need more.
        seed: of the shuffling and the sampling.
    """

    window: int = 20
    step: int = 10
    prompt: str | None = None
    multi_turn: bool = False
    passes: int = 1
    direct_scores: bool = False
    words: int = 300
    temperature: float = 0.0
    tries: int = 2
    reply_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        windows.check(self.window, self.window if self.direct_scores else self.step)
        if self.passes < 1 or self.tries < 1:
            raise UserError(
                f"{self.passes} passes of {self.tries} tries", "give 1 each"
            )

    def load(self) -> prompts.Prompt:
        name = self.prompt or ("scores" if self.direct_scores else "listwise")
        return prompts.load(name, multi_turn=self.multi_turn)

    def windows(self, count: int) -> list[tuple[int, int]]:
        if self.direct_scores:
            return windows.chunks(count, self.window)
        return windows.windows(count, self.window, self.step)

    def messages(
        self, prompt: prompts.Prompt, query: str, documents: Sequence[str]
    ) -> list[prompts.Turn]:
        count = len(documents)
        if self.direct_scores:
            example = "[" + ", ".join(("0.2", "0.9", "0.5")[:count]) + ", ...]"
        else:
            example = "[2] > [1]" if count == 2 else "[2] > [3] > [1] > ..."
        return prompt.messages(
            prompts.plain(query, self.words),
            documents,
            multi_turn=self.multi_turn,
            example=example,
        )

    def most_tokens(self, count: int) -> int:
        return self.reply_tokens or 8 * count + 32


@dataclasses.dataclass
class Sitting:
    """The state of one pass over one query's candidates.

    ``order`` holds places in the run's list; windows change it in place.
    """

    query_id: str
    query: str
    number: int
    order: list[int]
    texts: list[str]
    todo: list[tuple[int, int]]
    scores: dict[int, float] = dataclasses.field(default_factory=dict)
    failed: bool = False


def passes_over(
    how: Method, queries: Queries, collection: Collection, run: Run, row: int
) -> list[Sitting]:
    query_id = run.query_ids[row]
    docs = run.rows[row][run.where[row]]
    texts = prompts.passages(collection, docs.tolist(), how.words)
    query = queries.texts[queries.row(query_id)]
    found = []
    for number in range(how.passes):
        order = list(range(len(docs)))
        if number:
            random = generator(how.seed, "pass", query_id, str(number))
            order = random.permutation(len(docs)).tolist()
        todo = how.windows(len(docs))
        found.append(Sitting(query_id, query, number, order, texts, todo))
    return found


def wave(
    client: Any,
    how: Method,
    prompt: prompts.Prompt,
    lists: list[Sitting],
    job: str,
    counts: Any,
) -> None:
    """The next window of every list; unusable replies are requested again."""
    waiting = lists
    for attempt in range(how.tries):
        replies = client.complete_all(
            [_request(how, prompt, item, job, attempt) for item in waiting]
        )
        unusable = []
        for item, reply in zip(waiting, replies, strict=True):
            counts["replies"] += 1
            failure = _read(how, item, reply, counts)
            if not failure:
                item.todo.pop(0)
                continue
            counts[f"failure: {failure}"] += 1
            # The client has used all its attempts.
            if reply is None:
                item.failed = True
            else:
                unusable.append(item)
        waiting = unusable
        if not waiting:
            return
    for item in waiting:
        item.failed = True


def _request(
    how: Method, prompt: prompts.Prompt, item: Sitting, job: str, attempt: int
) -> Request:
    start, end = item.todo[0]
    documents = [item.texts[place] for place in item.order[start:end]]
    return Request(
        id=f"{job}/{item.query_id}/{item.number}/{start}-{end}/{attempt}",
        messages=how.messages(prompt, item.query, documents),
        temperature=max(how.temperature, 0.7) if attempt else how.temperature,
        max_tokens=how.most_tokens(end - start),
        # Different for each try and pass; the same in every run of the job.
        seed=int(digest(how.seed, item.query_id, item.number, attempt)[:7], 16)
        if attempt or item.number or how.temperature
        else how.seed,
    )


def _read(how: Method, item: Sitting, reply: str | None, counts: Any) -> str:
    """Applies a reply to a list; returns why it cannot be used, "" when it can."""
    start, end = item.todo[0]
    shown = item.order[start:end]
    if how.direct_scores:
        scores = parsing.parse_scores(reply, len(shown))
        if scores.values is not None:
            item.scores |= dict(zip(shown, scores.values))
        return scores.failure
    ranking = parsing.parse_ranking(reply, len(shown))
    if ranking.order is None:
        return ranking.failure
    for kind, number in ranking.repairs.items():
        counts[f"repair: {kind}"] += number
    counts["replies repaired"] += bool(ranking.repairs)
    # How much an answer follows the order in which it was shown the passages: after
    # shuffling, this is position bias and nothing else.
    which = "shuffled" if item.number else "as found"
    tau = windows.kendall_tau(range(len(shown)), ranking.order)
    counts[f"tau to shown, {which}"] += tau
    counts[f"replies, {which}"] += 1
    item.order[start:end] = [shown[place] for place in ranking.order]
    return ""
