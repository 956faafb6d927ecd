"""How the lists of a stage are trained on: settings, and one restartable training."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeAlias

import jax
import numpy as np

from distill_jax.evaluation.measures import measure_name
from distill_jax.inputs.feed import Featurizer, Feed
from distill_jax.inputs.streams import ArrayStream, SeqioStream
from distill_jax.inputs.vectors import VectorFeaturizer
from distill_jax.io.errors import UserError, near
from distill_jax.io.files import digest
from distill_jax.io.reading import read_json, write_json
from distill_jax.io.values import (
    Check,
    Name,
    NotNegative,
    Positive,
    Rate,
    Share,
    Size,
    UserPath,
)
from distill_jax.lists.lists import Lists
from distill_jax.models.pretrained import Pretrained
from distill_jax.recipe import averaging, query_side, selection, updates
from distill_jax.recipe.candidates import Asked
from distill_jax.recipe.students import trained_dtype
from distill_jax.recipe.updates import OptimizerMaker, ScheduleMaker
from distill_jax.training import optimizers, schedules
from distill_jax.training.loop import Fit, FitResult
from distill_jax.training.trainable import Trainable, trainables
from distill_jax.weights import peft
from distill_jax.workspace import ranking
from distill_jax.workspace.cached_step import part
from distill_jax.workspace.console import say
from distill_jax.workspace.describe import describe

# What changes neither the steps nor, but for rounding, what they learn.
_FREE = (
    "chunk",
    "micro_batch",
    "remat",
    "checkpoint_period",
    "keep",
    "log_period",
    "compile_cache",
    "loggers",
)


def _known_measure(name: str) -> str:
    return name if name == "loss" else measure_name(name)


class Objective(Protocol):
    """What training minimises: ``losses.Mixture`` or ``losses.Listwise``."""

    def __call__(self, student: Any, rep: Any, batch: Any, /) -> tuple[Any, Any]:
        """The loss, and its parts by name."""
        ...


def _known_stream(name: str) -> str:
    kind, colon, task = name.partition(":")
    if bool(colon) != bool(task) or kind not in (("seqio",) if task else STREAMS):
        raise UserError(f"no stream {name!r}", "arrays, seqio or seqio:NAME")
    return name


Measure: TypeAlias = Annotated[str, Check(_known_measure)]
TrainablePatterns: TypeAlias = Annotated[Any, Check(trainables)]
Stream: TypeAlias = Annotated[str, Check(_known_stream)]
TRAINED = ("both", "query")
STREAMS = ("arrays", "seqio")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How a stage's lists are trained on.

    Attributes:
        objective: ``losses.Mixture`` or ``losses.Listwise``.
        steps: updates; or ``epochs`` over the lists when ``steps`` is None.
        batch_size: lists in a global batch (B).
        learning_rate, warmup: peak; steps of warm-up, or below 1 their share of all.
        schedule: a function of ``training.schedules``, or one that takes their
            parameters, and gives the learning rate as a function of the step.
        optimizer: a function of ``training.optimizers``, or one that takes
            ``learning_rate`` and gives an optax transformation.
        chunk: queries encoded at once on a device (GradCache); any loss, the same
            gradient.
        micro_batch: queries a pass on a device, for losses that do not cross queries.
        remat: "none", or what layers compute again in the backward pass to save
            memory: "matmuls" keeps the matrix products, "full" nothing. None starts
            with "none" and goes on to what fits.
        measure: what chooses the best checkpoint: "loss" on held-out lists, a ranking
            measure on dev judgements ("nDCG@10"), or None for the last.
        eval_period: in steps, or "epoch"; None evaluates four times.
        measure_first: what training starts from is measured too, and may be the best.
        patience: evaluations without a better one after which training stops.
        dev_share: share of the lists held out for "loss": by the document that a query
            was made from, or by its id.
        loggers: where the numbers are shown while training runs, by name; None is
            TensorBoard where it is installed.
        log_period: steps that one record of ``metrics.jsonl`` is the mean of.
        compile_cache: folder of compiled programs, which later runs reuse.
        stream: "arrays", "seqio", or "seqio:NAME" of a registered task or mixture.
        query_length, doc_length: tokens read in training, where fewer than the student
            reads when it is used; None trains on what it reads.
        lengths: allowed sequence lengths; few, since each is compiled.
        dev_needed: False keeps the last checkpoint of a collection that has no dev
            judgements for ``measure``, instead of refusing it.
        averages: shares of the trained weights in a weighted mean with those that the
            stage started from; the best by ``measure`` is kept (the least share of
            equals, so that 0 keeps the start). Without dev judgements, the greatest.
        trained: "both" towers, or the "query" tower of a dual encoder: documents keep
            their vectors (and an index its bytes), which are gathered on the device.
        trainable: regular expressions of the parameters that are trained, or
            "lora:..."; None is all. See ``training.trainable``.
        may_change: names of these settings that may differ from the training that
            MODEL_DIR holds: that training is resumed all the same.
    """

    objective: Objective
    steps: Size | None = None
    epochs: Positive | None = None
    batch_size: Size = 8
    learning_rate: Positive = 1e-4
    schedule: ScheduleMaker = schedules.linear
    warmup: NotNegative = 0.1
    optimizer: OptimizerMaker = optimizers.adamw
    weight_decay: NotNegative = 0.01
    clip: Positive | None = 1.0
    chunk: Size | None = None
    micro_batch: Size | None = None
    remat: Name | None = None
    measure: Measure | None = None
    eval_period: Size | Literal["epoch"] | None = None
    measure_first: bool = False
    patience: Size | None = None
    dev_share: Rate = 0.1
    dev_depth: Size = 30
    checkpoint_period: Size | None = 200
    keep: Size = 1
    log_period: Size = 1
    compile_cache: UserPath | None = None
    loggers: tuple[str, ...] | None = None
    stream: Stream = "arrays"
    query_length: Size | None = None
    doc_length: Size | None = None
    lengths: tuple[Size, ...] = (32, 64, 96, 128, 160, 192, 256, 384, 512)
    dev_needed: bool = True
    averages: tuple[Share, ...] = ()
    trained: Literal["both", "query"] = "both"
    trainable: TrainablePatterns = None
    may_change: tuple[str, ...] = dataclasses.field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.trained not in TRAINED:
            raise UserError(
                f"trained is {self.trained!r}{near(self.trained, TRAINED)}",
                f"one of {', '.join(TRAINED)}",
            )

    def total(self, lists: int) -> int:
        """Updates in all."""
        if self.steps is not None:
            return self.steps
        if self.epochs is None:
            raise UserError("neither steps nor epochs are set", "--gin.TRAIN_STEPS=...")
        return max(1, math.ceil(self.epochs * lists / self.batch_size))

    def made_optimizer(self, steps: int) -> optimizers.Optimizer:
        """The optimizer of a training of so many steps, and of what it trains."""
        warmup = int(self.warmup if self.warmup >= 1 else self.warmup * steps)
        rate = updates.schedule(
            self.schedule,
            peak=self.learning_rate,
            warmup=warmup,
            steps=steps,
            steps_per_epoch=max(1, round(steps / self.epochs)) if self.epochs else None,
            epochs=math.ceil(self.epochs) if self.epochs else None,
        )
        made = updates.optimizer(
            self.optimizer, rate, weight_decay=self.weight_decay, clip=self.clip
        )
        return dataclasses.replace(made, trainable=Trainable.of(self.trainable))

    def check(self, student: Pretrained) -> None:
        """Refuses what cannot be trained of a student, before anything is made for it.

        Raises:
            UserError: ``trainable`` names none of its parameters.
        """
        if self.trained == "query":
            student = query_side.query_tower(student)
        trainable = Trainable.of(self.trainable)
        trainable.parted(
            jax.eval_shape(lambda p: trainable.prepared(p, 0), student.params)
        )


