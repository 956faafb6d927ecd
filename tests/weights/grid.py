"""The table of families and students: in, out, one training step, eight devices.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 \\
        python -m tests.weights.grid [FAMILY ...]

writes the rows of those families, or of all, into ``docs/families.md``; each takes some
seconds. ``test_grid`` runs a few of them.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distill_jax import export
from distill_jax.models.colbert import ColbertSpec
from distill_jax.models.dual_encoder import DualEncoderSpec
from distill_jax.models.pretrained import (
    Pretrained,
    abstract_params,
    flatten,
    unflatten,
)
from distill_jax.models.reranker import RerankerSpec
from distill_jax.models.splade import SpladeSpec
from distill_jax.weights import encoders
from tests.export import forms
from tests.weights.steps import gradient
from tests.weights.test_families import FORMS, config_of

DOCS = Path(__file__).resolve().parents[2] / "docs/families.md"
BEGIN, END = "<!-- grid: begin -->", "<!-- grid: end -->"
HEADER = (
    "| model_type | student | in | out | one step | 8 devices |\n"
    "|---|---|---|---|---|---|"
)
MESH = "data=2,fsdp=2,model=2"
T5 = {
    "t5": {},
    "t5, gated silu": {"gated": True, "tied": False, "activation": "silu"},
    "umt5": {"gated": True, "layer_bias": True},
}
# One form of a family is enough here; the others are compared in test_families.
FAMILIES = {config_of(name).model_type: name for name in reversed(list(FORMS))}


@dataclasses.dataclass(frozen=True)
class Row:
    """Greatest differences of one family as one student.

    Attributes:
        read: of the exported folder's scores, ours and the library's, relative to the
            greatest score.
        written: of the library's scores and those in memory, alike.
        step: the loss after a step along the gradient, as a share of that before.
        sharded: of the gradient's entries on eight devices and on one, relative to the
            greatest entry.
    """

    read: float
    written: float
    step: float
    sharded: float

    def line(self, family: str, kind: str) -> str:
        return (
            f"| {family} | {kind} | {self.read:.0e} | {self.written:.0e} | "
            f"{self.step:.3f} | {self.sharded:.0e} |"
        )


def kinds(family: str) -> tuple[str, ...]:
    """The students that a family can be, and its export has a library for."""
    if family in T5:
        return ("dual_encoder", "reranker")
    found = ["dual_encoder", "colbert"]
    heads = encoders.family_named(family).architectures
    found += ["splade"] if "mlm" in heads else []
    found += ["reranker"] if len(set(heads) - {None, "mlm"}) else []
    return tuple(found)


def student(family: str, kind: str) -> Pretrained:
    """A tiny student with random weights, large enough for scores to differ."""
    sides: dict[str, Any] = {"query_length": 48, "doc_length": 48}
    pair = {"query_length": 16, "doc_length": 40}
    if family in T5:
        layers = {"decoder_layers": 0} if kind == "dual_encoder" else {}
        sizes: Any = forms.t5_sizes(encoder_layers=2, **T5[family], **layers)
        tokenizer = forms.t5_tokenizer()
    else:
        tokenizer = forms.bert_tokenizer()
        config = config_of(FAMILIES[family]).to_dict()
        config |= {"vocab_size": tokenizer.vocab_size, "architectures": None}
        # Wide enough that every place of an expanded query sees a word.
        config |= {"sliding_window": 96, "local_attention": 96}
        sizes = encoders.sizes_of(config, {}, pad_id=0)
    if kind == "dual_encoder":
        spec: Any = DualEncoderSpec(backbone=sizes, **sides)
    elif kind == "colbert":
        spec = ColbertSpec(backbone=sizes, dim=8, query_length=24, doc_length=48)
    elif kind == "splade":
        head = encoders.head_activation(sizes)
        spec = SpladeSpec(backbone=sizes, head_activation=head, **sides)
    elif family in T5:
        spec = RerankerSpec(backbone=sizes, **pair)
    else:
        head = encoders.family_named(family).classifier
        how = {"pooling": "last"} if head == "linear" else {}
        spec = RerankerSpec(backbone=sizes, head=head, **pair, **how)
    spec = spec.resolved(tokenizer)
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return (mean + 0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(drawn, abstract_params(spec))
    return Pretrained(spec, params, tokenizer, source="random weights")


def row(family: str, kind: str) -> Row:
    """Exports, reads back, trains one step, and shards one family as one student."""
    model = student(family, kind)
    with tempfile.TemporaryDirectory() as folder:
        result = export.write(model, Path(folder) / "out")
        ours, library = result["readers"]
    # A score of 1 or more is what the tolerance is relative to.
    scale = result["allowed_difference"] / result["tolerance"]
    written = library["greatest_difference"] / scale
    read = (ours["greatest_difference"] + library["greatest_difference"]) / scale
    loss, grads = gradient(model)
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in grads.values()))
    flat = flatten(model.params)
    moved = {name: flat[name] - 1e-3 / norm * grads[name] for name in grads}
    after, _ = gradient(model.replace(params=unflatten({**flat, **moved})))
    _, others = gradient(model, MESH)
    highest = max(np.abs(leaf).max() for leaf in grads.values())
    differences = (np.abs(others[name] - grads[name]).max() for name in grads)
    return Row(read, written, after / loss, max(differences) / highest)


def main(families: list[str]) -> None:
    text = DOCS.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    rows: dict[tuple[str, str], str] = {}
    for line in old.splitlines()[3:]:
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 3:
            rows[cells[1], cells[2]] = line
    for family in families or [*FAMILIES, *T5]:
        for kind in kinds(family):
            with jax.default_matmul_precision("highest"):
                rows[family, kind] = row(family, kind).line(family, kind)
            print(rows[family, kind], flush=True)
            table = "\n".join([HEADER, *(rows[key] for key in sorted(rows))])
            DOCS.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
