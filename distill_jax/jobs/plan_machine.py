"""What a program takes of each chip: memory, work, traffic, and the time they bound."""

from __future__ import annotations

import dataclasses
from typing import Any

from distill_jax.runtime.compiled import Program
from distill_jax.runtime.targets import Chip
from distill_jax.training.memory import StepMemory, planned


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """A compiled program on each chip of its mesh.

    Attributes:
        flops: that the model needs, without what is recomputed.
        worked: FLOPs that are computed.
        accessed: bytes read from and written to the chip's memory.
        traffic: bytes of the results of collectives, by kind.
        estimated: whether it comes from shapes, since nothing compiles for the chip.
    """

    memory: StepMemory
    flops: float
    worked: float
    accessed: float
    traffic: dict[str, int]
    estimated: bool = False

    def seconds(self, chip: Chip) -> float:
        """No less time than this: products, memory and links all overlap."""
        return max(
            self.worked / chip.flops,
            self.accessed / chip.bandwidth,
            sum(self.traffic.values()) / chip.links,
        )

    def bound(self, chip: Chip) -> float:
        """The greatest model FLOPs utilisation that the roofline allows."""
        return self.flops / chip.flops / self.seconds(chip)

    def lines(self, chip: Chip) -> list[str]:
        """For people: memory, work, traffic, time."""
        memory, peak = self.memory, self.memory.peak
        about = "about " if self.estimated else ""
        moved = ", ".join(
            f"{kind} {size / 1e6:.1f} MB" for kind, size in sorted(self.traffic.items())
        )
        fits = "fits" if peak <= chip.memory else "DOES NOT FIT"
        return [
            f"per chip   {about}{memory.state / 2**30:.2f} GiB arguments, "
            f"{memory.temporary / 2**30:.2f} temporary, peak {peak / 2**30:.2f} of "
            f"{chip.memory / 2**30:.2f} GiB: {fits}",
            f"work       {about}{self.worked / 1e12:.3g} TFLOP, "
            f"{self.accessed / 1e9:.3g} GB accessed, collectives {moved or 'none'}",
            f"roofline   {about}{self.seconds(chip) * 1e3:.3g} ms, MFU at most "
            f"{self.bound(chip):.0%}",
        ]


def cost_of(compiled: Any, flops: float, worked: float | None = None) -> Cost:
    """The cost of a compiled program.

    Args:
        flops: of the model on one chip.
        worked: with what is recomputed; None for as many.
    """
    program = Program(compiled.as_text())
    memory = planned(compiled)
    assert memory is not None
    return Cost(
        memory=memory,
        flops=flops,
        worked=flops if worked is None else worked,
        accessed=program.accessed(),
        traffic=program.traffic(),
    )


def estimated(spec: Any, tokens: int, state: int, flops: float, worked: float) -> Cost:
    """A training step from shapes, for chips that nothing here compiles for.

    Args:
        tokens: of one chip's share of a batch, encoder's and padding.
        state: bytes of parameters, moments and batch on it.
    """
    sizes = spec.backbone
    layers = getattr(sizes, "layers", None) or sizes.encoder_layers
    width = 2 if sizes.dtype == "bfloat16" else 4
    wide = sizes.d_ff * (3 if getattr(sizes, "gated", False) else 2)
    # Kept for the backward pass: of attention and feed-forward each what goes in and
    # out of their products; cuDNN's attention keeps no probabilities.
    layer = tokens * (10 * sizes.d_model + wide) * width
    if sizes.remat == "full":
        kept = layers * tokens * sizes.d_model * width + layer
    else:
        kept = layers * layer
    return Cost(
        memory=StepMemory(state=state, temporary=int(kept)),
        flops=flops,
        worked=worked,
        accessed=3.0 * layers * layer + 3.0 * state,
        traffic={},
        estimated=True,
    )
