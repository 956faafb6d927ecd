"""Teachers behind an endpoint that judge documents one by one, or in pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from distill_jax.io.errors import UserError
from distill_jax.io.fingerprint import free
from distill_jax.io.values import NotNegative, PromptName, Share, Size
from distill_jax.labels.labels import TeacherLabels
from distill_jax.labels.pair_labels import PairLabels
from distill_jax.recipe.candidates import Context
from distill_jax.recipe.llm import bill, inputs_of, opened, say_counts
from distill_jax.runs.run import Run
from distill_jax.teaching import judges
from distill_jax.workspace.cached_step import part
from distill_jax.workspace.console import Counter

_CHAT = ("logprobs", "prompt", "words", "temperature", "tries", "reply_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pointwise:
    """An LLM judges each candidate by itself: one call a document.

    Attributes:
        client: ``teaching.clients.Client`` or ``LocalModel``.
        scale: "yes_no" or "graded".
        most: the best grade; a single digit with log-probabilities.
        logprobs: Yes against No, or the expected grade, from the log-probabilities of
            the answer's first token; False reads the reply.
        depth: number of first candidates that are judged; None judges all.
        prompt: "yes_no", "grades", or the path of a prompt file; None takes the one
            that fits.
        words: what is shown of a document.
        temperature: of the first try.
        tries: calls for a reply that can be used.
        reply_tokens: longest reply; models that think need more than the default.
        most_failed: the share of a list's documents, and of the lists, that may fail.
    """

    client: Any
    scale: Literal["yes_no", "graded"] = "yes_no"
    most: Size = 3
    logprobs: bool = True
    depth: Size | None = None
    prompt: PromptName | None = None
    words: Size = 300
    temperature: NotNegative = 0.0
    tries: Size = 2
    reply_tokens: Size | None = None
    most_failed: Share = free(0.2)

    def __call__(self, context: Context, run: Run) -> TeacherLabels:
        return _documents(self, self._method(context), context, run)

    def estimate(self, context: Context, run: Run | None = None) -> str:
        """Calls, tokens and cost before the first call, for ``--plan``."""
        return _estimate(self, self._method(context), context, run)

    def _method(self, context: Context) -> judges.Pointwise:
        names = ("scale", "most", *_CHAT)
        fields = {name: getattr(self, name) for name in names}
        return judges.Pointwise(**fields, seed=context.workspace.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reranker:
    """A ``/rerank`` endpoint of Jina's, Cohere's, vLLM's or TEI's form gives scores.

    Attributes:
        client: ``teaching.clients.Client``; its ``base_url`` precedes ``/rerank``.
        depth: number of first candidates that are scored; None scores all.
        at_once: documents of a call.
        words: what is sent of a document.
        documents_field: "documents", or "texts" as TEI has it.
        most_failed: the share of a list's documents, and of the lists, that may fail.
    """

    client: Any
    depth: Size | None = None
    at_once: Size = 64
    words: Size = 300
    documents_field: Literal["documents", "texts"] = "documents"
    most_failed: Share = free(0.2)

    def __call__(self, context: Context, run: Run) -> TeacherLabels:
        return _documents(self, self._method(), context, run)

    def estimate(self, context: Context, run: Run | None = None) -> str:
        """Calls, tokens and cost before the first call, for ``--plan``."""
        return _estimate(self, self._method(), context, run)

    def _method(self) -> judges.Scoring:
        if hasattr(self.client, "checkpoint"):
            raise UserError(
                f"{self.client.checkpoint}: a local model has no /rerank endpoint",
                "use it as a reranker: TEACHER_LABELS=@teachers.Model()",
            )
        names = ("at_once", "words", "documents_field")
        return judges.Scoring(**{name: getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairwise:
    """An LLM judges sampled pairs of an order, each pair in both orders.

    Attributes:
        client, prompt ("pair"), words, temperature, tries, reply_tokens, most_failed:
            as of ``Pointwise``.
        logprobs: the preference from the log-probabilities of the answer's first token;
            False reads the reply.
        top_k, delta, pairs: see ``teaching.pairs.sample_pairs``.
    """

    client: Any
    logprobs: bool = True
    top_k: Size = 20
    delta: Size = 10
    pairs: Size = 50
    prompt: PromptName | None = None
    words: Size = 300
    temperature: NotNegative = 0.0
    tries: Size = 2
    reply_tokens: Size | None = None
    most_failed: Share = free(0.2)

    def __call__(self, context: Context, labels: TeacherLabels) -> PairLabels:
        from distill_jax.teaching.judging import label_pairs

        workspace, how = context.workspace, self._method(context)
        folder = context.directory / "labels" / "pairs"
        with opened(self.client, context) as client:

            def make(folder: Path) -> dict:
                with Counter("judging pairs", len(labels), "queries") as counter:
                    found = label_pairs(
                        client,
                        how,
                        context.queries,
                        workspace.collection,
                        labels,
                        folder,
                        **self._sampling(workspace.seed),
                        most_failed=self.most_failed,
                        progress=counter,
                    )
                return say_counts(client, found.provenance["counts"])

            inputs = inputs_of(self, client, _prompt(how), context, labels.to_run())
            part(folder, inputs, make, what="pair labels")
        return PairLabels.read(folder, collection=workspace.collection)

    def estimate(self, context: Context) -> str:
        """Calls, tokens and cost before the first call, for ``--plan``."""
        from distill_jax.teaching.pairs import neighbours

        depth = min(self.top_k, len(context.workspace.collection))
        pairs = min(self.pairs, len(neighbours(depth, self.delta)))
        calls = 2 * pairs * _count(context)
        return _calls(self, self._method(context), context, calls, 2)

    def _sampling(self, seed: int) -> dict[str, Any]:
        names = ("top_k", "delta", "pairs")
        return {**{name: getattr(self, name) for name in names}, "seed": seed}

    def _method(self, context: Context) -> judges.Pairwise:
        fields = {name: getattr(self, name) for name in _CHAT}
        return judges.Pairwise(**fields, seed=context.workspace.seed)


def _documents(
    teacher: Any, how: judges.Scorer, context: Context, run: Run
) -> TeacherLabels:
    from distill_jax.teaching.judging import label_documents

    workspace = context.workspace
    run = run.on(workspace.collection)
    run = run if teacher.depth is None else run.top(teacher.depth)
    folder = context.directory / "labels"
    with opened(teacher.client, context) as client:

        def make(folder: Path) -> dict:
            with Counter("judging", len(run), "queries") as counter:
                labels = label_documents(
                    client,
                    how,
                    context.queries,
                    workspace.collection,
                    run,
                    folder,
                    most_failed=teacher.most_failed,
                    progress=counter,
                )
            return say_counts(client, labels.provenance["counts"])

        inputs = inputs_of(teacher, client, _prompt(how), context, run)
        part(folder, inputs, make, what="labels")
    return TeacherLabels.read(folder, collection=workspace.collection)


def _prompt(how: Any) -> str:
    return how.provenance().get("prompt_digest", "")


def _estimate(
    teacher: Any, how: judges.Scorer, context: Context, run: Run | None
) -> str:
    depth = teacher.depth or 100
    if run is None:
        counts = [min(depth, len(context.workspace.collection))] * _count(context)
    else:
        counts = run.top(depth).where.sum(axis=1).tolist()
    calls = sum(-(-count // how.at_once) for count in counts)
    documents = min(how.at_once, max(counts, default=0))
    return _calls(teacher, how, context, calls, documents)


def _calls(teacher: Any, how: Any, context: Context, calls: int, documents: int) -> str:
    from distill_jax.teaching.judging import estimate

    if not _count(context):
        return "LLM: no queries"
    request: Callable[..., Any] = how.request
    found = estimate(
        teacher.client.cost,
        lambda query, texts: request("plan", query, texts, 0),
        context.queries,
        context.workspace.collection,
        calls,
        documents,
        seed=context.workspace.seed,
    )
    return bill(teacher.client, found)


def _count(context: Context) -> int:
    return 0 if context.queries is None else len(context.queries)
