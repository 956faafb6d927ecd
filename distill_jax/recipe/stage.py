"""One stage: candidates, lists, training; each result records its inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distill_jax.io.errors import UserError
from distill_jax.io.values import Name, UserPath
from distill_jax.lists.lists import Lists
from distill_jax.models.pretrained import Pretrained
from distill_jax.recipe import labelled
from distill_jax.recipe.candidates import BM25, Context, Filter, Source
from distill_jax.recipe.examples import Examples, FromTeacher
from distill_jax.recipe.fitting import train_on
from distill_jax.recipe.materials import Material, Mixing
from distill_jax.recipe.queries import QuerySource
from distill_jax.recipe.queries import Training as TrainingQueries
from distill_jax.recipe.students import Student
from distill_jax.recipe.training import Training
from distill_jax.runs.run import Run
from distill_jax.workspace.cached_step import part
from distill_jax.workspace.console import say
from distill_jax.workspace.context import Split, Workspace
from distill_jax.workspace.dependencies import dependencies
from distill_jax.workspace.describe import describe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One trip around: candidates, lists of labels, a trained student.

    Attributes:
        name: of its folder, and of ``stage:NAME`` for later stages.
        candidates: a source, see ``recipe.candidates``.
        examples: what is learnt from, see ``recipe.examples``.
        training: how.
        queries: of the lists that are trained on, see ``recipe.queries``.
        student: what this stage starts from; None continues with the stage before.
        filters: called with (context, run) for a run without false negatives.
        labels: a path, or ``labelled.LabelFile``: labels of elsewhere, whose queries,
            lists and pairs take the place of this stage's; None makes them.
    """

    name: Name = "train"
    candidates: Source = dataclasses.field(default_factory=BM25)
    examples: Examples
    training: Training
    queries: QuerySource = dataclasses.field(default_factory=TrainingQueries)
    student: Student | None = None
    filters: tuple[Filter, ...] = ()
    labels: UserPath | labelled.LabelFile | None = None

    @property
    def list_teacher(self) -> Any:
        """Of the lists; None where they are of judgements, or of several teachers."""
        return getattr(self.examples, "teacher", None)

    def __post_init__(self) -> None:
        nobody = (
            isinstance(self.examples, FromTeacher) and self.examples.teacher is None
        )
        if nobody and self.labels is None:
            raise UserError(
                f"stage {self.name} has no teacher: the recipe needs LLM_BASE_URL and "
                "LLM_MODEL",
                "add --gin.LLM_BASE_URL=... --gin.LLM_MODEL=..., or labels that were "
                "made before: --gin.LABELS=PATH",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage ended with."""

    name: str
    directory: Path
    student: Pretrained
    fit: dict
    made: dict


def run_stage(
    stage: Any,
    student: Pretrained,
    places: Sequence[tuple[Workspace, Path]],
    directory: Path,
    model: Callable[[str], Pretrained],
    round_number: int = 1,
    mixing: Mixing | None = None,
) -> list[StageResult]:
    """Computes what is missing, and trains; resumes wherever it was interrupted.

    Of several collections each has candidates and lists, and one student learns from
    all. A stage of another kind has a ``run`` of its own, of one collection.

    Args:
        places: each collection's workspace, and the folder of its lists.
        directory: of the training.

    Returns:
        For each collection its own result; all have the same student.
    """
    if hasattr(stage, "run"):
        ((workspace, _),) = places
        return [stage.run(student, workspace, directory, model)]
    stage = without_unread_pairs(stage)
    materials, facts = [], []
    for workspace, folder in places:
        context = Context(
            workspace=workspace,
            queries=None,  # type: ignore[arg-type]
            student=student,
            model=model,
            directory=folder,
            round_number=round_number,
        )
        material, made = _material(stage, context)
        materials.append(material)
        facts.append(made)
    trained, fit = train_on(
        stage.training, materials, student, directory, mixing=mixing
    )
    return [
        StageResult(name=stage.name, directory=folder, student=trained, fit=fit, made=m)
        for (_, folder), m in zip(places, facts, strict=True)
    ]


def _material(stage: Stage, context: Context) -> tuple[Material, dict]:
    """The lists of a collection, and facts of how they were made."""
    if stage.labels is not None:
        found = labelled.source(stage.labels).open(context)
        context = dataclasses.replace(
            context,
            workspace=found.workspace,
            queries=found.split.queries,
            qrels=found.split.qrels,
        )
        stage = dataclasses.replace(stage, examples=found.taught(stage.examples))
        run, made = found.run, {"labelled": len(found.labels)}
    else:
        split = stage.queries(context)
        context = dataclasses.replace(context, queries=split.queries, qrels=split.qrels)
        run, made = _candidates(stage, context)
    lists, facts = _lists(stage, context, run)
    return Material(lists=lists, context=context), {"candidates": made, "lists": facts}


def without_unread_pairs(stage: Stage) -> Stage:
    """The stage without a pairwise teacher where no term of its loss reads pairs."""
    terms = getattr(stage.training.objective, "terms", None)
    if terms is None or any(term.on == "pairs" for term in terms):
        return stage
    if getattr(stage.examples, "pairwise", None) is None:
        return stage
    return dataclasses.replace(
        stage,
        examples=dataclasses.replace(stage.examples, pairwise=None),  # type: ignore
    )


def _candidates(stage: Stage, context: Context) -> tuple[Run, dict]:
    directory = context.directory / "candidates"
    inputs = {
        "collection": context.workspace.collection.digest,
        "queries": context.queries.digest,
        "sources": describe(stage.candidates),
        "filters": describe(stage.filters),
        "seed": context.workspace.seed,
    }
    inputs |= dependencies((stage.candidates, stage.filters), context)

    def make(directory: Path) -> dict:
        run = stage.candidates(context)
        funnel = {"candidates": int(run.where.sum())}
        for step in stage.filters:
            run = step(context, run)
            funnel[type(step).__name__] = int(run.where.sum())
        run.write(directory / "run.trec")
        return {"queries": len(run), "funnel": funnel, **_found(run, context)}

    made = part(directory, inputs, make, what="candidates")
    if "found" in made:
        say(
            f"candidates: a relevant document is among those of {made['found']:,} of "
            f"{made['judged']:,} judged queries"
        )
    if made.get("found", 1) < 0.2 * made.get("judged", 1):
        say(
            "note: few lists hold a relevant document; is the retriever that finds "
            "them trained? Name another: CANDIDATES"
        )
    return Run.read(
        directory / "run.trec", collection=context.workspace.collection
    ), made


def _found(run: Run, context: Context) -> dict[str, int]:
    """Of how many judged queries a relevant document is among the candidates."""
    if context.qrels is None:
        return {}
    lists = run.on(context.workspace.collection)
    ids = context.workspace.collection.ids
    found = judged = 0
    for place, query in enumerate(lists.query_ids):
        relevant = set(context.qrels.relevant(query))
        judged += bool(relevant)
        found += any(
            ids[row] in relevant for row in lists.rows[place].tolist() if row >= 0
        )
    return {"found": found, "judged": judged} if judged else {}


def _lists(stage: Stage, context: Context, run: Run) -> tuple[Lists, dict]:
    workspace = context.workspace
    inputs = {
        "candidates": run.digest,
        "examples": describe(stage.examples),
        "queries": context.queries.digest,
        "judgements": Split(queries=context.queries, qrels=context.qrels).digest,
        "seed": workspace.seed,
    }
    inputs |= dependencies(stage.examples, context)

    def make(directory: Path) -> dict:
        lists = stage.examples(context, run)
        lists.save(directory)
        sizes = lists.where.sum(1)
        return {
            "lists": len(lists),
            "docs_per_list": float(sizes.mean()),
            "labelled": int(lists.labelled.sum()),
            "pairs": int((lists.first >= 0).sum()),
        }

    made = part(context.directory / "lists", inputs, make, what="lists")
    say(
        f"{made['lists']:,} lists of {made['docs_per_list']:.1f} documents, "
        f"{made['labelled']:,} with a positive, {made['pairs']:,} judged pairs"
    )
    return Lists.load(context.directory / "lists"), made
