"""Where training queries come from: the collection's own, or its documents.

Each source is called with the context and returns a ``Split``: queries, and what is
known of them (judgements, or the document that a query was made from).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from distill_jax.collections.collection import Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.collections.schemes import load_collection
from distill_jax.io.errors import UserError
from distill_jax.io.fingerprint import free
from distill_jax.io.reading import write_json
from distill_jax.io.values import Count, NotNegative, PromptName, Size
from distill_jax.recipe import llm
from distill_jax.recipe.candidates import Context, Source
from distill_jax.recipe.checkpoints import Model
from distill_jax.recipe.llm import opened
from distill_jax.workspace.cached_step import part
from distill_jax.workspace.console import Counter, say
from distill_jax.workspace.context import Split
from distill_jax.workspace.dependencies import dependencies
from distill_jax.workspace.describe import describe


class QuerySource(Protocol):
    """Which queries a stage is trained on."""

    def __call__(self, context: Context, /) -> Split:
        """Queries, and what is known of them."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """The collection's training queries; ``limit`` of them, by hash of the id."""

    limit: Count | None = None

    def __call__(self, context: Context) -> Split:
        train = context.workspace.train
        if train is None:
            raise UserError(
                "this collection has no training queries",
                "use a recipe that makes queries from documents, e.g. specialize.gin",
            )
        if self.limit is None or self.limit >= len(train.queries):
            return train
        from distill_jax.io.draws import share

        places = np.argsort([share(query, "limit") for query in train.queries.ids])
        where = np.zeros(len(train.queries), bool)
        where[places[: self.limit]] = True
        return train.take(where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cropped:
    """Sentences of the documents (TWOLAR, DRAGON).

    Attributes:
        queries: how many documents are cropped; None crops all.
        stands_in: whether it replaces queries that an LLM would write; it says so.
    """

    queries: Size | None = None
    per_doc: Size = 1
    min_words: Size = 4
    max_words: Size = 64
    stands_in: bool = free(False)

    def make(self, context: Context, rows: np.ndarray, folder: Path) -> Any:
        from distill_jax.synthesis.crop import crop

        del folder
        return crop(
            context.workspace.collection,
            rows,
            per_doc=self.per_doc,
            min_words=self.min_words,
            max_words=self.max_words,
            sample=self.queries,
            seed=context.workspace.seed,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated:
    """Queries by a T5 that was trained to ask (docT5query's form).

    Attributes:
        checkpoint: e.g. the MODEL_DIR of ``query_generator.gin``.
        queries: number of documents that get queries; None takes all.
        samples: queries of a document.
    """

    checkpoint: Model | None
    queries: Size | None = None
    samples: Size = 1
    top_k: Size = 10
    temperature: NotNegative = 1.0
    max_new_tokens: Size = 48

    def make(self, context: Context, rows: np.ndarray, folder: Path) -> Any:
        from distill_jax.synthesis import t5
        from distill_jax.synthesis.crop import sampled

        workspace = context.workspace
        if self.queries is not None:
            rows = sampled(
                workspace.collection, rows, self.queries, workspace.seed, "generated"
            )
        with Counter("generating", len(rows), "documents") as counter:
            return t5.generate(
                context.model(self.checkpoint),
                workspace.collection,
                rows,
                samples=self.samples,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_k=self.top_k,
                seed=workspace.seed,
                mesh=workspace.mesh,
                directory=folder / "t5",
                progress=counter,
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """Queries of several kinds by an LLM (004).

    Attributes:
        client: ``teaching.clients.Client``: endpoint, model, budget.
        kinds: names of shipped kinds, or paths of a user's own.
        queries: number of documents that get queries; None takes all.
    """

    client: Any
    kinds: tuple[PromptName, ...] = (
        "questions",
        "claims",
        "titles",
        "keywords",
        "user_queries",
        "zero_shot_queries",
    )
    queries: Size | None = None
    samples: Size = 1
    temperature: NotNegative = 0.8
    max_tokens: Size = 50

    def make(self, context: Context, rows: np.ndarray, folder: Path) -> Any:
        from distill_jax.synthesis import llm
        from distill_jax.synthesis.crop import sampled

        workspace = context.workspace
        if self.queries is not None:
            rows = sampled(
                workspace.collection, rows, self.queries, workspace.seed, "written"
            )
        with (
            opened(self.client, context) as client,
            Counter("writing queries", len(rows), "documents") as counter,
        ):
            return llm.generate(
                workspace.collection,
                rows,
                client.complete_all,
                kinds=self.kinds,
                directory=folder / "llm",
                samples=self.samples,
                temperature=self.temperature,
                max_tokens=self.max_tokens,
                seed=workspace.seed,
                model=client.model,
                progress=counter,
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthetic:
    """Queries generated from documents by one or more makers, and filtered.

    Attributes:
        makers: ``Cropped``, ``Generated``, ``Written``; one whose checkpoint is None
            is left out.
        round_trip: a candidate source; a query stays when its document is among the
            first ``round_trip_depth``. None keeps all.
        deduplicate: no queries of near-duplicate documents (004's rule).
        limit: maximum number of queries kept, by the hash of their documents.
        judgements: whether a query's own document counts as a judged positive.
    """

    makers: tuple[Any, ...]
    round_trip: Source | None = None
    round_trip_depth: Size = 20
    deduplicate: bool = True
    limit: Count | None = None

    def __call__(self, context: Context) -> Split:
        workspace = context.workspace
        inputs = {
            "collection": workspace.collection.digest,
            "makers": describe(self),
            "seed": workspace.seed,
            "held out": workspace.test.queries.digest if workspace.test else None,
            **dependencies((self._asking(), self.round_trip), context),
        }
        folder = context.directory / "queries"
        part(folder, inputs, lambda folder: self._make(context, folder), what="queries")
        _, queries, qrels = load_collection(f"beir:{folder}", split="train")
        return Split(queries=queries, qrels=qrels)

    def _asking(self) -> tuple[Any, ...]:
        """The makers that make queries."""
        named = [m for m in self.makers if getattr(m, "checkpoint", True)]
        if not named:
            raise UserError(
                "nothing makes queries", "name a generator, or crop: @queries.Cropped()"
            )
        return tuple(named)

    def _make(self, context: Context, folder: Path) -> dict:
        from distill_jax.lists.dedup import near_duplicates
        from distill_jax.synthesis.filter import Funnel
        from distill_jax.synthesis.survey import survey
        from distill_jax.synthesis.synthetic import SyntheticQueries

        workspace = context.workspace
        duplicates = (
            near_duplicates(workspace.collection.texts) if self.deduplicate else None
        )
        found = survey(workspace.collection, duplicates=duplicates)
        for notice in found.notices:
            say(f"note: {notice}")
        for maker in self._asking():
            if getattr(maker, "stands_in", False):
                say(
                    "NOTE: no LLM is named, so queries are sentences of the documents "
                    "and not the paper's six written kinds; a retriever that contrasts "
                    "with them learns to match strings (SciFact nDCG@10 0.629 -> 0.573 "
                    "when it was measured). Name LLM_BASE_URL and LLM_MODEL"
                )
        made = SyntheticQueries.join(
            [maker.make(context, found.rows, folder) for maker in self._asking()]
        )
        funnel = Funnel(made).without_duplicates()
        if workspace.test is not None:
            funnel.without(workspace.test.queries, "test")
        if self.round_trip is not None and len(funnel.made):
            run = self.round_trip(
                dataclasses.replace(context, queries=funnel.made.queries)
            )
            funnel.round_trip(run.on(workspace.collection), self.round_trip_depth)
        if self.limit is not None and len(funnel.made) > self.limit:
            funnel.keep("beyond the limit", _first(funnel.made, self.limit))
        print(funnel.table(), flush=True)
        if not len(funnel.made):
            raise UserError(
                "no query is left after the filters; the table above says why",
                "loosen the filters, or give documents with more text",
            )
        funnel.made.write(
            folder,
            workspace.collection,
            fractions={"train": 1.0},
            seed=workspace.seed,
            provenance={"makers": describe(self.makers)},
        )
        write_json(folder / "funnel.json", funnel.to_json())
        return {"queries": len(funnel.made), "funnel": funnel.to_json()}


def _first(made: Any, limit: int) -> np.ndarray:
    from distill_jax.io.draws import share

    places = [share(made.doc_ids[row], "limit") for row in made.sources.tolist()]
    where = np.zeros(len(made), bool)
    where[np.argsort(places, kind="stable")[:limit]] = True
    return where


@dataclasses.dataclass(frozen=True, kw_only=True)
class Together:
    """Several sources of queries, one after another; ids must differ."""

    sources: tuple[QuerySource, ...]

    def __call__(self, context: Context) -> Split:
        ids: list[str] = []
        texts: list[str] = []
        grades: dict[str, dict[str, int]] = {}
        for number, source in enumerate(self.sources):
            place = context.directory / f"source-{number}"
            split = source(dataclasses.replace(context, directory=place))
            ids += list(split.queries.ids)
            texts += list(split.queries.texts)
            grades |= {q: split.qrels.of(q) for q in split.qrels.query_ids}
        return Split(queries=Queries(ids, texts), qrels=Qrels(grades))


def written_or_cropped(
    base_url: str | None, model: str | None, written: Any, cropped: Cropped
) -> tuple[Any, ...]:
    """Queries by an LLM, or sentences of the documents where none is named.

    Args:
        base_url, model: the LLM's address and name; None for both names none.
        written: makes the maker that asks the LLM.
        cropped: the maker that replaces it without a generator; the console says so.
    """
    maker = llm.if_named(base_url, model, written)
    if maker is not None:
        return (maker,)
    return (dataclasses.replace(cropped, stands_in=True),)
