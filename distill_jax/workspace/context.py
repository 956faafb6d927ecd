"""What every part of a job shares: the collection, its splits, the mesh, the tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.collections.collection import NO_DOCUMENTS, Collection, Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.io.draws import split_by_hash
from distill_jax.io.errors import UserError
from distill_jax.io.files import digest
from distill_jax.models.pretrained import Pretrained
from distill_jax.models.templates import side_template
from distill_jax.text.equality import text_key
from distill_jax.text.features import Features
from distill_jax.text.token_store import TokenStore
from distill_jax.workspace.console import say


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Split:
    """Some queries of a collection and the judgements on them."""

    queries: Queries
    qrels: Qrels

    @property
    def digest(self) -> str:
        """Digest of queries and judgements, independent of their order in the file."""
        grades = {query: self.qrels.of(query) for query in self.qrels.query_ids}
        return digest(self.queries.digest, grades)

    def take(self, where: np.ndarray) -> Split:
        queries = self.queries.select(np.flatnonzero(where))
        kept = set(queries.ids)
        grades = {
            query: self.qrels.of(query)
            for query in self.qrels.query_ids
            if query in kept
        }
        return Split(queries=queries, qrels=Qrels(grades))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Workspace:
    """The state that all steps of one job share.

    Attributes:
        directory: the job's ``MODEL_DIR``.
        collection: documents.
        train, dev, test: queries with judgements; each ``None`` where there are none.
        mesh: devices; None runs inference on one.
        seed: of all random draws.
        indexes: those that are open, see ``workspace.indexes``.
    """

    directory: Path
    collection: Collection
    train: Split | None
    dev: Split | None
    test: Split | None
    mesh: Any
    seed: int
    indexes: dict = dataclasses.field(default_factory=dict, repr=False)
    _stores: dict = dataclasses.field(default_factory=dict, repr=False)

    def store(self, texts: Any, full_texts: Any, tokenizer: Any) -> TokenStore:
        """The token ids of a collection or of queries, cached.

        Args:
            tokenizer: a ``Tokenizer``, or what ``Template.reader`` gives.
        """
        key = (texts.digest, tokenizer.digest)
        if key not in self._stores:
            self._stores[key] = TokenStore.build(
                full_texts,
                tokenizer,
                self.directory / "tokens",
                texts_digest=digest("texts", texts.digest),
            )
        return self._stores[key]

    @property
    def judged(self) -> Split:
        """The test split, which every job that measures has."""
        assert self.test is not None
        return self.test

    @property
    def dev_is_judged(self) -> bool:
        """Whether there are dev queries whose judgements may choose a model."""
        return self.dev is not None and len(self.dev.qrels) > 0

    def docs(self, tokenizer: Any) -> TokenStore:
        texts = self.collection.full_texts()
        return self.store(self.collection, texts, tokenizer)

    def queries(self, queries: Queries, tokenizer: Any) -> TokenStore:
        return self.store(queries, queries.texts, tokenizer)

    def pair_features(self, model: Pretrained, queries: Queries) -> Features:
        """Query and document (or documents) joined by a reranker's template."""
        template = model.spec.template
        stores = {
            name: self.queries(queries, template.reader(model.tokenizer, name))
            if name == "query"
            else self.docs(template.reader(model.tokenizer, name))
            for name in template.fields
        }
        return Features(template, model.tokenizer, **stores)

    def query_features(self, model: Pretrained, queries: Queries) -> Features:
        template = side_template(model.spec, "query", model.tokenizer)
        store = self.queries(queries, template.reader(model.tokenizer, "text"))
        return Features(template, model.tokenizer, text=store)

    def doc_features(self, model: Pretrained) -> Features:
        template = side_template(model.spec, "doc", model.tokenizer)
        store = self.docs(template.reader(model.tokenizer, "text"))
        return Features(template, model.tokenizer, text=store)


