"""The table of partitions: every parameter of every student meets one rule."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from distill_jax.io.errors import UserError
from distill_jax.models.colbert import ColbertSpec
from distill_jax.models.dual_encoder import DualEncoderSpec
from distill_jax.models.duo import DuoSpec
from distill_jax.models.encoder_sizes import BertSizes
from distill_jax.models.lora import LoRA
from distill_jax.models.pretrained import (
    abstract_params,
    flatten,
    graphdef_of,
    initial_params,
)
from distill_jax.models.reranker import RerankerSpec
from distill_jax.models.splade import SpladeSpec
from distill_jax.models.t5 import T5Sizes
from distill_jax.runtime import sharding

T5 = T5Sizes(
    vocab_size=64,
    d_model=16,
    d_ff=32,
    heads=2,
    d_kv=8,
    encoder_layers=1,
    decoder_layers=1,
)
T5_1_1 = T5Sizes(**{**T5.__dict__, "gated": True, "tied": False})
T5_ENCODER = T5Sizes(**{**T5.__dict__, "decoder_layers": 0})
BERT = BertSizes(vocab_size=64, d_model=16, d_ff=32, heads=2, layers=1)
ELECTRA = BertSizes(
    vocab_size=64, d_model=16, d_ff=32, heads=2, layers=1, embedding_size=8
)
STUDENTS = [
    RerankerSpec(backbone=T5),
    RerankerSpec(backbone=T5_1_1),
    RerankerSpec(backbone=T5_ENCODER, head="linear"),
    RerankerSpec(backbone=BERT, head="bert_classifier"),
    RerankerSpec(backbone=ELECTRA, head="electra_classifier"),
    RerankerSpec(backbone=ELECTRA, head="linear"),
    DuoSpec(backbone=T5),
    DualEncoderSpec(backbone=BERT),
    DualEncoderSpec(backbone=T5_ENCODER, projection=4, tied=False),
    ColbertSpec(backbone=BERT),
    SpladeSpec(backbone=BERT),
]


@pytest.mark.parametrize("spec", STUDENTS, ids=lambda s: f"{s.kind}")
def test_every_parameter_meets_exactly_one_rule(spec):
    for path, leaf in flatten(abstract_params(spec)).items():
        partition = sharding.partition_of(path)
        assert len(partition) <= len(leaf.shape), path


def test_every_rule_is_met_by_some_parameter():
    import re

    every = [abstract_params(spec) for spec in STUDENTS]
    every += [LoRA().adapted(params, 0) for params in every]
    paths = [path for params in every for path in flatten(params)]
    for rule, _ in sharding.RULES:
        assert any(re.fullmatch(rule, path) for path in paths), rule


def test_no_rule_and_two_rules_are_errors(monkeypatch):
    with pytest.raises(LookupError, match="matches 0"):
        sharding.partition_of("encoder.something.new")
    doubled = (*sharding.RULES, (r".*wo\.kernel", P()))
    monkeypatch.setattr(sharding, "RULES", doubled)
    with pytest.raises(LookupError, match="matches 2"):
        sharding.partition_of("encoder.layers.0.ffn.wo.kernel")


def test_meshes():
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1, "model": 1}
    mesh = sharding.make_mesh("model=2")
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "model": 2}
    mesh = sharding.make_mesh("data=1, fsdp=4")
    assert dict(mesh.shape) == {"data": 1, "fsdp": 4, "model": 1}
    for wrong in ("dat=2", "data=16", "model=0", "model"):
        with pytest.raises(UserError):
            sharding.make_mesh(wrong)


def test_what_does_not_divide_is_copied_with_one_notice(caplog):
    mesh = sharding.make_mesh("data=2,model=4")
    sharding._notice.cache_clear()
    params = {"encoder": {"embedding": np.zeros((30, 16)), "lm_head": np.zeros((4, 8))}}
    for _ in range(2):
        placed = sharding.shard_params(params, mesh)
    assert placed["encoder"]["embedding"].sharding.spec == P(None, "fsdp")
    assert placed["encoder"]["lm_head"].sharding.spec == P("fsdp", "model")
    assert len([r for r in caplog.records if "does not divide" in r.message]) == 1


def test_batches_lie_over_data_and_fsdp():
    mesh = sharding.make_mesh("data=2,fsdp=2,model=2")
    batch = sharding.shard_batch({"a": np.zeros((8, 3)), "b": np.zeros((6,))}, mesh)
    assert batch["a"].sharding.spec == P(("data", "fsdp"))
    assert batch["a"].addressable_shards[0].data.shape == (2, 3)
    assert batch["b"].sharding.spec == P()


@pytest.mark.parametrize(
    ("mesh", "backbone"),
    [
        ("data=8", T5),
        ("data=2,fsdp=2,model=2", T5),
        ("data=2,fsdp=2,model=2", T5_1_1),
    ],
)
def test_scores_and_gradients_do_not_depend_on_the_mesh(mesh, backbone):
    spec = RerankerSpec(backbone=backbone, word_ids=(5, 6))
    params, graph = initial_params(spec, 0), graphdef_of(spec)
    tokens = np.random.default_rng(0).integers(1, 64, (8, 12)).astype(np.int32)

    @jax.jit
    def run(params, tokens):
        def loss(params):
            model = nnx.merge(graph, nnx.State(params))
            scores = model.score(tokens, rngs=nnx.Rngs(dropout=2))
            return jnp.mean(scores**2)

        return jax.value_and_grad(loss)(params)

    want = run(params, tokens)
    made = sharding.make_mesh(mesh)
    got = run(sharding.shard_params(params, made), sharding.shard_batch(tokens, made))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), got, want
    )


@pytest.mark.parametrize(
    ("each", "rows", "mesh", "found"),
    [
        (4, 32, "data=8", None),  # 4 on each of 8 devices are all of them
        (2, 32, "data=8", 16),
        (2, 32, "data=4,model=2", 8),
        (3, 32, "data=8", 16),  # 24 do not divide the batch
        (1, 6, "data=4,fsdp=2", None),
        (1, 12, "data=8", 6),  # not shared out evenly anyway
    ],
)
def test_pieces_of_a_batch_count_on_each_device(each, rows, mesh, found):
    """More devices take more queries at a time; none computes padding."""
    assert sharding.at_once(each, rows, sharding.make_mesh(mesh)) == found
    one = sharding.make_mesh(devices=jax.devices()[:1])
    assert sharding.at_once(each, rows, one) == (each if each < rows else None)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU chip by its place on the torus."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0
    process_index: int = 0


def test_slices_meet_over_data_alone():
    chips = [
        Chip(4 * s + 2 * y + x, (x, y, 0), s)
        for s in range(2)
        for y in range(2)
        for x in range(2)
    ]
    grid = sharding._grid(chips, (2, 4, 1))
    assert [{chip.slice_index for chip in row.flat} for row in grid] == [{0}, {1}]
    with pytest.raises(UserError, match="2 slices cannot share out data=1"):
        sharding._grid(chips, (1, 8, 1))
