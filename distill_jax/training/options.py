"""Options and results of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from distill_jax.io.errors import UserError, near
from distill_jax.runtime.loggers import check_loggers
from distill_jax.runtime.placement import REMAT
from distill_jax.training.optimizers import Optimizer

Evaluate = Callable[[Any, int], Mapping[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FitOptions:
    """How a student is trained; ``loop.Fit`` does it.

    Attributes:
        steps: updates in all.
        directory: gets ``checkpoints/`` and ``metrics.jsonl``.
        optimizer: see ``optimizers``.
        mesh: None puts all devices on the data axis.
        seed: of dropout.
        chunk: queries represented at once (GradCache) on each device; None for all.
        micro_batch: queries per forward and backward pass on each device; None for all.
        remat: what layers recompute at least in the backward pass; see ``T5Sizes``.
        memory_limit_bytes: what a step may take of each device; a larger one is split
            as with ``micro_batch`` (or ``chunk``). None asks the devices.
        checkpoint_period: steps between checkpoints; None saves at the end only.
        keep: how many of the newest checkpoints stay, besides the best.
        log_period: steps that one record of ``metrics.jsonl`` is the mean of.
        eval_period: steps between evaluations; None for none.
        eval_first: evaluates before the first step too, so that what training starts
            from may be the best.
        best_measure: name among what ``evaluate`` returns that chooses the best.
        best_mode: "max" or "min".
        patience: evaluations without a better one after which training stops.
        config: settings that a resumed run must share, by name.
        may_change: names of ``config`` that may differ from the run resumed.
        compile_cache: folder for compiled programs, reused by later runs.
        collapse_after: steps with all scores of every list equal before a warning.
        query_names: query rows to ids, for messages.
        loggers: names of ``runtime.loggers.LOGGERS``; None is TensorBoard where it is
            installed.
        show: progress on stderr.
    """

    steps: int
    directory: str | Path
    optimizer: Optimizer
    mesh: Mesh | None = None
    seed: int = 0
    chunk: int | None = None
    micro_batch: int | None = None
    remat: str = REMAT[0]
    memory_limit_bytes: int | None = None
    checkpoint_period: int | None = 1000
    keep: int = 1
    log_period: int = 1
    eval_period: int | None = None
    eval_first: bool = False
    best_measure: str | None = None
    best_mode: str = "max"
    patience: int | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    may_change: tuple[str, ...] = ()
    compile_cache: str | None = None
    collapse_after: int = 20
    query_names: Callable[[np.ndarray], list[str]] | None = None
    loggers: tuple[str, ...] | None = None
    show: bool = True

    def check(self, evaluate: Evaluate | None) -> None:
        """Refuses what cannot work, before anything is compiled.

        Raises:
            UserError: settings that contradict each other.
        """
        check_loggers(self.loggers or ())
        if self.steps < 1:
            raise UserError(f"{self.steps} training steps", "train at least one")
        if self.chunk is not None and self.micro_batch is not None:
            raise UserError(
                f"both a chunk of {self.chunk} and a micro-batch of {self.micro_batch} "
                "are set",
                "set one: chunks serve every loss, micro-batches save a forward pass",
            )
        if self.remat not in REMAT:
            raise UserError(
                f"remat={self.remat!r} is not known{near(self.remat, REMAT)}",
                f"set it to one of {', '.join(REMAT)}",
            )
        if self.best_mode not in ("max", "min"):
            raise UserError(f"best_mode is {self.best_mode!r}", "use 'max' or 'min'")
        if (self.eval_period is None) != (evaluate is None):
            raise UserError(
                "an evaluation needs both what to evaluate and a period",
                "set both, or neither",
            )
        if self.patience is not None and self.best_measure is None:
            raise UserError("patience needs a best_measure", "name the measure")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FitResult:
    """What a call of ``Fit`` ends with.

    Attributes:
        params: of the best evaluation if there is a ``best_measure``, else the last.
        adapters: leaves of the adapters that are merged in ``params``, by path.
        step: updates done; ``best_step``: those of ``params``.
        history: the records of ``metrics.jsonl``.
        signal: number of the signal that stopped it, or None. A command ends with
            ``128 + signal`` then: 143 for SIGTERM.
        finished: "steps" or "patience"; None if it was interrupted.
        seconds: by what they were spent on; see ``Goodput``.
        compiled: number of batch shapes that were compiled.
    """

    params: Any
    step: int
    best_step: int
    history: list[dict]
    adapters: dict[str, Any] = dataclasses.field(default_factory=dict)
    signal: int | None = None
    finished: str | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    compiled: int = 0

    @property
    def interrupted(self) -> bool:
        return self.signal is not None
