"""One training on lists, which resumes where it was stopped."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distill_jax.inputs.feed import Featurizer, Feed
from distill_jax.inputs.streams import ArrayStream, SeqioStream
from distill_jax.inputs.vectors import VectorFeaturizer
from distill_jax.io.errors import UserError, near
from distill_jax.io.files import digest
from distill_jax.io.fingerprint import free_names
from distill_jax.io.reading import read_record, write_record
from distill_jax.lists.lists import Lists
from distill_jax.models.pretrained import Pretrained
from distill_jax.recipe import averaging, query_adapter, query_side, selection
from distill_jax.recipe.candidates import Context
from distill_jax.recipe.students import trained_dtype
from distill_jax.recipe.training import Training, known_stream
from distill_jax.training.loop import Fit, FitResult
from distill_jax.weights import peft
from distill_jax.workspace import cached_step
from distill_jax.workspace.cached_step import part
from distill_jax.workspace.console import say
from distill_jax.workspace.describe import describe


class Stopped(Exception):
    """A signal ended a stage; everything is saved. ``status`` is the exit status."""

    def __init__(self, status: int):
        super().__init__(f"stopped by signal {status - 128}")
        self.status = status


def train(
    training: Training,
    lists: Lists,
    student: Pretrained,
    context: Context,
    *,
    vectors: Any = None,
) -> tuple[Pretrained, dict]:
    """Trains on lists; a finished training is not done again.

    Args:
        vectors: float[M, E] that the lists' ``doc_rows`` are rows of, in place of the
            collection: constants that the student's vectors of the queries meet.
    """
    trained_dtype(student.spec.backbone.dtype)
    directory = context.directory
    settings = describe(dataclasses.replace(training, objective=None))
    settings |= {
        "objective": describe(training.objective),
        "seed": context.workspace.seed,
    }
    inputs = {"lists": lists.digest, "student": student.digest}
    if vectors is not None:
        inputs["vectors"] = query_side.vectors_digest(vectors)
    _refuse_other_settings(directory, inputs, settings, training.may_change)

    def make(folder: Path) -> dict:
        write_record(folder / "settings.json", settings)
        result, trained, kept = _fit(
            training, lists, student, context, settings, vectors
        )
        if result.interrupted:
            raise Stopped(128 + (result.signal or 0))
        if jax.process_index() == 0:
            trained.save(folder)
        return {
            "step": result.step,
            "best_step": result.best_step,
            "finished": result.finished,
            "compiled_shapes": result.compiled,
            "spent": result.seconds,
            **kept,
        }

    made = part(
        directory / "student",
        inputs,
        make,
        what="training",
        also=(directory / "checkpoints", directory / "metrics.jsonl"),
    )
    return Pretrained.read(directory / "student"), made


def _refuse_other_settings(
    directory: Path, inputs: dict, settings: dict, may_change: tuple[str, ...]
) -> None:
    """Refuses to resume or reuse a training whose settings differ.

    Unless each of those that differ is named in ``may_change``.
    """
    for name in may_change:
        if name not in settings:
            raise UserError(
                f"may_change names {name!r}{near(name, settings)}",
                f"the settings are {', '.join(sorted(settings))}",
            )
    before = directory / "student/settings.json"
    record = cached_step.record_of(directory / "student")
    if record is None or not before.is_file():
        return
    saved = any((directory / "checkpoints").glob("[0-9]*"))
    if not (saved or record["complete"]):
        return  # nothing was trained under them
    if record["inputs"] != {k: digest(v) for k, v in inputs.items()}:
        return  # recomputed in any case, and the cached step says why
    old = read_record(before, "restore it, or set --gin.MODEL_DIR to a new folder")
    changed = [
        name
        for name in sorted({*old, *settings} - {*free_names(Training)})
        if old.get(name) != settings.get(name)
    ]
    if not {*changed} <= {*may_change}:
        told = "; ".join(
            f"{name} {old.get(name)!r} -> {settings.get(name)!r}" for name in changed
        )
        raise UserError(
            f"{directory} holds a training with other settings: {told}",
            "set --gin.MODEL_DIR to a new folder, or go on under these settings: "
            f"--gin.MAY_CHANGE={json.dumps(changed, separators=(',', ':'))}",
        )
    if changed and record["complete"]:
        # Finished under the old settings: the new ones may ask for more steps.
        cached_step.reopen(directory / "student")


def _fit(
    training: Training,
    lists: Lists,
    student: Pretrained,
    context: Context,
    settings: dict,
    vectors: Any,
) -> tuple[FitResult, Pretrained, dict]:
    """What training ended with, the student, and facts of what was not trained."""
    workspace, mesh = context.workspace, context.workspace.mesh
    whole, frozen, kept = student, None, {}
    if training.trained != "both" and vectors is None:
        vectors = frozen = query_side.doc_vectors(whole, context)
        kept = {"document_vectors": query_side.vectors_digest(frozen)}
    searcher: Any = None
    if training.trained == "query":
        student = query_side.query_tower(whole)
        searcher = functools.partial(query_side.searcher, student)
    elif training.trained == "adapter":
        whole = query_adapter.with_adapter(whole)
        read = _cut(whole, training)
        student = query_adapter.on_vectors(read, context, context.queries)
        searcher = functools.partial(query_adapter.searcher, whole)
        training = dataclasses.replace(training, trainable=query_adapter.TRAINED)
    ids = context.queries.ids
    lists, dev = selection.held_out(training, lists, context)
    steps = training.total(len(lists))
    featurizer: Any
    if training.trained == "adapter":
        featurizer = query_adapter.RowFeaturizer()
    else:
        featurizer = make_featurizer(_cut(student, training), context, training.lengths)
    if vectors is not None:
        featurizer = VectorFeaturizer(featurizer, vectors, mesh)
    feed = Feed(
        lists=lists,
        featurizer=featurizer,
        stream=_stream(training.stream),
        batch_size=training.batch_size,
        directory=context.directory / "records",
        seed=workspace.seed,
        host=jax.process_index(),
        hosts=jax.process_count(),
    )
    evaluate = selection.evaluation(
        training,
        student,
        context,
        featurizer,
        dev,
        searcher=None
        if frozen is None
        else functools.partial(searcher, vectors=frozen),
    )
    say(
        f"training {student.spec.kind}: {steps} steps of {training.batch_size} lists "
        f"({len(lists):,} lists, {steps * training.batch_size / len(lists):.1f} epochs)"
    )
    fit = Fit(
        steps=steps,
        directory=context.directory,
        optimizer=training.build_optimizer(steps),
        mesh=mesh,
        seed=workspace.seed,
        chunk=training.chunk,
        micro_batch=training.micro_batch,
        remat=training.remat or "none",
        checkpoint_period=training.checkpoint_period,
        keep=training.keep,
        log_period=training.log_period,
        compile_cache=training.compile_cache,
        loggers=training.loggers,
        eval_period=selection.period(training, len(lists), steps) if evaluate else None,
        eval_first=training.measure_first and evaluate is not None,
        best_measure=training.measure if evaluate else None,
        best_mode="min" if training.measure == "loss" else "max",
        patience=training.patience if evaluate else None,
        config=settings,
        may_change=(*free_names(Training), *training.may_change),
        query_names=lambda rows: [ids[int(row)] for row in rows],
    )
    objective: Any = training.objective
    if hasattr(objective, "over"):
        objective = objective.over(steps)
    result = fit(student.graphdef(), student.params, objective, feed, evaluate)
    params = jax.tree.map(lambda leaf: np.asarray(_whole(leaf)), result.params)
    facts: dict[str, Any] = {}
    if training.averages and not result.interrupted:
        params, facts = averaging.chosen(
            student.params, params, training.averages, evaluate, training.measure
        )
        kept |= {"averaged": facts}
    if result.adapters and result.finished and jax.process_index() == 0:
        share = facts.get("share", 1.0)
        folder = context.directory / "student" / "adapter"
        kept |= {"adapter": peft.write(folder, student, result.adapters, share=share)}
    if training.trained == "query":
        trained = query_side.with_query_tower(whole, params)
        return result, trained.replace(source=str(context.directory)), kept
    if training.trained == "adapter":
        trained = query_adapter.with_layer(whole, params)
        return result, trained.replace(source=str(context.directory)), kept
    trained = student.replace(params=params, source=str(context.directory), fresh=())
    return result, trained, kept


def _cut(student: Pretrained, training: Training) -> Pretrained:
    """The student as it reads in training."""
    wanted = {"query_length": training.query_length, "doc_length": training.doc_length}
    changes = {name: value for name, value in wanted.items() if value is not None}
    return student.replace(spec=dataclasses.replace(student.spec, **changes))


def _whole(leaf: Any) -> Any:
    """A parameter that is spread over hosts, gathered on each."""
    if getattr(leaf, "is_fully_addressable", True):
        return leaf
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(leaf, tiled=True)


def _stream(name: str) -> SeqioStream | ArrayStream:
    kind, _, task = known_stream(name).partition(":")
    return SeqioStream(name=task or None) if kind == "seqio" else ArrayStream()


def make_featurizer(
    student: Pretrained, context: Context, lengths: tuple[int, ...]
) -> Featurizer:
    """The student's path from row numbers to tokens."""
    documents, workspace = student.spec.documents, context.workspace
    pad_id = student.tokenizer.pad_id or 0
    if not documents:
        return Featurizer(
            documents=0,
            pad_id=pad_id,
            query=workspace.query_features(student, context.queries),
            doc=workspace.doc_features(student),
            buckets=lengths,
        )
    pair = workspace.pair_features(student, context.queries)
    return Featurizer(documents=documents, pad_id=pad_id, pair=pair, buckets=lengths)
