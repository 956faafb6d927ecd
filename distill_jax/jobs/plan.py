"""What a job would do and take, before it does it: ``--plan``.

Numbers of queries and lists are exact where they follow from judgements, and upper
bounds, marked "at most", where filters or teachers decide.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from distill_jax.collections.collection import Queries
from distill_jax.io.errors import UserError
from distill_jax.jobs import plan_step
from distill_jax.recipe import query_adapter
from distill_jax.recipe.candidates import Context
from distill_jax.retrieval.stored_forms import stored_form
from distill_jax.runtime import sharding, targets
from distill_jax.workspace.context import Split, Workspace

STAND_IN = "a question of about eight words or so"


def plan(job: Any, known: dict[str, plan_step.Step] | None = None) -> int:
    """Prints sizes, steps, shapes, memory, disk and cost of a ``Distill`` job.

    Args:
        known: figures of steps that were compiled for earlier plans; it is added to.
    """
    workspace = job.workspace()
    print(devices(workspace))
    spec, why, checkpoints = None, "", 0
    known = {} if known is None else known
    scored: set[str] = set()
    for number, stage in enumerate(job.stages):
        student = stage.student or (job.student if number == 0 else None)
        if student is not None and not str(student.checkpoint).startswith("stage:"):
            spec, why = _spec(student)
        print(f"\nstage {stage.name}" + (f", {job.rounds} rounds" * (job.rounds > 1)))
        lists, size, pairs = stage_lines(stage, workspace)
        training = stage.training
        if hasattr(stage, "texts_of") and spec is not None:
            # A text is read as far as a document, and meets a vector.
            spec = dataclasses.replace(spec, query_length=spec.doc_length)
            training = dataclasses.replace(training, trained="query")
        step = training_lines(training, spec, why, lists, size, pairs, workspace, known)
        if spec is not None and repr(spec) not in scored:
            scored.add(repr(spec))
            for line in plan_step.forward_lines(spec, workspace.mesh):
                print(f"  {line}")
        if step is not None:
            kept = stage.training.keep + (stage.training.measure is not None)
            checkpoints += step.state_bytes * kept * job.rounds
            checkpoints += 4 * step.parameters * job.rounds
    print("\ndisk")
    print(f"  checkpoints and students  {size_text(checkpoints)}" if checkpoints else
          "  checkpoints and students  not known")  # fmt: skip
    vectors = vector_bytes(spec, len(workspace.collection))
    if vectors:
        rankings = 1 + job.rounds * len(job.stages)
        print(f"  vectors of the documents  {size_text(vectors)} a ranking, "
              f"{rankings} rankings")  # fmt: skip
    return 0


def stage_lines(stage: Any, workspace: Workspace) -> tuple[int, int, int]:
    """Prints what a stage learns from; its lists, their documents and their pairs."""
    if hasattr(stage, "texts_of"):
        texts = stage.texts_of(workspace)
        print(f"  texts      {len(texts):,}, each encoded once by the teacher")
        if hasattr(stage.teacher, "estimate"):
            context = dataclasses.replace(_context(workspace), queries=texts)
            print(f"  teacher    {stage.teacher.estimate(context)}")
        return len(texts), 1, 0
    queries, judged = planned_queries(stage.queries, workspace)
    lists, size, pairs = lists_of(stage.examples, queries, judged)
    bound = "" if exact(stage.queries, stage.examples) else "at most "
    print(f"  queries    {bound}{len(queries):,}")
    print(f"  lists      {bound}{lists:,} of {size} documents, {pairs} pairs")
    for line in teacher_lines(stage, workspace, queries):
        print(f"  {line}")
    return lists, size, pairs


def plan_generator(job: Any) -> int:
    """The same of a ``TrainGenerator`` job."""
    workspace = job.workspace()
    print(devices(workspace))
    split = job.pairs(workspace)
    lists = len(job.lists(workspace, split))
    print(f"\n  queries    {len(split.queries):,}")
    print(f"  pairs      {lists:,} of a document and a query")
    print(f"  test docs  {len(job.unseen_rows(workspace)):,} unseen documents")
    spec, why = _spec(job.student)
    step = training_lines(job.training, spec, why, lists, 1, 0, workspace, {})
    if step is not None:
        kept = job.training.keep + (job.training.measure is not None)
        total = step.state_bytes * kept + 8 * step.parameters
        print(f"\ndisk\n  checkpoints and students  {size_text(total)}")
    return 0


def devices(workspace: Workspace) -> str:
    mesh = workspace.mesh or sharding.make_mesh()
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    target = targets.current()
    kind = target.chip.name if target else mesh.devices.flat[0].device_kind
    return f"{len(workspace.collection):,} documents; {mesh.size} x {kind} ({axes})"


def _spec(student: Any) -> tuple[Any, str]:
    try:
        return plan_step.spec_of(student), ""
    except UserError as error:
        if not getattr(student, "checkpoint", None):
            raise  # no model has to be fetched to know it
        return None, error.what


def training_lines(
    training: Any,
    spec: Any,
    why: str,
    lists: int,
    size: int,
    pairs: int,
    workspace: Workspace,
    known: dict[str, plan_step.Step],
) -> plan_step.Step | None:
    """Prints a stage's training; the step's figures, where the model is known."""
    steps = training.total(max(lists, 1))
    epochs = steps * training.batch_size / max(lists, 1)
    print(
        f"  steps      {steps:,} of {training.batch_size} lists ({epochs:.1f} epochs)"
    )
    if spec is None:
        print(f"  model      {why}: shapes, memory and FLOPs are left out")
        return None
    if training.trained == "adapter":
        spec = query_adapter.spec_on_vectors(spec, lists)
        training = dataclasses.replace(training, trainable=query_adapter.TRAINED)
    shape = plan_step.shape_of(spec, training, size, pairs)
    longest = " + ".join(str(lengths[-1]) for lengths in shape.lengths)
    rows = shape.pairs if spec.documents == 2 else size
    print(
        f"  shapes     at most {shape.count} compiled, the largest "
        f"{training.batch_size} x {rows} sequences of {longest} tokens"
    )
    settings = dataclasses.replace(training, objective=None)
    key = repr((spec, shape, settings, training.objective))
    mesh = workspace.mesh or sharding.make_mesh()
    if key not in known:
        known[key] = plan_step.step_of(spec, training, shape, steps, mesh)
    step = known[key]
    print(f"  model      {spec.kind}, {step.parameters:,} parameters")
    print(
        f"  FLOPs      {flops_text(step.forward)} forward, {flops_text(step.step)} a "
        f"step, {flops_text(step.step * steps)} in all, at the largest shape"
    )
    print(f"  memory     {step.memory or 'more than a device has'}")
    for line in machine_lines(step, steps, shape, mesh):
        print(f"  {line}")
    return step


def machine_lines(
    step: plan_step.Step, steps: int, shape: plan_step.Shape, mesh: Any
) -> list[str]:
    """Whether a step fits on the devices, what makes it fit, and how long it takes."""
    lines, target = [], targets.current()
    if target is not None and step.cost is not None:
        lines += step.cost.lines(target.chip)
        seconds = steps * step.cost.seconds(target.chip)
        lines.append(
            f"time       at least {seconds / 3600:.3g} hours for {steps:,} steps at "
            "the largest shape"
        )
    if step.flags:
        lines.append(f"set        {step.flags}: the same result in less memory")
    if not step.fits:
        lines.append(
            f"memory     {step.form.at_once or shape.lists} queries at a time do not "
            "fit: spread the model over more chips (--gin.MESH='fsdp=...'), or lower "
            "--gin.LIST_SIZE or --gin.DOC_LENGTH"
        )
    return lines


def planned_queries(source: Any, workspace: Workspace) -> tuple[Queries, Split | None]:
    """The queries of a source, or placeholders for the most that it would generate.

    The second is their judgements where they are the collection's own.
    """
    if hasattr(source, "sources"):  # several, one after another
        parts = [planned_queries(part, workspace) for part in source.sources]
        return _stand_ins(sum(len(part) for part, _ in parts)), None
    if hasattr(source, "own"):
        own = workspace.train is not None
        return planned_queries(source.own if own else source.made, workspace)
    if hasattr(source, "makers"):
        documents = len(workspace.collection)
        made = sum(query_count(maker, documents) for maker in source.makers)
        made = made if source.limit is None else min(made, source.limit)
        return _stand_ins(made), None
    split = source(_context(workspace))
    return split.queries, split


def query_count(maker: Any, documents: int) -> int:
    """Queries that a maker makes at most."""
    rows = documents if maker.queries is None else min(maker.queries, documents)
    each = getattr(maker, "samples", 1) * len(getattr(maker, "kinds", (0,)))
    return rows * each * getattr(maker, "per_doc", 1)


def _stand_ins(count: int) -> Queries:
    return Queries([str(i) for i in range(count)], [STAND_IN] * count)


def exact(queries: Any, examples: Any) -> bool:
    """Whether the number of lists follows from judgements alone."""
    return not hasattr(queries, "makers") and hasattr(examples, "window")


def lists_of(
    examples: Any, queries: Queries, judged: Split | None
) -> tuple[int, int, int]:
    """Lists, documents of a list (N), pairs of a list (P); upper bounds."""
    if hasattr(examples, "sources"):
        parts = [lists_of(part, queries, judged) for part in examples.sources]
        lists, sizes, pairs = zip(*parts)
        return sum(lists), max(sizes), max(pairs)
    if hasattr(examples, "judged"):
        lists, size, _ = lists_of(examples.judged, queries, judged)
        return lists, size, examples.pairs
    if hasattr(examples, "window"):
        return _judged_lists(examples, queries, judged), examples.size, 0
    pairwise = getattr(examples, "pairwise", None)
    pairs = 0 if pairwise is None else pairwise.pairs
    most = examples.size * (examples.size - 1)
    return len(queries), examples.size, min(pairs, most)


def _judged_lists(examples: Any, queries: Queries, judged: Split | None) -> int:
    most = examples.per_query
    if judged is None:
        return len(queries) * (most or 1)
    counts = [len(judged.qrels.relevant(query)) for query in queries.ids]
    return sum(count if most is None else min(count, most) for count in counts)


def teacher_lines(stage: Any, workspace: Workspace, queries: Queries) -> list[str]:
    """The calls that the teachers and query makers of a stage would need."""
    lines = []
    for maker in getattr(stage.queries, "makers", ()):
        if hasattr(maker, "client"):
            calls = query_count(maker, len(workspace.collection))
            lines.append(f"LLM        {calls:,} calls to write queries")
    depth = getattr(stage.candidates, "depth", None)
    for teacher in _teachers(stage.examples):
        if hasattr(teacher, "estimate"):
            context = dataclasses.replace(_context(workspace), queries=queries)
            lines.append(f"teacher    {teacher.estimate(context)}")
        elif hasattr(teacher, "delta"):
            both = 2 if getattr(teacher, "both_orders", False) else 1
            count = len(queries) * teacher.pairs * both
            lines.append(f"teacher    at most {count:,} pairs of documents to judge")
        elif hasattr(teacher, "checkpoint") and depth is not None:
            count = len(queries) * min(depth, len(workspace.collection))
            lines.append(f"teacher    at most {count:,} pairs to score")
    return lines


def _teachers(examples: Any) -> list[Any]:
    found = []
    for part in getattr(examples, "sources", (examples,)):
        for name in ("teacher", "pairwise"):
            teacher = getattr(part, name, None)
            if teacher is not None:
                found += getattr(teacher, "teachers", (teacher,))
    return found


def _context(workspace: Workspace) -> Context:
    return Context(
        workspace=workspace,
        queries=None,  # type: ignore[arg-type]
        student=None,  # type: ignore[arg-type]
        model=None,
        directory=workspace.directory,
    )


def vector_bytes(spec: Any, documents: int) -> int:
    """Bytes of the collection's vectors, as ``retrieval.embeddings`` keeps them."""
    if spec is None or spec.vectors is None:
        return 0
    return documents * spec.passages * stored_form(spec).doc_bytes(spec)


def size_text(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def flops_text(count: float) -> str:
    """FLOPs with three digits and a unit."""
    for unit in ("", "K", "M", "G", "T", "P"):
        if count < 1000:
            return f"{count:.3g} {unit}FLOP"
        count /= 1000
    return f"{count:.3g} EFLOP"
