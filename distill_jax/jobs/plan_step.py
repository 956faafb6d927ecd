"""A training step from shapes alone: parameters, compiled shapes, FLOPs, memory.

Nothing is allocated. The largest shape is compiled for the devices of the mesh, which
need not be here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from distill_jax import weights
from distill_jax.batches import DualBatch, DuoBatch, PairBatch, Targets, VectorBatch
from distill_jax.inference.forward import default_tokens_per_batch
from distill_jax.inference.programs import forward_flops as scoring_flops
from distill_jax.inference.programs import lower_forward
from distill_jax.io.errors import UserError
from distill_jax.jobs.plan_machine import Cost, cost_of, estimated
from distill_jax.models.pretrained import abstract_params, graphdef_of
from distill_jax.recipe import checkpoints
from distill_jax.recipe.students import Student
from distill_jax.recipe.training import Training
from distill_jax.runtime import placement, sharding, targets
from distill_jax.runtime.compiled import is_out_of_memory
from distill_jax.runtime.placement import REMAT
from distill_jax.text.buckets import bucket_of, buckets_up_to
from distill_jax.training.memory import (
    Form,
    StepMemory,
    compiled_step,
    limit_of,
    quick,
    sums_over_queries,
)
from distill_jax.training.programs import padded_tokens
from distill_jax.weights.places import locate

LITERALS = 12  # tokens of a template around its fields, at most
LARGEST = 4 << 30  # bytes of a checkpoint that is read to plan with it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A batch's size: B lists of N candidates (or P pairs), and the lengths it has.

    Attributes:
        lengths: of the joined sequence, or of query and document; each ascending, the
            last the greatest that can occur.
        vectors: numbers of a document's vector, where documents are read as vectors;
            ``lengths`` are then of the query alone.
    """

    lists: int
    size: int
    pairs: int
    lengths: tuple[tuple[int, ...], ...]
    vectors: int = 0

    @property
    def count(self) -> int:
        """How many shapes can be compiled in all."""
        return int(np.prod([len(lengths) for lengths in self.lengths]))

    def batch(self, documents: int) -> Any:
        """The largest batch, as shapes, of ``documents`` joined with a query."""

        def of(*shape: int, dtype: Any = np.int32) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype)

        rows, size, most = self.lists, self.size, [ls[-1] for ls in self.lengths]
        duo = documents == 2
        size, pairs = (self.pairs, 0) if duo else (size, self.pairs)
        table = (rows, pairs)
        targets: Any = Targets(
            labels=of(rows, size, dtype=np.float32),
            where=of(rows, size, dtype=bool),
            doc_rows=None if duo else of(rows, size),
            labelled=None if duo else of(rows, dtype=bool),
            first=of(*table) if pairs else None,
            second=of(*table) if pairs else None,
            probability=of(*table, dtype=np.float32) if pairs else None,
            pair_where=of(*table, dtype=bool) if pairs else None,
            query_rows=of(rows),
        )
        if documents:
            cls = DuoBatch if duo else PairBatch
            return cls(tokens=of(rows, size, most[0]), targets=targets)
        if self.vectors:
            return VectorBatch(
                query_tokens=of(rows, most[0]),
                doc_vectors=of(rows, size, self.vectors, dtype=np.float32),
                targets=targets,
            )
        return DualBatch(
            query_tokens=of(rows, most[0]),
            doc_tokens=of(rows, size, most[1]),
            targets=targets,
        )


def spec_of(student: Student) -> Any:
    """The student's spec, without random weights and without a vocabulary.

    Raises:
        UserError: its checkpoint is not on this machine, or too large to read for
            this; nothing is downloaded.
    """
    if not student.checkpoint:
        return _from_scratch(student)
    found = checkpoints.named(student.checkpoint, kind=student.kind)
    name = str(found.path)
    folder = _on_this_machine(name)
    held = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    if held > LARGEST:
        raise UserError(f"{name} is {held / 2**30:.0f} GiB, too large to read for this")
    fields = {
        "query_length": student.query_length,
        "doc_length": student.doc_length,
        "dtype": student.dtype or placement.default_dtype(),
        "dropout": student.dropout,
    }
    fields = {name: value for name, value in fields.items() if value is not None}
    known = checkpoints.completed(found, trained=True)
    return weights.load(folder, **{**known, **fields, **student.options}).spec


