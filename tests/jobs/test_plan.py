"""What --plan says, against counts made by hand and compiled shapes."""

from __future__ import annotations

import dataclasses
import types

import jax
import numpy as np
import pytest

from distill_jax import losses
from distill_jax.collections.collection import Collection, Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.io.errors import UserError
from distill_jax.jobs import plan, plan_step
from distill_jax.jobs.distill import Distill
from distill_jax.recipe import examples, queries, teachers
from distill_jax.recipe.stage import Stage
from distill_jax.recipe.students import Student
from distill_jax.recipe.training import Training
from distill_jax.runtime import sharding
from distill_jax.workspace.context import Split, Workspace

OBJECTIVE = losses.Listwise(loss=losses.softmax_cross_entropy)
TINY = Student(
    kind="reranker", vocabulary_size=200, query_length=8, doc_length=12, dropout=0.0
)
TRAINING = Training(objective=OBJECTIVE, epochs=2, batch_size=2, lengths=(16, 32, 64))


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    docs = Collection([f"d{i}" for i in range(10)], [f"text {i}" for i in range(10)])
    train = Split(
        queries=Queries(["a", "b", "c"], ["one", "two", "three"]),
        qrels=Qrels({"a": {"d0": 1, "d1": 1, "d2": 1}, "b": {"d3": 1, "d4": 0}}),
    )
    return Workspace(
        directory=tmp_path / "job",
        collection=docs,
        train=train,
        dev=None,
        test=train,
        mesh=sharding.make_mesh("data=1"),
        seed=0,
    )


def test_judged_lists_are_counted_exactly(workspace):
    found, judged = plan.planned_queries(queries.Training(), workspace)
    assert len(found) == 3
    for most, lists in ((1, 2), (2, 3), (None, 4)):
        source = examples.FromQrels(size=5, per_query=most)
        assert plan.lists_of(source, found, judged) == (lists, 5, 0)
    both = examples.Mixed(
        sources=(examples.FromQrels(size=5), examples.FromQrels(size=7))
    )
    assert plan.lists_of(both, found, judged) == (8, 7, 0)


def test_pairs_are_bounded_by_the_list(workspace):
    found, judged = plan.planned_queries(queries.Training(), workspace)
    pairwise = teachers.PairModel(checkpoint="x", pairs=50)
    taught = examples.FromTeacher(teacher=teachers.Scores(), pairwise=pairwise, size=4)
    assert plan.lists_of(taught, found, judged) == (3, 4, 12)


def test_made_queries_are_bounded_by_documents(workspace):
    makers = (
        queries.Cropped(queries=4, per_doc=2),
        queries.Generated(checkpoint="x", samples=3),
        queries.Written(client=None, queries=99),
    )
    for maker, count in zip(makers, (8, 30, 60)):
        assert plan.query_count(maker, 10) == count
    source = queries.Synthetic(makers=makers)
    assert len(plan.planned_queries(source, workspace)[0]) == 98
    some = dataclasses.replace(source, limit=5)
    together = queries.Together(sources=(some, queries.Training()))
    assert len(plan.planned_queries(together, workspace)[0]) == 8


def test_shapes_are_the_lengths_that_can_occur():
    spec = plan_step.spec_of(TINY)
    shape = plan_step.shape_of(spec, TRAINING, size=3, pairs=0)
    assert shape.lengths == ((16, 32),)  # 8 + 12 + a template's own tokens
    assert shape.batch(1).tokens.shape == (2, 3, 32)
    short = dataclasses.replace(TRAINING, doc_length=1, lengths=(16, 21, 64))
    assert plan_step.shape_of(spec, short, 3, 0).lengths == ((16, 21),)


