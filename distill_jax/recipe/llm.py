"""LLMs in recipes: a listwise teacher, and a reader of what was found."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from distill_jax.evaluation import answers
from distill_jax.io.errors import UserError
from distill_jax.io.fingerprint import free
from distill_jax.io.reading import write_json
from distill_jax.io.values import NotNegative, PromptName, Range, Share, Size
from distill_jax.labels.labels import TeacherLabels
from distill_jax.recipe.candidates import Context
from distill_jax.runs.run import Run
from distill_jax.teaching.clients import Completer
from distill_jax.workspace.cached_step import part
from distill_jax.workspace.console import Counter, say
from distill_jax.workspace.describe import describe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listwise:
    """An LLM orders the candidates of each query, through sliding windows.

    Attributes:
        client: ``teaching.clients.Client`` or ``LocalModel``.
        depth: number of first candidates that are shown; None shows all.
        window, step: documents of a call, and how far the window moves.
        prompt: "listwise", "scores", or the path of a prompt file; None takes the one
            that fits.
        multi_turn: one passage a turn.
        passes: shuffled repetitions; their agreement is reported.
        direct_scores: numbers in 0-1 for each document instead of an order.
        words: what is shown of a document.
        temperature: of the first try.
        tries: calls for a reply that can be used.
        reply_tokens: longest reply; models that think need more than the default.
        most_failed: the share of lists that may fail before the job ends.
        retry_failed: asks again for lists that are stored as failed.
    """

    client: Any
    depth: Size | None = None
    window: Annotated[int, Range(least=2)] = 20
    step: Size = 10
    prompt: PromptName | None = None
    multi_turn: bool = False
    passes: Size = 1
    direct_scores: bool = False
    words: Size = 300
    temperature: NotNegative = 0.0
    tries: Size = 2
    reply_tokens: Size | None = None
    most_failed: Share = free(0.2)
    retry_failed: bool = free(False)

    def __call__(self, context: Context, run: Run) -> TeacherLabels:
        from distill_jax.teaching.rankings import label_listwise

        workspace = context.workspace
        run = run.on(workspace.collection)
        run = run if self.depth is None else run.top(self.depth)
        folder = context.directory / "labels"
        with opened(self.client, context) as client:

            def make(folder: Path) -> dict:
                with Counter("asking", len(run), "queries") as counter:
                    labels = label_listwise(
                        client,
                        context.queries,
                        workspace.collection,
                        run,
                        folder,
                        most_failed=self.most_failed,
                        retry_failed=self.retry_failed,
                        progress=counter,
                        **self._method(workspace.seed),
                    )
                return say_counts(client, labels.provenance["counts"])

            inputs = inputs_of(self, client, self._prompt_digest(), context, run)
            if self.retry_failed:
                inputs["retry"] = True
            part(folder, inputs, make, what="labels")
        return TeacherLabels.read(folder, collection=workspace.collection)

    def estimate(self, context: Context, run: Run | None = None) -> str:
        """Calls, tokens and cost before the first call, for ``--plan``."""
        from distill_jax.teaching.rankings import estimate

        if context.queries is None or not len(context.queries):
            return "LLM: no queries"
        if run is not None and self.depth is not None:
            run = run.top(self.depth)
        found = estimate(
            self.client.cost,
            context.queries,
            context.workspace.collection,
            run,
            depth=self.depth or 100,
            **self._method(context.workspace.seed),
        )
        return bill(self.client, found)

    def _method(self, seed: int) -> dict[str, Any]:
        names = (
            "window", "step", "prompt", "multi_turn", "passes", "direct_scores",
            "words", "temperature", "tries", "reply_tokens",
        )  # fmt: skip
        return {**{name: getattr(self, name) for name in names}, "seed": seed}

    def _prompt_digest(self) -> str:
        from distill_jax.teaching.listwise import Method

        return Method(**self._method(0)).load().digest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """Answers the questions of a run from its first documents, and measures them.

    Attributes:
        client: ``teaching.clients.Client`` or ``LocalModel``.
        top_k: documents that are read.
        most_failed: the largest share of questions without a reply; their answers
            count as wrong.
    """

    client: Any
    top_k: Size = 5
    prompt: PromptName = "reader"
    words: Size = 300
    max_tokens: Size = 64
    most_failed: Share = free(0.2)

    def __call__(self, context: Context, run: Run) -> Reading:
        """Reads for every question that has answers, and writes ``answers.json``.

        Raises:
            UserError: no question has answers, or too many have no reply.
            Unfinished: the budget is used up; finished replies are in the cache.
        """
        from distill_jax.teaching.reader import answer_questions

        queries, workspace = context.queries, context.workspace
        expected = answers.accepted(queries)
        run = run.select([query for query in run.query_ids if query in expected])
        with (
            opened(self.client, context) as client,
            Counter("reading", len(run), "questions") as counter,
        ):
            said, counts = answer_questions(
                client,
                queries,
                workspace.collection,
                run,
                progress=counter,
                **self._method(),
            )
        failed = [query_id for query_id, text in said.items() if text is None]
        if len(failed) > self.most_failed * len(said):
            raise UserError(
                f"{len(failed)} of {len(said)} questions have no reply "
                f"({counts['failures']})",
                f"most_failed = {self.most_failed} is the largest share allowed",
            )
        given = {query_id: text for query_id, text in said.items() if text}
        values = answers.evaluate_answers(given, expected)
        means = {name: answers.mean(per) for name, per in values.items()}
        write_json(
            context.directory / "answers.json",
            {
                "model": client.model,
                "top_k": self.top_k,
                "answers": said,
                "expected": expected,
                "failed": len(failed),
                "means": means,
                "counts": counts,
            },
        )
        return Reading(values=values, failed=len(failed), counts=counts)

    def estimate(self, context: Context, systems: int = 1) -> str:
        """Calls, tokens and cost before the first call, for ``--plan``."""
        from distill_jax.teaching.reader import estimate

        queries = context.queries
        expected = answers.accepted(queries)
        rows = [row for row, query in enumerate(queries.ids) if query in expected]
        found = estimate(
            self.client.cost,
            queries.select(rows),
            context.workspace.collection,
            seed=context.workspace.seed,
            **self._method(),
        )
        limit = getattr(self.client, "budget_calls", None)
        budget = "" if limit is None else f" (budget {limit:,})"
        cost = found.pop("cost")
        total = {name: systems * value for name, value in found.items()}
        return (
            f"LLM: at most {total['calls']:,} calls{budget}, {systems} rankings of "
            f"{len(rows):,} questions; about {total['prompt_tokens']:,} tokens in and "
            f"at most {total['completion_tokens']:,} out, "
            f"{money(None if cost is None else systems * cost)}"
        )

    def _method(self) -> dict[str, Any]:
        names = ("top_k", "prompt", "words", "max_tokens")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What a reader answered from one ranking.

    Attributes:
        values: ``{"EM": {query id: value}, "F1": ...}``.
        failed: questions without a reply; they count 0.
        counts: calls, cached, tokens and cost, as the ledger has them.
    """

    values: dict[str, dict[str, float]]
    failed: int
    counts: dict[str, Any]


