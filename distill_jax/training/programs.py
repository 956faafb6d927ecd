"""The compiled steps of a run: whole batches where they fit, else pieces of them.

A step that needs more memory than a device has is compiled again for half as many
queries at a time: micro-batches where the loss is a sum over queries, GradCache chunks
where it is not; with one query a device, layers are computed again in the backward
pass. All are exact, so the run stays the same to rounding. The compiler's
plan is read before anything runs: it depends on shapes and devices alone, so a resumed
run splits its batches as the unbroken one would have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from distill_jax.runtime import sharding
from distill_jax.runtime.compiled import is_out_of_memory
from distill_jax.training.failures import OutOfMemory
from distill_jax.training.memory import (
    Form,
    StepMemory,
    fewer,
    gigabytes,
    limit_of,
    planned,
    sums_over_queries,
)
from distill_jax.training.options import FitOptions
from distill_jax.training.prefetch import HostBatch
from distill_jax.training.state import TrainState
from distill_jax.training.step import lower_step

# What two cores' caches hold of a small model's activations, forward and backward.
_CACHED_TOKENS = 2048


class Programs:
    """Makes and keeps the compiled step of each batch shape.

    Args:
        at_once: maximum number of queries at a time, learnt from a device that ran out
            of memory in spite of the plan.
        say: takes a line for the user.
    """

    def __init__(
        self,
        graphdef: Any,
        objective: Any,
        options: FitOptions,
        mesh: Mesh,
        *,
        at_once: int | None = None,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.options, self.mesh = options, mesh
        self.at_once = at_once
        self.limit = options.memory_limit_bytes or limit_of(mesh.local_devices[0])
        self._graphdef, self._objective, self._say = graphdef, objective, say
        self._compiled: dict[tuple, Any] = {}
        # What was tried last for each shape, and the bytes planned.
        self._tried: dict[tuple, tuple[Form, StepMemory | None]] = {}

    def __len__(self) -> int:
        return len(self._compiled)

    def __contains__(self, fed: HostBatch) -> bool:
        return fed.shape in self._compiled

    def __call__(self, state: TrainState, fed: HostBatch) -> tuple[TrainState, Any]:
        """Runs the step of a batch whose shape was compiled."""
        return self._compiled[fed.shape](state, fed.device)

    def compile(self, state: TrainState, fed: HostBatch) -> None:
        """Compiles the step for a batch's shape, in pieces that fit on each device.

        Raises:
            OutOfMemory: not even one query at a time fits on a device.
        """
        rows = fed.queries
        form = Form(self.first(fed), self.options.remat)
        while True:
            try:
                compiled = self._lower(state, fed, form).compile()
                memory = planned(compiled)
            except jax.errors.JaxRuntimeError as error:
                # Compilers time candidate kernels, and may run out of memory doing so.
                if not is_out_of_memory(error):
                    raise
                compiled, memory = None, None
            self._tried[fed.shape] = form, memory
            fits = not (memory and self.limit and memory.peak > self.limit)
            if compiled is not None and fits:
                self._compiled[fed.shape] = compiled
                return
            form = form.smaller(rows, self.mesh)
            if form is None:
                raise self.out_of_memory(fed)
            self._say(
                f"a step needs {gigabytes(memory and memory.peak)} a device, which has "
                f"{gigabytes(self.limit)}: {form.at_once or rows} of {rows} queries at "
                f"a time, the same result; {self._flags(fed, form)} says so from the "
                "start"
            )

    def first(self, fed: HostBatch) -> int | None:
        """Queries at once that are tried first; None for all."""
        options, rows = self.options, fed.queries
        set_ = options.chunk if options.micro_batch is None else options.micro_batch
        if set_ is not None:
            set_ = sharding.at_once(set_, rows, self.mesh)
        elif self.at_once is None:
            return self._cached(fed)
        return _least(set_, self.at_once)

    def _cached(self, fed: HostBatch) -> int | None:
        """Queries at once whose activations stay in a CPU's cache; None for all.

        With a whole batch a CPU waits for its memory: in micro-batches of up to 2,048
        tokens a step took 0.73 to 0.85 of the time on two cores. An accelerator wants
        whole batches, and GradCache's second forward pass would eat the gain.
        """
        cpu = self.mesh.size == 1 and self.mesh.devices.flat[0].platform == "cpu"
        tokens = padded_tokens(fed.device)
        if not cpu or tokens <= _CACHED_TOKENS or not self._micro_batches(fed):
            return None
        rows = fed.queries
        most = _CACHED_TOKENS * rows // tokens
        return next((n for n in range(most, 1, -1) if rows % n == 0), 1)

    def smaller(self, rows: int, at_once: int | None) -> int | None:
        """The next number of queries at a time to try, or None."""
        return fewer(rows, at_once, self.mesh)

    def out_of_memory(self, fed: HostBatch) -> OutOfMemory:
        """The message, and the next attempt, if a step does not fit."""
        rows = fed.queries
        form, memory = self._tried[fed.shape]
        smaller = self.smaller(rows, form.at_once)
        if smaller is None:
            todo = "lower --gin.LIST_SIZE or --gin.DOC_LENGTH, or spread the model: "
            todo += "--gin.MESH='fsdp=...'"
        else:
            flags = self._flags(fed, dataclasses.replace(form, at_once=smaller))
            todo = f"set {flags}: the same result in less memory"
        return OutOfMemory(
            f"step {fed.step + 1} ({form.at_once or rows} of {rows} queries at a time) "
            f"needs {gigabytes(memory and memory.peak)} a device, which has "
            f"{gigabytes(self.limit)}",
            todo,
            at_once=smaller,
        )

    def _lower(self, state: TrainState, fed: HostBatch, form: Form) -> Any:
        options, at_once = self.options, form.at_once
        whole = at_once is None or at_once >= fed.queries
        micro = self._micro_batches(fed)
        return lower_step(
            state,
            fed.device,
            graphdef=self._graphdef,
            objective=self._objective,
            optimizer=options.optimizer,
            mesh=self.mesh,
            chunk=None if whole or micro else at_once,
            micro_batch=at_once if micro and not whole else None,
            remat=form.remat,
        )

    def _micro_batches(self, fed: HostBatch) -> bool:
        """Whether pieces are micro-batches; else they are GradCache chunks."""
        options = self.options
        if options.chunk is not None or options.micro_batch is not None:
            return options.micro_batch is not None
        return sums_over_queries(self._objective, fed.device)

    def _flags(self, fed: HostBatch, form: Form) -> str:
        return form.flags(self._micro_batches(fed), self.mesh)


def padded_tokens(batch: Any) -> int:
    """Tokens of a batch, padding included; 0 for a batch that has none."""
    if not dataclasses.is_dataclass(batch):
        return 0
    names = [field.name for field in dataclasses.fields(batch)]
    return sum(getattr(batch, name).size for name in names if name.endswith("tokens"))


def _least(*sizes: int | None) -> int | None:
    return min((size for size in sizes if size is not None), default=None)
