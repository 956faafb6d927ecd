"""One training on lists, which resumes where it was stopped."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distill_jax.io.errors import UserError, near
from distill_jax.io.files import digest
from distill_jax.io.fingerprint import free_names
from distill_jax.io.reading import read_record, write_record
from distill_jax.lists.lists import Lists
from distill_jax.models.pretrained import Pretrained
from distill_jax.recipe import averaging, query_adapter, query_side, selection
from distill_jax.recipe.candidates import Context
from distill_jax.recipe.materials import (
    Material,
    Mixing,
    cut,
    evaluation,
    frozen_vectors,
    on_vectors,
)
from distill_jax.recipe.students import trained_dtype
from distill_jax.recipe.training import Training
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
    material = Material(lists=lists, context=context, vectors=vectors)
    return train_on(training, [material], student, context.directory)


def train_on(
    training: Training,
    materials: Sequence[Material],
    student: Pretrained,
    directory: Path,
    *,
    mixing: Mixing | None = None,
) -> tuple[Pretrained, dict]:
    """Trains on the lists of one collection or several; a batch is of one of them.

    Args:
        directory: of the training.
        mixing: of several; None is ``Mixing()``.
    """
    mixing = mixing or Mixing()
    trained_dtype(student.spec.backbone.dtype)
    settings = describe(dataclasses.replace(training, objective=None))
    settings |= {
        "objective": describe(training.objective),
        "seed": materials[0].context.workspace.seed,
    }
    digests = [material.lists.digest for material in materials]
    inputs: dict[str, Any] = {"lists": digests[0], "student": student.digest}
    if len(materials) > 1:
        inputs["lists"] = digest(*digests)
        settings["mixing"] = describe(mixing)
    if materials[0].vectors is not None:
        inputs["vectors"] = query_side.vectors_digest(materials[0].vectors)
    _refuse_other_settings(directory, inputs, settings, training.may_change)

    def make(folder: Path) -> dict:
        write_record(folder / "settings.json", settings)
        result, trained, kept = _fit(
            training, materials, student, directory, settings, mixing
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
    materials: Sequence[Material],
    student: Pretrained,
    directory: Path,
    settings: dict,
    mixing: Mixing,
) -> tuple[FitResult, Pretrained, dict]:
    """What training ended with, the student, and facts of what was not trained."""
    workspace = materials[0].context.workspace
    whole, kept, searcher = student, {}, None
    if training.trained != "both" and materials[0].vectors is None:
        materials, kept = frozen_vectors(materials, whole)
    if training.trained == "query":
        student = query_side.query_tower(whole)
        searcher = functools.partial(query_side.searcher, student)
    elif training.trained == "adapter":
        whole = query_adapter.with_adapter(whole)
        materials, student = on_vectors(materials, cut(whole, training))
        searcher = functools.partial(query_adapter.searcher, whole)
        training = dataclasses.replace(training, trainable=query_adapter.TRAINED)
    materials = [material.held_out(training) for material in materials]
    featurizers = [material.featurizer(training, student) for material in materials]
    lists = sum(len(material.lists) for material in materials)
    steps = training.total(lists)
    feed = mixing.feed(training, materials, featurizers)
    evaluate = evaluation(
        training, student, materials, featurizers, searcher if kept else None
    )
    say(
        f"training {student.spec.kind}: {steps} steps of {training.batch_size} lists "
        f"({lists:,} lists, {steps * training.batch_size / lists:.1f} epochs)"
    )
    ids = materials[0].context.queries.ids
    fit = Fit(
        steps=steps,
        directory=directory,
        optimizer=training.build_optimizer(steps),
        mesh=workspace.mesh,
        seed=workspace.seed,
        chunk=training.chunk,
        micro_batch=training.micro_batch,
        remat=training.remat or "none",
        checkpoint_period=training.checkpoint_period,
        keep=training.keep,
        log_period=training.log_period,
        compile_cache=training.compile_cache,
        loggers=training.loggers,
        eval_period=selection.period(training, lists, steps) if evaluate else None,
        eval_first=training.measure_first and evaluate is not None,
        best_measure=training.measure if evaluate else None,
        best_mode="min" if training.measure == "loss" else "max",
        patience=training.patience if evaluate else None,
        config=settings,
        may_change=(*free_names(Training), *training.may_change),
        # Of several collections a row number names one query in each.
        query_names=(lambda rows: [ids[int(row)] for row in rows])
        if len(materials) == 1
        else None,
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
        folder = directory / "student" / "adapter"
        kept |= {"adapter": peft.write(folder, student, result.adapters, share=share)}
    if training.trained == "query":
        trained = query_side.with_query_tower(whole, params)
        return result, trained.replace(source=str(directory)), kept
    if training.trained == "adapter":
        trained = query_adapter.with_layer(whole, params)
        return result, trained.replace(source=str(directory)), kept
    trained = student.replace(params=params, source=str(directory), fresh=())
    return result, trained, kept


def _whole(leaf: Any) -> Any:
    """A parameter that is spread over hosts, gathered on each."""
    if getattr(leaf, "is_fully_addressable", True):
        return leaf
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(leaf, tiled=True)
