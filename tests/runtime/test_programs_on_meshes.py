"""The step that is compiled for a mesh: what each device multiplies and is sent.

Equal numbers say nothing of a batch that every device computes in full. Read here are
the compiled programs: rows of the products, sizes of what travels, temporaries.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest

from distill_jax import losses
from distill_jax.batches import DualBatch, DuoBatch, PairBatch, Targets
from distill_jax.losses.mixture import Mixture, Term
from distill_jax.models.colbert import ColbertSpec
from distill_jax.models.dual_encoder import DualEncoderSpec
from distill_jax.models.duo import DuoSpec
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.models.pretrained import abstract_params, graphdef_of
from distill_jax.models.reranker import RerankerSpec
from distill_jax.models.splade import SpladeSpec
from distill_jax.models.t5 import T5Sizes
from distill_jax.runtime import compiled, placement, sharding
from distill_jax.training import memory, optimizers
from distill_jax.training import state as states
from distill_jax.training.step import lower_step

pytestmark = pytest.mark.long

ROWS, DOCS, LENGTH = 16, 4, 32
TOKENS = ROWS * DOCS * LENGTH  # of the documents of the global batch
WIDTH, WIDE, HEADS, VOCAB = 32, 64, 4, 64

T5 = T5Sizes(
    vocab_size=VOCAB,
    d_model=WIDTH,
    d_ff=WIDE,
    heads=HEADS,
    d_kv=8,
    encoder_layers=1,
    decoder_layers=1,
    dropout=0.0,
)
BERT = BertSizes(
    vocab_size=VOCAB,
    d_model=WIDTH,
    d_ff=WIDE,
    heads=HEADS,
    layers=1,
    dropout=0.0,
    attention_dropout=0.0,
    max_positions=LENGTH,
)
STUDENTS = {
    "reranker-t5": RerankerSpec(backbone=T5, word_ids=(5, 6)),
    "reranker-t5-dropout": RerankerSpec(
        backbone=T5.replace(dropout=0.1), word_ids=(5, 6)
    ),
    "reranker-bert": RerankerSpec(backbone=BERT, head="bert_classifier"),
    "duo": DuoSpec(backbone=T5, word_ids=(5, 6)),
    "dual": DualEncoderSpec(backbone=BERT),
    "colbert": ColbertSpec(backbone=BERT, dim=16),
    "splade": SpladeSpec(backbone=BERT),
}
MESHES = ("data=8", "fsdp=8", "data=2,fsdp=2,model=2")


def batch_of(kind: str):
    def of(*shape, dtype=np.int32):
        return jax.ShapeDtypeStruct(shape, dtype)

    targets = Targets(
        labels=of(ROWS, DOCS, dtype=np.float32), where=of(ROWS, DOCS, dtype=bool)
    )
    if kind in ("reranker", "duo"):
        cls = DuoBatch if kind == "duo" else PairBatch
        return cls(tokens=of(ROWS, DOCS, LENGTH), targets=targets)
    return DualBatch(
        query_tokens=of(ROWS, LENGTH),
        doc_tokens=of(ROWS, DOCS, LENGTH),
        targets=targets,
    )


def step(spec, mesh, zero=False, **pieces):
    """The compiled step of a student on a mesh."""
    objective = Mixture((Term("list", losses.kl_divergence),))
    optimizer = dataclasses.replace(optimizers.adamw(learning_rate=1e-3), zero=zero)
    state = states.abstract(abstract_params(spec), optimizer, mesh)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding.batch_sharding(leaf, mesh)
        ),
        batch_of(spec.kind),
    )
    lowered = lower_step(
        state,
        batch,
        graphdef=graphdef_of(spec),
        objective=objective,
        optimizer=optimizer,
        mesh=mesh,
        **pieces,
    )
    return lowered.compile(compiler_options=memory.quick(mesh))


_DOT = re.compile(
    r"= \w+\[([\d,]*)\]\S* dot\(.*?lhs_contracting_dims=\{([\d,]*)\}.*?", re.MULTILINE
)
_FLOAT = re.compile(r"= (?:f32|bf16)\[([\d,]+)\]")


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


def sides_of_products(text: str) -> set[int]:
    """The result dimensions of every matrix product of a program."""
    found = set()
    for result, _ in _DOT.findall(text):
        found.update(numbers(result))
    return found


def largest_array(text: str) -> int:
    """Elements of the largest array of floats that a device computes."""
    return max(math.prod(numbers(shape)) for shape in _FLOAT.findall(text))


@functools.cache
def alone(name: str):
    """A student's step on one device: temporaries and its largest array."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    program = step(STUDENTS[name], mesh)
    temporary = program.memory_analysis().temp_size_in_bytes
    return temporary, largest_array(program.as_text())


