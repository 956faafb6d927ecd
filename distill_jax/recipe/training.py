"""How the lists of a stage are trained on: the settings, which a recipe binds."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal, Protocol, TypeAlias

import jax

from distill_jax.evaluation.measures import measure_name
from distill_jax.io.errors import UserError, near
from distill_jax.io.fingerprint import free
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
from distill_jax.models.pretrained import Pretrained
from distill_jax.recipe import query_side, updates
from distill_jax.recipe.updates import OptimizerMaker, ScheduleMaker
from distill_jax.runtime.loggers import check_loggers
from distill_jax.training import optimizers, schedules
from distill_jax.training.trainable import Trainable, trainables


def _known_measure(name: str) -> str:
    return name if name == "loss" else measure_name(name)


class Objective(Protocol):
    """What training minimises: ``losses.Mixture`` or ``losses.Listwise``."""

    def __call__(self, student: Any, rep: Any, batch: Any, /) -> tuple[Any, Any]:
        """The loss, and its parts by name."""
        ...


def known_stream(name: str) -> str:
    """The name of a stream, checked.

    Raises:
        UserError: no such stream.
    """
    kind, colon, task = name.partition(":")
    if bool(colon) != bool(task) or kind not in (("seqio",) if task else STREAMS):
        raise UserError(f"no stream {name!r}", "arrays, seqio or seqio:NAME")
    return name


def _known_logger(name: str) -> str:
    check_loggers((name,))
    return name


Measure: TypeAlias = Annotated[str, Check(_known_measure)]
TrainablePatterns: TypeAlias = Annotated[Any, Check(trainables)]
Stream: TypeAlias = Annotated[str, Check(known_stream)]
Logger: TypeAlias = Annotated[str, Check(_known_logger)]
TRAINED = ("both", "query", "adapter")
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
        zero: the optimizer's moments are divided over the devices of the ``data`` axis
            (ZeRO stage 1); the same result in less memory.
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
        trained: "both" towers, the "query" tower of a dual encoder, or the "adapter"
            alone, a linear layer on the query's vector (``recipe.query_adapter``): with
            both of these documents keep their vectors (and an index its bytes), which
            are gathered on the device.
        trainable: regular expressions of the parameters that are trained, or
            "lora:..."; None is all. See ``training.trainable``.
        may_change: names of these settings that may differ from the training that
            MODEL_DIR holds: that training is resumed nevertheless.
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
    chunk: Size | None = free(None, recorded=True)
    micro_batch: Size | None = free(None, recorded=True)
    remat: Name | None = free(None, recorded=True)
    zero: bool = free(False, recorded=True)
    measure: Measure | None = None
    eval_period: Size | Literal["epoch"] | None = None
    measure_first: bool = False
    patience: Size | None = None
    dev_share: Rate = 0.1
    dev_depth: Size = 30
    checkpoint_period: Size | None = free(200, recorded=True)
    keep: Size = free(1, recorded=True)
    log_period: Size = free(1, recorded=True)
    compile_cache: UserPath | None = free(None, recorded=True)
    loggers: tuple[Logger, ...] | None = free(None, recorded=True)
    stream: Stream = "arrays"
    query_length: Size | None = None
    doc_length: Size | None = None
    lengths: tuple[Size, ...] = (32, 64, 96, 128, 160, 192, 256, 384, 512)
    dev_needed: bool = True
    averages: tuple[Share, ...] = ()
    trained: Literal["both", "query", "adapter"] = "both"
    trainable: TrainablePatterns = None
    may_change: tuple[str, ...] = free(())

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

    def build_optimizer(self, steps: int) -> optimizers.Optimizer:
        """The optimizer for a number of steps and the trained parameters."""
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
        trainable = Trainable.of(self.trainable)
        return dataclasses.replace(made, trainable=trainable, zero=self.zero)

    def check(self, student: Pretrained) -> None:
        """Refuses a student that cannot be trained this way, before any work is done.

        Raises:
            UserError: ``trainable`` names none of its parameters.
        """
        if self.trained == "adapter":
            if self.trainable is not None:
                raise UserError(
                    "trainable parameters are named, and the adapter alone is trained",
                    "leave TRAINABLE out, or set TRAINED='query'",
                )
            query_side.query_tower(student)
            return
        if self.trained == "query":
            student = query_side.query_tower(student)
        trainable = Trainable.of(self.trainable)
        trainable.parted(
            jax.eval_shape(lambda p: trainable.prepared(p, 0), student.params)
        )