def open_workspace(
    directory: str | Path,
    collection: str,
    *,
    mesh: Any = None,
    seed: int = 0,
    dev_share: float = 0.1,
    test_split: str = "test",
    max_train_queries: int | None = None,
    max_test_queries: int | None = None,
    need: tuple[str, ...] = ("test",),
    train_queries: str | None = None,
    titles: bool = True,
) -> Workspace:
    """Loads a collection with its splits, and checks it at once.

    A collection without a dev split, or whose dev split is what is tested on, gets
    one: the judged training queries whose id hashes below ``dev_share``, the same on
    every machine.

    Args:
        train_queries: ``queries:PATH``, or any collection's name: its training queries
            are trained on in place of this one's.
        titles: False reads documents without their titles.

    Raises:
        UserError: a split named in ``need`` is missing.
    """
    from distill_jax.collections.schemes import Source

    docs, splits, source = None, {}, Source(collection)
    missing: UserError | None = None
    for name in ("train", "dev", test_split):
        try:
            found, queries, qrels = source.split(name)
        except UserError as error:
            if name in need or (name == test_split and "test" in need):
                raise
            missing = error
            continue
        docs = docs or found
        splits[name] = Split(queries=queries, qrels=qrels)
    if docs is None:
        if need:
            raise missing or UserError(f"{collection} has no split")
        docs = source.docs
    if not titles and docs.titles is not None:
        docs = dataclasses.replace(docs, titles=None, known_digest=None)
    for notice in docs.notices:
        say(f"note: {notice}")
    train, dev, test = (splits.get(n) for n in ("train", "dev", test_split))
    if train_queries is not None:
        train = _queries_of(train_queries, docs)
    if test_split == "dev":
        dev = None  # What is tested on may not choose the model: it is cut from train.
    if dev is None and train is not None and dev_share:
        judged = np.asarray([query in train.qrels for query in train.queries.ids])
        where = split_by_hash(train.queries.ids, dev_share) & judged
        if where.any() and not where.all():
            dev, train = train.take(where), train.take(~where)
    if train is not None and max_train_queries is not None:
        train = train.take(np.arange(len(train.queries)) < max_train_queries)
    if test is not None and max_test_queries is not None:
        test = test.take(np.arange(len(test.queries)) < max_test_queries)
    train, leak = without_leaks(train, {"dev": dev, test_split: test})
    if leak is not None:
        say(f"note: {leak}")
        docs = docs.with_notices(leak)
    counts = ", ".join(
        f"{len(split.queries)} {name} queries"
        for name, split in (("training", train), ("dev", dev), ("test", test))
        if split is not None
    )
    say(f"{collection}: {len(docs):,} documents, {counts}")
    return Workspace(
        directory=Path(directory),
        collection=docs,
        train=train,
        dev=dev,
        test=test,
        mesh=mesh,
        seed=seed,
    )


def open_judgements(
    directory: str | Path, path: str | Path, *, seed: int = 0
) -> Workspace:
    """Judgements without documents or texts: enough to measure runs by.

    Args:
        path: of a TREC or BEIR file, read as ``Qrels.read`` says.

    Raises:
        UserError: it cannot be read, or judges nothing.
    """
    qrels = Qrels.read(path)
    if not len(qrels):
        raise UserError(f"{path}: no judgements", "check the file")
    name = Path(path).name
    queries = Queries(qrels.query_ids, [""] * len(qrels.query_ids), name)
    say(f"{path}: {len(qrels):,} judgements of {len(queries):,} queries")
    return Workspace(
        directory=Path(directory),
        collection=Collection([], [], None, name, qrels.notices),
        train=None,
        dev=None,
        test=Split(queries=queries, qrels=qrels),
        mesh=None,
        seed=seed,
    )


def _queries_of(spec: str, docs: Collection) -> Split:
    """The training queries of another place; judgements count that fit ``docs``."""
    from distill_jax.collections.schemes import load_collection

    found, queries, qrels = load_collection(spec, split="train")
    for notice in found.notices:
        if notice != NO_DOCUMENTS:
            say(f"note: {spec}: {notice}")
    if len(qrels):
        known = {doc for query in qrels for doc in qrels.of(query)}
        fits = any(row >= 0 for row in docs.rows(sorted(known)))
        qrels = qrels.restrict(queries, docs) if fits else Qrels({})
    return Split(queries=queries, qrels=qrels)


def without_leaks(
    train: Split | None, held_out: Mapping[str, Split | None]
) -> tuple[Split | None, str | None]:
    """Training queries without those whose text a held-out split asks too.

    A query that is trained on cannot be measured on. Letter case, punctuation and
    spacing do not make another text (``text_key``).

    Returns:
        What is left, and a sentence about what is not; None where nothing was removed.

    Raises:
        UserError: a held-out query is in training by its id, or nothing is left.
    """
    if train is None:
        return None, None
    ids, texts = set(train.queries.ids), set()
    for name, split in held_out.items():
        if split is None or split is train:
            continue
        both = sorted(ids & set(split.queries.ids))
        if both:
            raise UserError(
                f"{len(both)} {name} queries are also in training, e.g. {both[0]!r}",
                "remove them from the training judgements",
            )
        texts |= {text_key(text) for text in split.queries.texts}
    same = np.asarray([text_key(text) in texts for text in train.queries.texts], bool)
    if not same.any():
        return train, None
    if same.all():
        raise UserError(
            "every training query has the text of a held-out one",
            "give other training queries",
        )
    example = train.queries.texts[int(np.argmax(same))][:60]
    notice = (
        f"{int(same.sum())} training queries have the text of a held-out one, "
        f"e.g. {example!r}: left out"
    )
    return train.take(~same), notice
