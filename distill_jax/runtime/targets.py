"""Devices that programs are compiled for without having them.

``libtpu`` compiles for a TPU slice on any machine (the extra ``plan`` installs it). For
GPUs there is no such compiler: their programs are estimated from shapes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from distill_jax.io.errors import UserError, near


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """The peak figures of one chip, from its vendor.

    Attributes:
        flops: bfloat16 products a second, counted as FLOPs.
        bandwidth: bytes a second between its memory and its cores.
        memory: bytes that programs may take.
        links: bytes a second to its neighbours, all links in one direction.
    """

    name: str
    platform: str
    flops: float
    bandwidth: float
    memory: int
    links: float


def _chip(name, platform, tera, gigabytes, gib, links) -> Chip:
    return Chip(
        name=name,
        platform=platform,
        flops=tera * 1e12,
        bandwidth=gigabytes * 1e9,
        memory=int(gib * 2**30),
        links=links * 1e9,
    )


# cloud.google.com/tpu/docs/system-architecture-tpu-vm and NVIDIA's data sheets.
CHIPS = {
    chip.name: chip
    for chip in (
        _chip("v4", "tpu", 275, 1228, 31.25, 150),
        _chip("v5e", "tpu", 197, 819, 15.75, 100),
        _chip("v5p", "tpu", 459, 2765, 94.75, 300),
        _chip("v6e", "tpu", 918, 1640, 31.25, 224),
        _chip("a100", "gpu", 312, 2039, 75, 300),
        _chip("h100", "gpu", 989, 3350, 75, 450),
        _chip("h200", "gpu", 989, 4800, 135, 450),
        _chip("l4", "gpu", 121, 300, 21.5, 32),
    )
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine to plan for: a number of chips, and their compiler.

    Attributes:
        devices: JAX's descriptions of the chips; of a GPU those of a CPU, since only
            shapes are taken from it.
    """

    text: str
    chip: Chip
    devices: tuple[Any, ...]

    @property
    def compiles(self) -> bool:
        """Whether programs are compiled for it, or estimated."""
        return self.chip.platform == "tpu"


_target: Target | None = None


def current() -> Target | None:
    """The machine that is planned for; None for this one."""
    return _target


def parse(text: str) -> tuple[Chip, tuple[int, ...]]:
    """``"v5e:2x4"`` or ``"h100:8"`` as a chip and the sizes of its grid.

    Raises:
        UserError: no such chip, or a size that is not one.
    """
    name, _, size = text.partition(":")
    if name not in CHIPS:
        raise UserError(
            f"--on={text}: no chip {name!r}{near(name, CHIPS)}",
            f"one of {', '.join(CHIPS)}, e.g. --on=v5e:2x4 or --on=h100:8",
        )
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", size):
        raise UserError(
            f"--on={text}: {size!r} is not a number of chips", "write v5e:2x4 or h100:8"
        )
    return CHIPS[name], tuple(map(int, size.split("x")))


@contextlib.contextmanager
def planning_for(text: str) -> Iterator[Target]:
    """What is traced and compiled inside is for the machine that ``text`` names.

    Raises:
        UserError: no such machine, or libtpu is not installed.
    """
    global _target
    chip, grid = parse(text)
    if chip.platform == "tpu":
        devices = _slice(text, chip, grid)
    else:
        import jax

        # Enough of them: shapes are divided by the mesh, nothing is compiled.
        devices = tuple(jax.devices()[:1] * math.prod(grid))
    _target = Target(text, chip, devices)
    try:
        yield _target
    finally:
        _target = None


def _slice(text: str, chip: Chip, grid: tuple[int, ...]) -> tuple[Any, ...]:
    # The plug-in would look for a TPU machine's metadata, and wait for it.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Nothing is run: two plans at a time are as good as one.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_LIBRARY_PATH", _library())
    from jax.experimental import topologies

    wide = grid
    if len(grid) == 1:  # the squarest
        rows = _divisor(grid[0], math.isqrt(grid[0]))
        wide = (rows, grid[0] // rows)
        if chip.name in ("v4", "v5p"):
            rows = _divisor(grid[0], round(grid[0] ** (1 / 3)))
            other = _divisor(grid[0] // rows, math.isqrt(grid[0] // rows))
            wide = tuple(sorted((rows, other, grid[0] // rows // other), reverse=True))
    elif chip.name in ("v4", "v5p"):
        wide = (*grid, *(1,) * (3 - len(grid)))
    if math.prod(grid) == 1:  # described as one of a host's four
        wide = (2, 2, 1)[: len(wide)]
    name = f"{chip.name}:{'x'.join(map(str, wide))}"
    # Both cores of a v4 are one device, as they are on Google's machines.
    how = {"chip_config_name": "megacore"} if chip.name == "v4" else {}
    try:
        with _silent():
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=name, **how
            )
    except Exception as error:
        reason = (str(error).splitlines() or ["libtpu gives no reason"])[0]
        raise UserError(
            f"--on={text}: libtpu knows no slice {name} ({reason[:160]})",
            "sizes are those of Google's slices: v5e:2x4, v5e:4x8, v5p:2x2x1, v6e:2x4",
        ) from error
    return tuple(found.devices[: math.prod(grid)])


def _divisor(number: int, most: int) -> int:
    """The greatest divisor that is not above ``most``."""
    return next(n for n in range(max(1, most), 0, -1) if number % n == 0)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """libtpu writes to the standard error that no machine's metadata are there."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _library() -> str:
    import importlib.util

    spec = importlib.util.find_spec("libtpu")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "compiling for a TPU needs libtpu, which is not installed",
            "pip install 'distill_jax[plan]'",
        )
    return os.path.join(spec.submodule_search_locations[0], "libtpu.so")
