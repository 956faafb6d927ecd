"""Embedding distillation: texts alone, and a teacher's vectors of them.

No lists, no negatives, no judgements: the student's vector of a text is drawn to the
teacher's (LEAF, Vujanic and Rueckstiess 2025; EmbedDistill, Kim et al. 2023).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from distill_jax.collections.collection import Queries
from distill_jax.io.errors import UserError, near, whole
from distill_jax.io.files import digest
from distill_jax.io.fingerprint import free
from distill_jax.io.values import Size, UserPath
from distill_jax.lists.lists import Lists, empty_lists
from distill_jax.models.pretrained import Pretrained
from distill_jax.models.templates import side_template
from distill_jax.ops.vector_form import VectorForm
from distill_jax.recipe.candidates import Context
from distill_jax.recipe.checkpoints import Model
from distill_jax.recipe.fitting import train
from distill_jax.recipe.llm import bill, opened
from distill_jax.recipe.stage import StageResult
from distill_jax.recipe.students import Student
from distill_jax.recipe.training import Training
from distill_jax.teaching.clients import Completer
from distill_jax.text.features import Features
from distill_jax.workspace.console import Counter, say
from distill_jax.workspace.context import Workspace
from distill_jax.workspace.describe import describe

TEXTS = ("documents", "queries")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
    """A dual encoder that loads is the teacher; its vectors are kept by text.

    Attributes:
        checkpoint: what ``distill_jax.load`` takes, or ``stage:NAME``.
        doc_length: tokens read of a text; None reads as far as the checkpoint says.
        cache: folder of vectors, shared between jobs; None keeps one in ``MODEL_DIR``.
    """

    checkpoint: Model
    doc_length: int | None = None
    cache: UserPath | None = free(None)

    def __call__(self, context: Context) -> np.ndarray:
        from distill_jax.inference.forward import encode_all
        from distill_jax.teaching.vectors import VectorStore

        workspace = context.workspace
        model = context.model(self.checkpoint, doc_length=self.doc_length)
        if model.spec.vectors is not VectorForm.ONE:
            raise UserError(
                f"{self.checkpoint} is a {model.spec.kind}, which has no vector of a "
                "text",
                "name a dual encoder as the teacher",
            )
        template = side_template(model.spec, "doc", model.tokenizer)

        def make(texts: list[str]) -> np.ndarray:
            part = Queries([str(i) for i in range(len(texts))], texts)
            store = workspace.queries(part, template.reader(model.tokenizer, "text"))
            features = Features(template, model.tokenizer, text=store)
            rows = np.arange(len(texts))
            return encode_all(model, "doc", features, rows, mesh=workspace.mesh)

        name = digest(model.doc_digest, template.to_json())
        store = VectorStore(self.cache or workspace.directory / "teacher", name)
        with Counter("encoding", len(context.queries), "texts") as counter:
            return store.of(context.queries.texts, make, counter.more)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An ``/embeddings`` endpoint in OpenAI's form; its vectors are kept by text.

    Attributes:
        client: ``teaching.clients.Client``; its ``base_url`` stands before
            ``/embeddings``.
        at_once: texts of a call.
        words: what is sent of a text.
        prefix: stands before each text, where the model wants one.
        cache: folder of vectors, shared between jobs; None keeps one in ``MODEL_DIR``.
    """

    client: Any
    at_once: Size = 32
    words: Size = 300
    prefix: str = ""
    cache: UserPath | None = free(None)

    def __call__(self, context: Context) -> np.ndarray:
        from distill_jax.teaching.vectors import VectorStore

        workspace = context.workspace
        name = digest("embeddings", describe(self.client), self.words, self.prefix)
        store = VectorStore(self.cache or workspace.directory / "teacher", name)
        with (
            opened(self.client, context) as client,
            Counter("embedding", len(context.queries), "texts") as counter,
        ):
            make = functools.partial(self._vectors, client, f"embed-{name[:8]}")
            return store.of(context.queries.texts, make, counter.more)

    def _vectors(self, client: Completer, job: str, texts: list[str]) -> np.ndarray:
        from distill_jax.teaching import calls
        from distill_jax.teaching.judges import first_words

        shown = [self.prefix + first_words(text, self.words) for text in texts]
        requests = [
            calls.Embed(f"{job}/{start}", tuple(shown[start : start + self.at_once]))
            for start in range(0, len(shown), self.at_once)
        ]
        replies = client.complete_all(requests)
        found = [calls.vectors_in(reply) for reply in replies if reply is not None]
        if lost := len(replies) - len(found):
            raise UserError(
                f"{client.model}: {lost} of {len(replies)} calls gave no vectors "
                f"({client.counts(job)['failures']})",
                "look at the endpoint and run the same command: what was answered "
                "is kept",
            )
        if len({vectors.shape[1] for vectors in found}) > 1:
            raise UserError(
                f"{client.model}: vectors of several lengths",
                "let one model answer, and give a new MODEL_DIR",
            )
        return np.concatenate(found)

    def estimate(self, context: Context) -> str:
        """Calls, tokens and cost before the first call, for ``--plan``."""
        from distill_jax.teaching import calls
        from distill_jax.teaching.judges import first_words

        texts = [first_words(text, self.words) for text in context.queries.texts]
        tokens = calls.Embed("plan", tuple(self.prefix + t for t in texts)).tokens()
        found = {
            "calls": -(-len(texts) // self.at_once),
            "prompt_tokens": tokens[0],
            "completion_tokens": 0,
            "cost": self.client.cost(tokens),
        }
        return bill(self.client, found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorFile:
    """Vectors from a file.

    Attributes:
        path: a ``.npy`` file [M, E] in the order of the collection's documents (with
            ``texts=("documents",)``), or a Parquet file with the columns ``id`` and
            ``embedding``: ids of documents, and of training queries.
    """

    path: UserPath

    def __call__(self, context: Context) -> np.ndarray:
        from distill_jax.teaching.vectors import checked

        path, texts = Path(self.path), context.queries
        if path.suffix == ".npy":
            with whole(f"{path}: cannot be read", "give a file of np.save"):
                found = np.load(path, mmap_mode="r", allow_pickle=False)
                if found.ndim != 2:
                    raise ValueError(f"an array of shape {found.shape}, not [M, E]")
            if len(found) != len(context.workspace.collection):
                raise UserError(
                    f"{path} has {len(found)} vectors, and the collection has "
                    f"{len(context.workspace.collection)} documents",
                    "one vector a document, in the collection's order",
                )
            names = [name.split(":", 1) for name in texts.ids]
            if any(kind != "document" for kind, _ in names):
                raise UserError(
                    f"{path} has no vectors of queries",
                    "set texts = ('documents',), or give a Parquet file",
                )
            rows = context.workspace.collection.rows([name for _, name in names])
            return checked(found[rows], len(rows), str(path))
        import pyarrow.parquet as pq

        todo = "give a .npy file, or Parquet with id and embedding"
        with whole(f"{path}: cannot be read", todo):
            table = pq.read_table(path, columns=["id", "embedding"])
            table.validate(full=True)
            by_id = dict(zip(map(str, table["id"].to_pylist()), table["embedding"]))
        wanted = [name.split(":", 1)[1] for name in texts.ids]
        missing = [name for name in wanted if name not in by_id]
        if missing:
            raise UserError(
                f"{path} has no vector of {len(missing)} of {len(wanted)} texts, e.g. "
                f"{missing[0]!r}",
                "give a vector of each document, and of each training query",
            )
        with whole(f"{path}: not vectors of one width", todo):
            found = np.asarray([by_id[name].as_py() for name in wanted], np.float32)
        return checked(found, len(wanted), str(path))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingStage:
    """A stage of ``Distill`` that learns a teacher's vectors.

    Attributes:
        name: of its folder, and of ``stage:NAME`` for later stages.
        teacher: called with (context), whose queries are the texts, for float32[M, E].
        training: its objective reads representations (``on="rep"``), see
            ``losses.embedding_distance``.
        texts: "documents", "queries" (the training ones), or both.
        student: what this stage starts from; None continues with the stage before. One
            whose vectors are narrower than the teacher's needs ``projection`` in its
            options: a linear layer of the teacher's width.
        keep_projection: whether that layer stays. Without it vectors are as wide as
            before, and no longer the teacher's.
    """

    name: str = "embeddings"
    teacher: Any
    training: Training
    texts: tuple[str, ...] = TEXTS
    student: Student | None = None
    keep_projection: bool = True
    list_teacher: ClassVar[None] = None  # its teacher gives vectors, not an order

    def __post_init__(self) -> None:
        for name in self.texts:
            if name not in TEXTS:
                raise UserError(
                    f"no texts {name!r}{near(name, TEXTS)}",
                    f"some of {', '.join(TEXTS)}",
                )

    def run(
        self,
        student: Pretrained,
        workspace: Workspace,
        directory: Path,
        model: Callable[[str], Pretrained],
    ) -> StageResult:
        """The teacher's vectors, then training; resumes wherever it was interrupted."""
        texts = self.texts_of(workspace)
        context = Context(
            workspace=workspace,
            queries=texts,
            student=student,
            model=model,
            directory=directory,
        )
        vectors = self.teacher(context)
        self._check(student, vectors)
        count = len(texts)
        say(f"{count:,} texts, vectors of {vectors.shape[1]} by the teacher")
        rows = np.arange(count, dtype=np.int32)
        lists = Lists(
            **empty_lists(count, 1, 0)
            | {
                "query_rows": rows,
                "doc_rows": rows[:, None],
                "labels": np.ones((count, 1), np.float32),
            }
        )
        # A text is read as far as a document, on the side that is trained.
        reads = dataclasses.replace(student.spec, query_length=student.spec.doc_length)
        trained, fit = train(
            self.training, lists, student.replace(spec=reads), context, vectors=vectors
        )
        spec = dataclasses.replace(trained.spec, query_length=student.spec.query_length)
        trained = trained.replace(spec=spec)
        if not self.keep_projection:
            trained = without_projection(trained)
        return StageResult(
            name=self.name,
            directory=directory,
            student=trained,
            fit=fit,
            made={"lists": {"lists": count, "docs_per_list": 1.0}},
        )

    def texts_of(self, workspace: Workspace) -> Queries:
        """The texts, each with an id of its own; empty ones are left out."""
        ids: list[str] = []
        texts: list[str] = []
        if "documents" in self.texts:
            ids += [f"document:{doc}" for doc in workspace.collection.ids]
            texts += list(workspace.collection.full_texts())
        if "queries" in self.texts and workspace.train is not None:
            ids += [f"query:{query}" for query in workspace.train.queries.ids]
            texts += list(workspace.train.queries.texts)
        kept = [i for i, text in enumerate(texts) if text.strip()]
        if not kept:
            raise UserError(
                f"there is no text among {', '.join(self.texts)}",
                "set texts = ('documents', 'queries')",
            )
        return Queries([ids[i] for i in kept], [texts[i] for i in kept])

    def _check(self, student: Pretrained, vectors: np.ndarray) -> None:
        if student.spec.vectors is not VectorForm.ONE:
            raise UserError(
                f"a {student.spec.kind} has no text vector to train",
                "use a dual encoder",
            )
        width = student.spec.width
        distances = any(
            getattr(term.loss, "__name__", "") == "embedding_distance"
            for term in getattr(self.training.objective, "terms", ())
        )
        if distances and width != vectors.shape[1]:
            raise UserError(
                f"the student's vectors have {width} numbers and the teacher's "
                f"{vectors.shape[1]}",
                f"--gin.STUDENT_OPTIONS=\"{{'projection': {vectors.shape[1]}}}\"",
            )


def without_projection(student: Pretrained) -> Pretrained:
    """A dual encoder whose vectors are its pooled hidden states again."""
    params = {
        tower: {
            name: value
            for name, value in parts.items()
            if name not in ("projection", "project")
        }
        for tower, parts in student.params.items()
    }
    spec = dataclasses.replace(student.spec, projection=None, more_projections=())
    return student.replace(spec=spec, params=params)
