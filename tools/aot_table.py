"""The flagship shapes compiled for TPU slices that are not here, as a table.

    python tools/aot_table.py [NAME ...] > docs/aot.md

Needs ``pip install 'distill_jax[plan]'`` and no accelerator. Each line is the program
that training (or labelling) would run: what each chip holds, does and moves, and the
greatest utilisation that a roofline allows. A few minutes of one core a line.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from typing import Any

from distill_jax.models import encoder_sizes

os.environ["JAX_PLATFORMS"] = "cpu"

from distill_jax import losses
from distill_jax.inference.forward import default_tokens_per_batch
from distill_jax.jobs import plan_step
from distill_jax.models import t5
from distill_jax.models.colbert import ColbertSpec
from distill_jax.models.dual_encoder import DualEncoderSpec
from distill_jax.models.reranker import RerankerSpec
from distill_jax.recipe.training import Training
from distill_jax.runtime import sharding, targets

LISTS = losses.Listwise(loss=losses.softmax_cross_entropy)


def reranker(size: str, **options: Any) -> RerankerSpec:
    backbone = t5.sizes(size, dtype="bfloat16", **options)
    return RerankerSpec(backbone=backbone, word_ids=(1176, 6136))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A training: lists of documents (and queries) of a length, on a mesh.

    Attributes:
        lengths: of the joined sequence, or of query and document.
    """

    spec: Any
    machine: str
    mesh: str
    lists: int
    size: int
    lengths: tuple[int, ...]
    chunk: int | None = None
    remat: str | None = None
    objective: Any = LISTS


BERT = encoder_sizes.bert_sizes("base", dtype="bfloat16")
ELECTRA = encoder_sizes.bert_sizes("electra-base", dtype="bfloat16")
CONTRAST = losses.Mixture(
    (losses.Term("contrast", losses.in_batch_contrastive, on="in_batch"),)
)
T5_BASE = Line(
    spec=reranker("base"),
    machine="v5e:2x4",
    mesh="data=8",
    lists=32,
    size=36,
    lengths=(192,),
)
LINES = {
    "T5-base 32 x 36 x 192": T5_BASE,
    "T5-base 32 x 36 x 192, recomputed": dataclasses.replace(T5_BASE, remat="full"),
    "T5-base 32 x 30 x 512": Line(
        spec=reranker("base"),
        machine="v5e:2x4",
        mesh="data=8",
        lists=32,
        size=30,
        lengths=(512,),
    ),
    "T5-large 32 x 36 x 192": Line(
        spec=reranker("large"),
        machine="v5e:2x4",
        mesh="fsdp=8",
        lists=32,
        size=36,
        lengths=(192,),
    ),
    "T5-3B 32 x 36 x 192": Line(
        spec=reranker("3b"),
        machine="v5e:4x8",
        mesh="fsdp=32",
        lists=32,
        size=36,
        lengths=(192,),
    ),
    "ELECTRA-base 32 x 100 x 192": Line(
        spec=RerankerSpec(backbone=ELECTRA, head="electra_classifier"),
        machine="v5e:2x4",
        mesh="data=8",
        lists=32,
        size=100,
        lengths=(192,),
    ),
    "BERT-base 4096 x 21, GradCache": Line(
        spec=DualEncoderSpec(backbone=BERT),
        machine="v5e:2x4",
        mesh="data=8",
        lists=4096,
        size=21,
        lengths=(32, 160),
        chunk=8,
        objective=CONTRAST,
    ),
    "ColBERT 32 x 64 x 180": Line(
        spec=ColbertSpec(backbone=BERT),
        machine="v5e:2x4",
        mesh="data=8",
        lists=32,
        size=64,
        lengths=(32, 192),
    ),
}
LABELLING = {"labelling with T5-3B": (reranker("3b"), "v5e:2x4", "fsdp=8", 192)}
HEAD = (
    "| program | chips, mesh | form | arguments GiB | temporary GiB | peak of GiB "
    "| TFLOP | GB accessed | collectives GB | roofline ms | MFU at most | compiled s |"
)


def row(name: str, where: str, form: str, cost: Any, chip: Any, took: float) -> str:
    memory = cost.memory
    cells = (
        name,
        where,
        form or "whole batch",
        f"{memory.state / 2**30:.2f}",
        f"{memory.temporary / 2**30:.2f}",
        f"{memory.peak / 2**30:.2f} of {chip.memory / 2**30:.2f}",
        f"{cost.worked / 1e12:.3g}",
        f"{cost.accessed / 1e9:.3g}",
        f"{sum(cost.traffic.values()) / 1e9:.3g}",
        f"{cost.seconds(chip) * 1e3:.3g}",
        f"{cost.bound(chip):.0%}",
        f"{took:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def trained(name: str, line: Line) -> str:
    began = time.process_time()
    with targets.planning_for(line.machine) as target:
        mesh = sharding.make_mesh(line.mesh)
        training = Training(
            objective=line.objective,
            steps=1,
            batch_size=line.lists,
            chunk=line.chunk,
            remat=line.remat,
        )
        shape = plan_step.Shape(
            lists=line.lists,
            size=line.size,
            pairs=0,
            lengths=tuple((length,) for length in line.lengths),
        )
        step = plan_step.step_of(line.spec, training, shape, 1, mesh)
        where = f"{line.machine}, {line.mesh}"
        if step.cost is None:
            return f"| {name} | {where} | does not fit |"
        took = time.process_time() - began
        return row(name, where, step.flags, step.cost, target.chip, took)


def labelled(name: str, spec: Any, machine: str, axes: str, length: int) -> str:
    began = time.process_time()
    with targets.planning_for(machine) as target:
        mesh = sharding.make_mesh(axes)
        rows = default_tokens_per_batch(mesh) // length * sharding.data_devices(mesh)
        cost = plan_step.forward_cost(spec, "pairs", rows, length, mesh)
        took = time.process_time() - began
        where = f"{machine}, {axes}"
        return row(name, where, f"{rows} x {length}", cost, target.chip, took)


def main(names: list[str]) -> None:
    print(HEAD)
    print("|---" * HEAD.count(" | ") + "|---|")
    for name, line in LINES.items():
        if not names or any(part in name for part in names):
            print(trained(name, line), flush=True)
    for name, what in LABELLING.items():
        if not names or any(part in name for part in names):
            print(labelled(name, *what), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