def _on_this_machine(name: str) -> Path:
    if not name.startswith("hf:"):
        return locate(name)
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name[3:], local_files_only=True))
    except ImportError:
        pass
    except (OSError, ValueError):
        pass
    raise UserError(f"{name} is not on this machine")


def _from_scratch(student: Student) -> Any:
    """With the vocabulary's size instead of the vocabulary."""
    changes = {} if student.dropout is None else {"dropout": student.dropout}
    spec = student.untrained_spec(student.vocabulary_size, **changes)
    if getattr(spec, "words", ()):
        # Any ids do: they choose rows of a table, not shapes.
        spec = dataclasses.replace(spec, word_ids=tuple(range(len(spec.words))))
    return spec


def shape_of(spec: Any, training: Training, size: int, pairs: int) -> Shape:
    """The shapes that training can meet; lengths are upper bounds from the spec."""
    vectors = 0 if training.trained == "both" else spec.width
    if training.trained == "adapter":
        # A query is one row of the table of vectors.
        return Shape(
            lists=training.batch_size,
            size=size,
            pairs=pairs,
            lengths=((1,),),
            vectors=vectors,
        )
    query = min(spec.query_length, training.query_length or spec.query_length)
    doc = min(spec.doc_length, training.doc_length or spec.doc_length)
    if spec.documents:
        longest = (query + spec.documents * doc + LITERALS,)
    else:
        longest = (query,) if vectors else (query, doc)
    lengths = []
    for most in longest:
        last = bucket_of(min(most, training.lengths[-1]), training.lengths)
        lengths.append(tuple(n for n in training.lengths if n <= last))
    if getattr(spec, "expand", False):
        lengths[0] = lengths[0][-1:]  # every query is filled up
    return Shape(
        lists=training.batch_size,
        size=size,
        pairs=pairs,
        lengths=tuple(lengths),
        vectors=vectors,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """What a step takes.

    Attributes:
        parameters: how many.
        state_bytes: a checkpoint: parameters and moments.
        forward: FLOPs of the forward pass of a whole batch.
        step: FLOPs of the step.
        cost: on each device, of the largest shape, in the form that fits; None where
            the compiler gave up for want of memory.
        form: pieces and recomputation; ``flags`` sets them, "" where nothing is set.
        fits: whether that form fits.
    """

    parameters: int
    state_bytes: int
    forward: float
    step: float
    cost: Cost | None
    form: Form
    flags: str
    fits: bool

    @property
    def memory(self) -> StepMemory | None:
        return None if self.cost is None else self.cost.memory


def step_of(spec: Any, training: Training, shape: Shape, steps: int, mesh: Any) -> Step:
    """Compiles the largest step from shapes, in pieces that fit."""
    params, graphdef = abstract_params(spec), graphdef_of(spec)
    batch, optimizer = shape.batch(spec.documents), training.build_optimizer(steps)
    held = jax.eval_shape(lambda p: optimizer.trainable.prepared(p, 0), params)
    moments = jax.eval_shape(optimizer.init, held)
    target = targets.current()
    estimate = target is not None and not target.compiles
    limit = None if mesh.size == 0 else limit_of(mesh.devices.flat[0])
    forward = forward_flops(graphdef, params, batch)
    micro = training.micro_batch is not None or (
        training.chunk is None and sums_over_queries(training.objective, batch)
    )
    each = training.micro_batch if micro else training.chunk
    first = None if each is None else sharding.at_once(each, shape.lists, mesh)
    form: Form | None = Form(first, training.remat or "none")
    while True:
        assert form is not None
        whole = form.at_once is None
        # Backward is twice forward; what is represented in chunks, or recomputed in
        # full, runs forward twice.
        again = not whole and not micro
        remat = max(
            form.remat, getattr(spec.backbone, "remat", "none"), key=REMAT.index
        )
        again += remat == "full"
        model, worked = 3 * forward / mesh.size, (3 + again) * forward / mesh.size
        if estimate:
            cost = _estimate(spec, held, moments, batch, form, mesh, model, worked)
        else:
            compiled = _compiled_or_none(
                graphdef,
                params,
                training.objective,
                optimizer,
                batch,
                mesh=mesh,
                chunk=None if micro else form.at_once,
                micro_batch=form.at_once if micro else None,
                remat=form.remat,
            )
            cost = None if compiled is None else cost_of(compiled, model, worked)
        fits = cost is not None and (limit is None or cost.memory.peak <= limit)
        smaller = None if fits else form.smaller(shape.lists, mesh)
        if smaller is None:
            break
        form = smaller
    return Step(
        parameters=sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params)),
        state_bytes=_bytes(held) + _bytes(moments),
        forward=forward,
        step=worked * mesh.size,
        cost=cost,
        form=form,
        flags=form.flags(micro, mesh),
        fits=fits,
    )