def assert_shared_out(name: str, mesh: str) -> None:
    """Each device computes its share of the batch, and is sent no more than weights."""
    spec, made = STUDENTS[name], sharding.make_mesh(mesh)
    ways, weights = sharding.data_devices(made), 0
    for leaf in jax.tree.leaves(abstract_params(spec)):
        weights += math.prod(leaf.shape)
    program = step(spec, made)
    text, local = program.as_text(), TOKENS // ways

    assert max(sides_of_products(text)) <= local
    read = compiled.Program(text)
    for kind, shapes, _ in read.collectives():
        for dtype, shape in shapes:
            assert math.prod(shape) <= local * WIDTH, (kind, dtype, shape)
    # Of each weight: gathered forward and backward, its gradient summed. Over the
    # model axis the sums of each layer's two halves, forward and backward.
    bound = 4 * 4 * weights
    if made.shape["fsdp"] > 1:
        bound += 4 * 4 * local * WIDTH  # tokens that were looked up, and back
    if made.shape["model"] > 1:
        bound += 4 * 16 * local * WIDTH
    moved = read.traffic()
    assert sum(moved.values()) <= bound, moved

    temporary, largest = alone(name)
    found = program.memory_analysis().temp_size_in_bytes
    assert found <= 1.3 * temporary / ways + 3 * 4 * weights
    assert largest_array(text) <= 1.05 * largest / ways


@pytest.mark.parametrize("mesh", MESHES)
def test_each_device_computes_its_share_of_the_batch_alone(mesh):
    assert_shared_out("reranker-t5-dropout", mesh)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", STUDENTS)
def test_so_does_every_student(name, mesh):
    assert_shared_out(name, mesh)


def test_without_constraints_the_batch_is_copied_to_every_device(monkeypatch):
    """The checks above see what they are for: this is what the compiler does alone."""
    # Layers ask where they are traced for, and find nothing: no constraint is made.
    monkeypatch.setattr(placement, "current", lambda: None)
    text = step(STUDENTS["reranker-t5"], sharding.make_mesh("fsdp=8")).as_text()
    assert max(sides_of_products(text)) >= TOKENS


@pytest.mark.parametrize("mesh", ["data=8", "data=4,fsdp=2"])
def test_zero_divides_the_moments_over_data_and_gives_the_same_numbers(mesh):
    made, spec = sharding.make_mesh(mesh), STUDENTS["dual"]
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: random.normal(0, 0.1, leaf.shape).astype(np.float32),
        abstract_params(spec),
    )
    batch = jax.tree.map(
        lambda leaf: (
            random.random(leaf.shape).astype(leaf.dtype)
            if leaf.dtype == np.float32
            else random.integers(1, VOCAB, leaf.shape).astype(leaf.dtype)
        ),
        batch_of("dual"),
    )
    ends, held, moved = {}, {}, {}
    for zero in (False, True):
        optimizer = dataclasses.replace(optimizers.adamw(learning_rate=1e-3), zero=zero)
        state = states.create(params, optimizer, made, 0)
        held[zero] = sum(
            leaf.addressable_shards[0].data.nbytes
            for leaf in jax.tree.leaves(state.opt_state)
        )
        program = step(spec, made, zero)
        moved[zero] = compiled.Program(program.as_text()).traffic()
        for _ in range(3):
            state, numbers = program(state, sharding.shard_batch(batch, made))
        assert numbers["finite"]
        ends[zero] = jax.tree.map(np.asarray, state.params)
        placed = jax.tree.map(lambda leaf: leaf.sharding, state.params)
        assert placed == sharding.param_shardings(params, made)
    for plain, divided in zip(*map(jax.tree.leaves, ends.values())):
        np.testing.assert_allclose(divided, plain, rtol=1e-4, atol=1e-6)
    assert held[True] <= 1.1 * held[False] / made.shape["data"]
    # What each device updated of a parameter is gathered from all.
    gathered = [traffic.get("all-gather", 0) for traffic in moved.values()]
    assert gathered[1] > gathered[0]