class Stopped(Exception):
    """A signal ended a stage; everything is saved. ``status`` is the exit status."""

    def __init__(self, status: int):
        super().__init__(f"stopped by signal {status - 128}")
        self.status = status


def train(
    training: Training,
    lists: Lists,
    student: Pretrained,
    asked: Asked,
    *,
    vectors: Any = None,
) -> tuple[Pretrained, dict]:
    """Trains on lists; a finished training is not done again.

    Args:
        vectors: float[M, E] that the lists' ``doc_rows`` are rows of, in place of the
            collection: constants that the student's vectors of the queries meet.
    """
    trained_dtype(student.spec.backbone.dtype)
    directory = asked.directory
    settings = describe(dataclasses.replace(training, objective=None))
    settings |= {"objective": describe(training.objective), "seed": asked.setting.seed}
    inputs = {"lists": lists.digest, "student": student.digest}
    if vectors is not None:
        inputs["vectors"] = query_side.vectors_digest(vectors)
    _refuse_other_settings(directory, inputs, settings, training.may_change)

    def make(folder: Path) -> dict:
        write_json(folder / "settings.json", settings)
        result, trained, kept = _fit(training, lists, student, asked, settings, vectors)
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
    record, before = (
        directory / "student/part.json",
        directory / "student/settings.json",
    )
    if not (record.is_file() and before.is_file()):
        return
    saved = any((directory / "checkpoints").glob("[0-9]*"))
    if not (saved or read_json(record)["complete"]):
        return  # nothing was trained under them
    if read_json(record)["inputs"] != {k: digest(v) for k, v in inputs.items()}:
        return  # made anew in any case, and the part says why
    old = read_json(before)
    changed = [
        name
        for name in sorted({*old, *settings} - {*_FREE})
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
    if changed and read_json(record)["complete"]:
        # Made under the old ones: there may be more to do under these.
        write_json(record, {**read_json(record), "complete": False})


def _fit(
    training: Training,
    lists: Lists,
    student: Pretrained,
    asked: Asked,
    settings: dict,
    vectors: Any,
) -> tuple[FitResult, Pretrained, dict]:
    """What training ended with, the student, and facts of what was not trained."""
    setting, mesh = asked.setting, asked.setting.mesh
    whole, frozen, kept = student, None, {}
    if training.trained == "query":
        student = query_side.query_tower(whole)
        if vectors is None:
            vectors = frozen = query_side.doc_vectors(whole, asked)
            kept = {"document_vectors": query_side.vectors_digest(frozen)}
    ids = asked.queries.ids
    lists, dev = selection.held_out(training, lists, asked)
    steps = training.total(len(lists))
    featurizer: Any = make_featurizer(_cut(student, training), asked, training.lengths)
    if vectors is not None:
        featurizer = VectorFeaturizer(featurizer, vectors, mesh)
    feed = Feed(
        lists=lists,
        featurizer=featurizer,
        stream=_stream(training.stream),
        batch_size=training.batch_size,
        directory=asked.directory / "records",
        seed=setting.seed,
        host=jax.process_index(),
        hosts=jax.process_count(),
    )
    evaluate = selection.evaluation(
        training, student, asked, featurizer, dev, vectors=frozen
    )
    say(
        f"training {student.spec.kind}: {steps} steps of {training.batch_size} lists "
        f"({len(lists):,} lists, {steps * training.batch_size / len(lists):.1f} epochs)"
    )
    fit = Fit(
        steps=steps,
        directory=asked.directory,
        optimizer=training.made_optimizer(steps),
        mesh=mesh,
        seed=setting.seed,
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
        may_change=(*_FREE, *training.may_change),
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
        folder = asked.directory / "student" / "adapter"
        kept |= {"adapter": peft.write(folder, student, result.adapters, share=share)}
    if training.trained == "query":
        trained = query_side.with_query_tower(whole, params)
        return result, trained.replace(source=str(asked.directory)), kept
    trained = student.replace(params=params, source=str(asked.directory), fresh=())
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
    kind, _, task = _known_stream(name).partition(":")
    return SeqioStream(name=task or None) if kind == "seqio" else ArrayStream()


def make_featurizer(
    student: Pretrained, asked: Asked, lengths: tuple[int, ...]
) -> Featurizer:
    """The student's path from row numbers to tokens."""
    kind, setting = student.spec.kind, asked.setting
    pad_id = student.tokenizer.pad_id or 0
    if kind in (*ranking.ENCODERS, "generator"):
        return Featurizer(
            kind=kind,
            pad_id=pad_id,
            query=setting.query_features(student, asked.queries),
            doc=setting.doc_features(student),
            buckets=lengths,
        )
    pair = setting.pair_features(student, asked.queries)
    return Featurizer(kind=kind, pad_id=pad_id, pair=pair, buckets=lengths)