def _compiled_or_none(*step: Any, **how: Any) -> Any:
    """The compiled step; None if the compiler finds that no chip can hold it."""
    try:
        return compiled_step(*step, **how)
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


def _estimate(spec, params, moments, batch, form, mesh, model, worked) -> Cost:
    """A step on chips that nothing here compiles for."""
    ways = sharding.data_devices(mesh)
    split = mesh.shape["fsdp"] * mesh.shape["model"]
    state = (_bytes(params) + _bytes(moments)) // split
    rows = batch.targets.labels.shape[0]
    share = (form.at_once or rows) / rows
    tokens = int(padded_tokens(batch) * share / ways)
    if form.remat != "none":
        backbone = dataclasses.replace(spec.backbone, remat=form.remat)
        spec = dataclasses.replace(spec, backbone=backbone)
    return estimated(spec, tokens, state, model, worked)


def forward_cost(spec: Any, what: str, rows: int, length: int, mesh: Any) -> Cost:
    """A batch of scoring or encoding on each device; see ``lower_forward``."""
    compiled = lower_forward(spec, what, rows, length, mesh).compile(
        compiler_options=quick(mesh)
    )
    return cost_of(compiled, scoring_flops(spec, what, rows, length) / mesh.size)


def forward_lines(spec: Any, mesh: Any) -> list[str]:
    """Scoring or encoding with a model on each chip of the mesh, a full batch."""
    target = targets.current()
    if target is None or not target.compiles:
        return []
    lines = []
    for what in spec.inputs:
        if what == "sides":
            break  # what a generator scores is never a job's longest part
        length = _longest(spec, what)
        ways = sharding.data_devices(mesh)
        rows = max(1, default_tokens_per_batch(mesh) // length) * ways
        cost = forward_cost(spec, what, rows, length, mesh)
        each = cost.seconds(target.chip)
        lines.append(f"{what:10} {rows} of {length} tokens at once, at most "
                     f"{rows / each:,.0f} a second")  # fmt: skip
        lines += cost.lines(target.chip)
    return lines


def _longest(spec: Any, what: str) -> int:
    both = {"query": spec.query_length, "doc": spec.doc_length}
    total = spec.query_length + spec.documents * spec.doc_length + LITERALS
    return bucket_of(both.get(what, total), buckets_up_to(both.get(what, total)))


def forward_flops(graphdef: Any, params: Any, batch: Any) -> float:
    """FLOPs of representing a batch, as counted before the compiler optimises."""

    def represent(params: Any, batch: Any) -> Any:
        return nnx.merge(graphdef, nnx.State(params)).represent(batch)

    with placement.counted():
        analysis = jax.jit(represent).lower(params, batch).cost_analysis() or {}
    return float(analysis.get("flops", float("nan")))


def _bytes(tree: Any) -> int:
    return sum(
        int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )
