"""What a compiled program moves between devices, read from its text."""

from __future__ import annotations

import math
import re

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)

_BITS = {"pred": 8, "bf16": 16, "f16": 16, "c64": 64, "s4": 4, "u4": 4}
_SHAPE = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]m[0-9]\w*)?)\[([0-9,]*)\]")
# "%name = bf16[8,4]{1,0} all-gather(...", with or without "-start"; a tuple of shapes
# where several arrays travel together.
_COLLECTIVE = re.compile(
    rf"= ((?:\([^=]*?\)|\S+)) ({'|'.join(KINDS)})(-start)?\(", re.MULTILINE
)


def collectives(text: str) -> list[tuple[str, list[tuple[str, tuple[int, ...]]]]]:
    """``(kind, [(dtype, shape), ...])`` of every collective of an HLO program.

    The shapes are of its results on one device. What stands in the body of a loop
    stands once, whatever its trip count.
    """
    found = []
    for result, kind, start in _COLLECTIVE.findall(text):
        shapes = [
            (dtype, tuple(int(n) for n in dims.split(",") if n))
            for dtype, dims in _SHAPE.findall(result)
        ]
        if start and kind != "all-reduce" and len(shapes) > 1:
            # (operands, results, context): the results are the second half.
            floats = [shape for shape in shapes if shape[0] not in ("u32", "s32")]
            shapes = (floats or shapes)[len(floats or shapes) // 2 :]
        found.append((kind, shapes))
    return found


def bytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of an array; ``dtype`` as HLO writes it."""
    digits = re.search(r"\d+", dtype)
    bits = _BITS.get(dtype, int(digits.group()) if digits else 8)
    if dtype.startswith("f8"):
        bits = 8
    return math.prod(shape) * bits // 8


def traffic(text: str) -> dict[str, int]:
    """Bytes of the results of the collectives on each device, by kind."""
    total: dict[str, int] = {}
    for kind, shapes in collectives(text):
        size = sum(bytes_of(*shape) for shape in shapes)
        total[kind] = total.get(kind, 0) + size
    return total