def if_named(
    base_url: str | None, model: str | None, make: Callable[[], Any]
) -> Any | None:
    """What ``make`` makes, where an LLM is named; None where none is.

    Raises:
        UserError: its address is given without its model's name, or the reverse.
    """
    if (base_url is None) != (model is None):
        given, missing = ("LLM_BASE_URL", "LLM_MODEL")[:: 1 if model is None else -1]
        raise UserError(f"{given} without {missing}", f"add --gin.{missing}=...")
    return None if base_url is None else make()


def bill(client: Any, found: dict[str, Any]) -> str:
    """Calls, budget, tokens and cost in a line of ``--plan``.

    Args:
        found: calls, prompt_tokens, completion_tokens and cost.
    """
    limit = getattr(client, "budget_calls", None)
    budget = "" if limit is None else f" (budget {limit:,})"
    return (
        f"LLM: {found['calls']:,} calls{budget}, about {found['prompt_tokens']:,} "
        f"tokens in and at most {found['completion_tokens']:,} out, "
        f"{money(found['cost'])}"
    )


def money(cost: float | None) -> str:
    """What calls cost, for a line of the console."""
    if cost is None:
        return "cost unknown (set LLM_PRICE_IN and LLM_PRICE_OUT)"
    return f"cost {cost:.2f}"


@contextlib.contextmanager
def opened(client: Any, context: Context) -> Iterator[Completer]:
    """The LLM with its ledger and its cache, which are closed behind the block."""
    # A local model may be another stage's; an endpoint has nothing to load.
    load = {"load": context.model} if hasattr(client, "checkpoint") else {}
    session = client.at(context.workspace.directory / "llm", **load)
    try:
        yield session
    finally:
        session.close()


def say_counts(client: Completer, counts: dict[str, Any]) -> dict[str, Any]:
    """Says what labels took; returns what a step keeps of it."""
    say(
        f"{client.model}: {counts['calls']:,} calls, {counts['cached']:,} from the "
        f"cache, {counts['queries_failed']:,} lists failed, {money(counts['cost'])}"
    )
    return {"counts": counts}


def inputs_of(
    teacher: Any, client: Completer, prompt: str, context: Context, run: Run
) -> dict[str, Any]:
    """Everything that an LLM's labels of a run depend on.

    Args:
        prompt: its digest, "" for none.
    """
    return {
        "teacher": describe(teacher),
        "model": client.model,
        "prompt": prompt,
        "candidates": run.digest,
        "collection": context.workspace.collection.digest,
        "queries": context.queries.digest,
        "seed": context.workspace.seed,
    }
