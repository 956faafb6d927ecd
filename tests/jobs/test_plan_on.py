"""Plans for machines that are not here: what is parsed, compiled and estimated."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill_jax import losses
from distill_jax.io.errors import UserError
from distill_jax.jobs import plan, plan_step
from distill_jax.models import t5
from distill_jax.models.reranker import RerankerSpec
from distill_jax.recipe.training import Training
from distill_jax.runtime import compiled, sharding, targets

ROOT = Path(__file__).parent.parent.parent
TRAINING = Training(
    objective=losses.Listwise(loss=losses.softmax_cross_entropy), steps=10, batch_size=8
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("v5x:2x4", "no chip 'v5x'"),
        ("v5e", "not a number of chips"),
        ("v5e:2x", "not a number of chips"),
        ("h100:0", "not a number of chips"),
    ],
)
def test_a_machine_that_is_none_is_refused(text, told):
    with pytest.raises(UserError, match=told):
        targets.parse(text)


def test_a_step_on_gpus_is_estimated_from_shapes():
    """T5-base: 38 KB a token and layer were measured with probabilities, 31 without."""
    spec = RerankerSpec(backbone=t5.sizes("base", dtype="bfloat16"), word_ids=(1, 2))
    shape = plan_step.Shape(lists=8, size=4, pairs=0, lengths=((128,),))
    with targets.planning_for("h100:8"):
        mesh = sharding.make_mesh()
        step = plan_step.step_of(spec, TRAINING, shape, 10, mesh)
        lines = "\n".join(plan.machine_lines(step, 10, shape, mesh))
    assert targets.current() is None
    assert dict(mesh.shape) == {"data": 8, "fsdp": 1, "model": 1}
    assert step.cost is not None
    assert step.cost.estimated
    assert step.fits
    # AdamW's masters and moments, on each chip.
    assert step.memory.state == pytest.approx(12 * step.parameters, rel=0.01)
    kept = step.memory.temporary / (12 * 4 * 128)
    assert 20_000 < kept < 38_000
    assert "about" in lines
    assert "fits" in lines
    assert "hours for 10 steps" in lines


def test_a_body_counts_as_often_as_it_runs():
    text = """HloModule m

%body (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %p = (s32[], f32[8,8]{1,0}) parameter(0)
  %g = f32[8,8]{1,0} get-tuple-element(%p), index=1
  %r = f32[8,8]{1,0} all-reduce(%g), replica_groups={}, to_apply=%sum
  ROOT %t = (s32[], f32[8,8]{1,0}) tuple(%p, %r)
}

ENTRY %main (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %n = f32[8,8]{1,0:S(1)} negate(%a)
  %w = (s32[], f32[8,8]{1,0}) while(%a), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"11"}}
  %s = (f32[8,8]{1,0}, f32[64,8]{1,0}) all-gather-start(%a), dimensions={0}
  ROOT %d = f32[64,8]{1,0} all-gather-done(%s)
}
"""  # noqa: E501
    program = compiled.Program(text)
    assert program.traffic() == {"all-reduce": 11 * 256, "all-gather": 64 * 8 * 4}
    # The negation reads 256 bytes and writes to the chip's own memory.
    gather = 256 + (256 + 2048)
    assert program.accessed() == 256 + 11 * 2 * 256 + gather


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
@pytest.mark.parametrize(
    ("text", "chips"),
    [("v5e:1", 1), ("v4:2x2x1", 4), ("v5p:4", 4), ("v6e:8", 8), ("v4:8", 8)],
)
def test_each_chip_is_one_device_of_a_mesh(text, chips):
    with targets.planning_for(text) as target:
        assert len(target.devices) == chips
        assert sharding.make_mesh().shape["data"] == chips


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
@pytest.mark.parametrize(
    "recipe", ["quickstart", "rankt5_teacher", "pairdistill_colbert", "specialize"]
)
def test_a_small_recipe_compiles_for_a_tpu_slice(recipe, toy, tmp_path):
    said = subprocess.run(
        [sys.executable, "-m", "distill_jax.main", f"--gin_file={recipe}.gin"]
        + ["--gin_file=small.gin", f"--gin.COLLECTION={toy}", "--plan", "--on=v5e:2x4"]
        + [f"--gin.MODEL_DIR={tmp_path}", "--gin.BATCH_SIZE=8"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert said.returncode == 0, said.stderr[-2000:]
    assert "per chip" in said.stdout, json.dumps(said.stdout[-2000:])
    assert "MFU at most" in said.stdout