@pytest.mark.parametrize("kind", ["dual_encoder", "generator", "colbert", "splade"])
def test_sides_have_lengths_of_their_own(kind):
    backbone = "t5:tiny" if kind == "generator" else "bert:tiny"
    student = dataclasses.replace(
        TINY, kind=kind, backbone=backbone, query_length=16, doc_length=40
    )
    spec = plan_step.spec_of(student)
    shape = plan_step.shape_of(spec, TRAINING, size=3, pairs=4)
    assert shape.lengths == ((16,), (16, 32, 64))
    batch = shape.batch(0)
    assert batch.query_tokens.shape == (2, 16)
    assert batch.doc_tokens.shape == (2, 3, 64)
    assert batch.targets.probability.shape == (2, 4)


def test_parameters_and_flops_are_those_of_the_model():
    spec = plan_step.spec_of(TINY)
    shape = plan_step.shape_of(spec, TRAINING, size=3, pairs=0)
    step = plan_step.step_of(spec, TRAINING, shape, 10, sharding.make_mesh("data=1"))
    module = jax.eval_shape(lambda: spec.build(__import__("flax").nnx.Rngs(0)))
    leaves = jax.tree.leaves(module)
    assert step.parameters == sum(int(np.prod(leaf.shape)) for leaf in leaves)
    # AdamW: parameters, two moments, all float32.
    assert step.state_bytes == pytest.approx(12 * step.parameters, rel=0.01)
    # Two FLOPs a weight of the encoder and token, and attention on top.
    weights_a_token = 2 * (4 * 128 * 128 + 2 * 128 * 512)
    least = 2 * weights_a_token * 2 * 3 * 32
    assert least < step.forward < 1.6 * least
    assert step.step == 3 * step.forward
    assert step.memory.state > step.state_bytes
    assert step.memory.temporary > 0


def test_a_checkpoint_that_is_not_here_is_said(workspace, capsys, monkeypatch):
    student = dataclasses.replace(TINY, checkpoint="hf:no-such-owner/no-such-model")
    job = Distill(
        directory=str(workspace.directory),
        collection="x",
        student=student,
        rounds=2,
        stages=(Stage(examples=examples.FromQrels(size=4), training=TRAINING),),
    )
    monkeypatch.setattr(Distill, "workspace", lambda self: workspace)
    assert job.plan() == 0
    said = capsys.readouterr().out
    assert "hf:no-such-owner/no-such-model is not on this machine" in said
    assert "stage train, 2 rounds" in said
    assert "lists      4 of 4 documents" in said
    assert "steps      4 of 2 lists (2.0 epochs)" in said
    assert not workspace.directory.exists(), "a plan leaves nothing behind"


def test_teachers_say_what_they_would_be_asked(workspace):
    context = queries.Training()(plan._context(workspace)).queries
    client = types.SimpleNamespace(
        estimate=lambda context: f"{len(context.queries)} calls"
    )
    pairwise = teachers.PairModel(checkpoint="x", pairs=5, both_orders=True)
    for teacher, told in (
        (client, ["teacher    3 calls"]),
        (teachers.Model(checkpoint="x"), ["teacher    at most 30 pairs to score"]),
        (teachers.Scores(), []),
    ):
        stage = Stage(examples=examples.FromTeacher(teacher=teacher), training=TRAINING)
        assert plan.teacher_lines(stage, workspace, context) == told
    taught = examples.FromTeacher(teacher=teachers.Scores(), pairwise=pairwise)
    stage = Stage(examples=taught, training=TRAINING)
    (line,) = plan.teacher_lines(stage, workspace, context)
    assert "30 pairs of documents" in line


def test_a_backbone_that_is_none_is_refused():
    with pytest.raises(UserError, match="gpt"):
        plan_step.spec_of(dataclasses.replace(TINY, backbone="gpt:small"))


@pytest.mark.parametrize(
    ("count", "text"),
    [(12, "12 B"), (2048, "2.0 KiB"), (3 << 30, "3.0 GiB"), (5 << 41, "10.0 TiB")],
)
def test_sizes_are_said_as_people_say_them(count, text):
    assert plan.size_text(count) == text


def test_flops_have_units():
    assert plan.flops_text(2.5e9) == "2.5 GFLOP"
    assert plan.flops_text(3e19) == "30 EFLOP"
