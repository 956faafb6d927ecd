"""What a compiled program moves, read from its text: memory and links of one device.

XLA's own count takes the body of a loop once; here a body counts as often as it runs.
Arrays that a TPU keeps in its on-chip memory (``S(1)`` in their layout) cost nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# They name or order values that are already in memory.
_FREE = (
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota")
    + ("while", "call", "conditional", "after-all", "opt-barrier")
    + ("partition-id", "replica-id", "send", "recv", "send-done", "recv-done")
    + ("copy-done", "async-done", "async-update", "all-gather-done")
    + ("all-reduce-done", "collective-permute-done")
)
_BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e\dm\d\w*)?)\[([0-9,]*)\](\{[^}]*\})?")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\(")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: its result's arrays, what it does, and what it reads.

    Attributes:
        shapes: (dtype, dimensions, whether it lies on the chip) of each result.
        operands: names of instructions of the same computation.
    """

    name: str
    root: bool
    shapes: tuple[tuple[str, tuple[int, ...], bool], ...]
    op: str
    operands: tuple[str, ...]
    text: str

    @property
    def size(self) -> int:
        """Bytes in the device's main memory."""
        return sum(bytes_of(d, s) for d, s, on_chip in self.shapes if not on_chip)


class Program:
    """An HLO module as ``compiled.as_text()`` gives it."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        here: dict[str, Instruction] = {}
        for line in text.splitlines():
            head = _HEAD.match(line)
            if head:
                here = self.computations.setdefault(head[2], {})
                self.entry = head[2] if head[1] else self.entry
                continue
            found = _LINE.match(line)
            if found:
                rest = line[found.end() :]
                shapes = tuple(
                    (dtype, _numbers(dims), "S(1)" in layout)
                    for dtype, dims, layout in _ARRAY.findall(found[3])
                )
                here[found[2]] = Instruction(
                    name=found[2],
                    root=bool(found[1]),
                    shapes=shapes,
                    op=found[4],
                    operands=tuple(_NAME.findall(rest.split(")", 1)[0])),
                    text=line,
                )
        self.runs = self._runs()

    def _runs(self) -> dict[str, int]:
        """How often each computation other than a fusion runs."""
        runs: collections.Counter = collections.Counter({self.entry: 1})
        order = [self.entry]
        for name in order:
            for one in self.computations.get(name, {}).values():
                if one.op not in ("while", "call", "conditional"):
                    continue
                trips = re.search(r'known_trip_count"?:\{"?n"?:"(\d+)"', one.text)
                times = int(trips[1]) if trips else 1
                called = re.findall(
                    r"(?:body|to_apply|calls|\w+_computation)=%?([\w.\-]+)", one.text
                )
                for other in called:
                    runs[other] += runs[name] * times
                    order.append(other)
        return dict(runs)

    def instructions(self):
        """(instruction, how often it runs) of everything outside of fusions."""
        for name, times in self.runs.items():
            for one in self.computations.get(name, {}).values():
                yield one, times

    def collectives(self) -> list[tuple[str, tuple, int]]:
        """(kind, shapes of the results, how often) of what devices exchange."""
        found = []
        for one, times in self.instructions():
            kind = one.op.removesuffix("-start")
            if kind not in KINDS:
                continue
            shapes = one.shapes
            if one.op.endswith("-start") and kind != "all-reduce":
                # (operands, results, contexts of type u32).
                shapes = tuple(s for s in shapes if s[1])
                shapes = shapes[len(shapes) // 2 :]
            found.append((kind, tuple(s[:2] for s in shapes), times))
        return found

    def traffic(self) -> dict[str, int]:
        """Bytes of the results of collectives on one device, by kind."""
        total: collections.Counter = collections.Counter()
        for kind, shapes, times in self.collectives():
            total[kind] += times * sum(bytes_of(*shape) for shape in shapes)
        return dict(total)

    def accessed(self) -> int:
        """Bytes that one device reads from its memory and writes to it."""
        total = 0
        for name, times in self.runs.items():
            here = self.computations.get(name, {})
            total += times * sum(self._cost(one, here) for one in here.values())
        return total

    def _cost(self, one: Instruction, here: dict[str, Instruction]) -> int:
        if one.op in _FREE:
            return 0
        reads = [here[name] for name in one.operands if name in here]
        if one.op in ("dynamic-slice", "gather"):
            return 2 * one.size
        if one.op == "dynamic-update-slice":
            return 2 * reads[1].size if len(reads) > 1 else one.size
        if one.op == "copy-start":
            return sum(read.size for read in reads) + bytes_of(*one.shapes[0][:2]) * (
                not one.shapes[0][2]
            )
        if one.op != "fusion":
            return one.size + sum(read.size for read in reads)
        called = re.search(r"calls=%?([\w.\-]+)", one.text)
        inside = self.computations.get(called[1], {}) if called else {}
        return self._fusion(one, reads, inside)

    def _fusion(
        self,
        one: Instruction,
        reads: list[Instruction],
        inside: dict[str, Instruction],
    ) -> int:
        """Operands that are only sliced count by the slices, what is updated in place
        by the update.
        """
        users: dict[str, list[Instruction]] = collections.defaultdict(list)
        for other in inside.values():
            for name in other.operands:
                users[name].append(other)
        parameters = {}
        for other in inside.values():
            number = re.search(r" parameter\((\d+)\)", other.text)
            if number:
                parameters[int(number[1])] = other.name
        total, written = 0, one.size
        for place, read in enumerate(reads):
            by = users.get(parameters.get(place, ""), [])
            while len(by) == 1 and by[0].op == "bitcast":
                by = users.get(by[0].name, [])
            if by and all(u.op in ("dynamic-slice", "gather") for u in by):
                total += min(read.size, sum(u.size for u in by))
            elif by and all(u.op == "dynamic-update-slice" for u in by):
                update = sum(
                    inside[u.operands[1]].size for u in by if u.operands[1] in inside
                )
                if read.size and update < read.size:
                    written = max(0, written - read.size) + update
                else:
                    total += read.size
            else:
                total += read.size
        return total + written


def is_out_of_memory(error: Exception) -> bool:
    """Whether a compiler or a device's allocator gave up for want of memory."""
    return "RESOURCE_EXHAUSTED" in str(error)


def bytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of an array; ``dtype`` as HLO writes it."""
    if dtype.startswith("f8"):
        bits = 8
    else:
        digits = re.search(r"\d+", dtype)
        bits = _BITS.get(dtype, int(digits.group()) if digits else 8)
    return -(-math.prod(shape) * bits // 8)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)
