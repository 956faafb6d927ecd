"""What a training step will take, from shapes alone: nothing is allocated."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from distill_jax.io.errors import UserError
from distill_jax.runtime import sharding, targets
from distill_jax.runtime.placement import REMAT
from distill_jax.training import state as states
from distill_jax.training.optimizers import Optimizer
from distill_jax.training.step import lower_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes on each device, as the compiler planned them.

    Attributes:
        state: parameters, moments and the batch (updated in place).
        temporary: activations, representations, gradients.
    """

    state: int
    temporary: int

    @property
    def peak(self) -> int:
        return self.state + self.temporary

    def __str__(self) -> str:
        return (
            f"{self.peak / 2**30:.2f} GiB a device ({self.state / 2**30:.2f} state and "
            f"batch, {self.temporary / 2**30:.2f} temporary)"
        )


@dataclasses.dataclass(frozen=True)
class Form:
    """How a step is taken: queries at once over all devices, and recomputation."""

    at_once: int | None = None
    remat: str = REMAT[0]

    def smaller(self, rows: int, mesh: Mesh) -> Form | None:
        """What takes less memory, or None: fewer queries, then more recomputation."""
        at_once = fewer(rows, self.at_once, mesh)
        if at_once is not None:
            return dataclasses.replace(self, at_once=at_once)
        more = REMAT[REMAT.index(self.remat) + 1 :]
        return dataclasses.replace(self, remat=more[0]) if more else None

    def flags(self, micro_batches: bool, mesh: Mesh) -> str:
        """What sets this form from the start; pieces count per device there."""
        flags = []
        if self.at_once is not None:
            name = "MICRO_BATCH" if micro_batches else "CHUNK"
            each = -(-self.at_once // sharding.data_devices(mesh))
            flags.append(f"--gin.{name}={each}")
        if self.remat != REMAT[0]:
            flags.append(f"--gin.REMAT={self.remat}")
        return " ".join(flags)


def fewer(rows: int, at_once: int | None, mesh: Mesh) -> int | None:
    """The next number of queries at a time to try, or None.

    It divides the batch, and each device gets a share of each piece where the batch
    itself is shared out evenly.
    """
    ways = sharding.data_devices(mesh)
    least = ways if rows % ways == 0 else 1
    most = (at_once or rows) // 2
    sizes = (n for n in range(most, 0, -1) if rows % n == 0 and n % least == 0)
    return next(sizes, None)


def sums_over_queries(objective: Any, batch: Any) -> bool:
    """Whether pieces of a batch can be micro-batches, or are GradCache chunks."""
    counts = getattr(objective, "counts", None)
    if counts is None:
        return False
    try:
        jax.eval_shape(counts, batch)
    except UserError:
        return False  # a term that looks across queries
    return True


def compiled_step(
    graphdef: Any,
    params: Any,
    objective: Any,
    optimizer: Optimizer,
    batch: Any,
    *,
    mesh: Mesh | None = None,
    chunk: int | None = None,
    micro_batch: int | None = None,
    remat: str = "none",
) -> Any:
    """Compiles a step for abstract parameters and a batch of abstract shape.

    Args:
        params: as of ``models.pretrained.abstract_params``, or arrays.
        batch: leaves with shape and dtype.
        chunk, micro_batch: as of ``make_gradient``.
        remat: what layers recompute at least.
    """
    mesh = mesh or sharding.make_mesh()
    state = states.abstract(params, optimizer, mesh)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding.batch_sharding(leaf, mesh)
        ),
        batch,
    )
    lowered = lower_step(
        state,
        batch,
        graphdef=graphdef,
        objective=objective,
        optimizer=optimizer,
        mesh=mesh,
        chunk=chunk,
        micro_batch=micro_batch,
        remat=remat,
    )
    return lowered.compile(compiler_options=quick(mesh))


def quick(mesh: Mesh) -> dict | None:
    """Compiler options for a program that is read and not run.

    A CPU's machine code need not be good, only its buffers be those of a good one, and
    they are planned before LLVM sees it.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return None
    return {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }


def planned(compiled: Any) -> StepMemory | None:
    """What the compiler planned for a program; None where it does not say."""
    analysis: Any = compiled.memory_analysis()
    if analysis is None:
        return None
    return StepMemory(
        state=analysis.argument_size_in_bytes,
        temporary=analysis.temp_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes,
    )


def limit_of(device: Any) -> int | None:
    """Bytes that programs may take on a device; None if unknown.

    An accelerator's allocator reports it. For a CPU it is the machine's (or the
    container's) memory, shared out over the devices that it plays: beyond it the
    kernel kills the run without a word.
    """
    target = targets.current()
    if target is not None:
        return target.chip.memory
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit or device.platform != "cpu":
        return limit
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text()
        machine = min(machine, int(text))
    except (OSError, ValueError):  # no control group, or one without a limit ("max")
        pass
    return machine // len(device.client.local_devices())


def gigabytes(number: int | None) -> str:
    """``"1.50 GiB (1,610,612,736 bytes)"``, for messages."""
    if number is None:
        return "an unknown number of bytes"
    return f"{number / 2**30:.2f} GiB ({number:,} bytes)"
