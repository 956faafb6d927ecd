"""The query tower alone is trained; what documents were encoded to stays."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distill_jax import losses, main
from distill_jax.batches import DualBatch, Targets, VectorBatch
from distill_jax.io.errors import UserError
from distill_jax.io.reading import write_record
from distill_jax.models import pretrained
from distill_jax.models.dual_encoder import DualEncoderSpec
from distill_jax.models.encoder_sizes import bert_sizes
from distill_jax.models.pretrained import Pretrained, initial_params
from distill_jax.recipe import averaging, query_side
from distill_jax.text.tokenizer import Tokenizer
from distill_jax.workspace import cached_step

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiles_fast")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_wordpiece(["a few words of a text", "and another one"], 60)


def model(tokenizer, seed: int = 0, **changes) -> Pretrained:
    backbone = bert_sizes("tiny", vocab_size=128, pad_id=tokenizer.pad_id)
    spec = DualEncoderSpec(backbone=backbone, **changes)
    return Pretrained(
        spec=spec, params=initial_params(spec, seed), tokenizer=tokenizer, source="test"
    )


def two_towers(tokenizer, **changes) -> Pretrained:
    first, second = (model(tokenizer, seed, **changes) for seed in (0, 1))
    return query_side.with_query_tower(first, second.params)


def batches(student: Pretrained) -> tuple[DualBatch, VectorBatch]:
    random = np.random.default_rng(0)
    query = random.integers(5, 50, (3, 6)).astype(np.int32)
    docs = random.integers(5, 50, (3, 4, 9)).astype(np.int32)
    where = np.ones((3, 4), bool)
    where[1, 2:] = False
    targets = Targets(
        labels=random.normal(size=(3, 4)).astype(np.float32),
        where=where,
        doc_rows=np.arange(12, dtype=np.int32).reshape(3, 4),
    )
    dual = DualBatch(query_tokens=query, doc_tokens=docs, targets=targets)
    vectors = student.module().encode_docs(docs.reshape(12, 9)).reshape(3, 4, -1)
    return dual, VectorBatch(query_tokens=query, doc_vectors=vectors, targets=targets)


@pytest.mark.parametrize(
    "changes", [{}, {"normalise": False, "similarity": "cosine"}, {"pooling": "cls"}]
)
def test_the_gradient_is_that_of_both_towers_with_the_documents_held_still(
    tokenizer, changes
):
    student = two_towers(tokenizer, **changes)
    dual, vector = batches(student)
    objective = losses.Mixture((losses.Term("kl", losses.kl_divergence),))

    def loss(params, graphdef, batch):
        module = nnx.merge(graphdef, nnx.State(params))
        return objective(module, module.represent(batch), batch)[0]

    whole = jax.grad(loss)(student.params, student.graphdef(), dual)["query_tower"]
    tower = query_side.query_tower(student)
    alone = jax.grad(loss)(tower.params, tower.graphdef(), vector)["tower"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        whole,
        alone,
    )


def test_the_vectors_of_documents_are_known_by_the_document_tower(tokenizer):
    base = model(tokenizer)
    trained = query_side.with_query_tower(base, model(tokenizer, 7).params)
    assert trained.digest != base.digest
    assert trained.doc_digest == base.doc_digest
    # A second round: the query tower of two, and the same documents.
    again = query_side.with_query_tower(trained, model(tokenizer, 8).params)
    assert again.doc_digest == base.doc_digest
    assert model(tokenizer, 7).doc_digest != base.doc_digest
    assert model(tokenizer, pooling="cls").doc_digest != base.doc_digest
    assert model(tokenizer, doc_prefix="passage:").doc_digest != base.doc_digest
    assert model(tokenizer, query_prefix="query:").doc_digest == base.doc_digest


def test_only_a_dual_encoder_has_a_query_tower(tokenizer):
    from distill_jax.models.splade import SpladeSpec

    backbone = bert_sizes("tiny", vocab_size=128, pad_id=tokenizer.pad_id)
    sparse = model(tokenizer).replace(spec=SpladeSpec(backbone=backbone))
    with pytest.raises(UserError, match="a splade has no query tower"):
        query_side.query_tower(sparse)


def command(folder: Path, collection: str, **more) -> list[str]:
    flags = {
        "MODEL_DIR": folder,
        "COLLECTION": collection,
        "MESH": "data=1",
        "EXPORT": None,
        "VOCABULARY_SIZE": 300,
        "QUERY_LENGTH": 12,
        "DOC_LENGTH": 20,
        "MAX_TEST_QUERIES": 8,
        "DEV_SHARE": 0.3,
        "LIST_SIZE": 12,
        "POOL": 12,
        **more,
    }
    words = [f"--gin.{name}={value}" for name, value in flags.items()]
    return ["--gin_file=query_side.gin", "--gin_file=small.gin", *words]


def run(folder: Path, collection: str, **more) -> dict:
    assert main.main(command(folder, collection, **more)) == 0
    return json.loads((folder / "report.json").read_text())


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory, toy, compiles_fast) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("query_side")
    flags = {"KEEP_BASE": False, "AVERAGES": "(1.0,)", "STOP_MEASURE": None}
    return folder, run(folder, toy, TRAINED="'query'", ROUNDS=2, **flags)


def test_a_job_encodes_the_documents_once(trained):
    folder, report = trained
    student = Pretrained.read(folder / "student")
    initial = Pretrained.read(folder / "initial")
    assert not student.spec.tied
    same = jax.tree.map(
        lambda a, b: bool(np.array_equal(a, b)),
        student.params["doc_tower"],
        initial.params["tower"],
    )
    assert all(jax.tree.leaves(same))
    moved = jax.tree.map(
        lambda a, b: not np.array_equal(a, b),
        student.params["query_tower"],
        initial.params["tower"],
    )
    assert any(jax.tree.leaves(moved))
    # One folder of vectors serves the base, both rounds, and what is kept.
    assert len(list((folder / "vectors").glob("*/embeddings.json"))) == 1
    vectors = next((folder / "vectors").glob("*"))
    from distill_jax.retrieval.embeddings import read_embeddings

    digest = query_side.vectors_digest(read_embeddings(vectors))
    assert report["provenance"]["document vectors"] == digest


def test_the_table_has_what_needs_no_training(trained):
    _, report = trained
    for name in ("with BM25", "with feedback", "with BM25 and feedback"):
        assert {f"before, {name}", f"after, {name}"} <= set(report["measures"])
    told = [line for line in report["notices"] if "after, with BM25 " in line]
    assert told


def test_the_index_is_the_same_before_and_after(tmp_path, toy):
    """Killed after the first ranking, or run to the end: the same bytes."""
    flags = {"KEEP_BASE": False, "AVERAGES": "(1.0,)", "STOP_MEASURE": None}
    run(tmp_path, toy, **flags)
    before = files_of(tmp_path / "vectors")
    run(tmp_path, toy, **flags, ROUNDS=2)
    assert files_of(tmp_path / "vectors") == before


def test_the_base_is_kept_where_training_gains_nothing(tmp_path, toy):
    report = run(tmp_path, toy, LEARNING_RATE=1e-12)
    assert any("is kept" in line for line in report["notices"])
    (lead,) = [line for line in report["notices"] if "before training" in line]
    assert "the teacher" in lead
    assert "nDCG@10" in lead
    student = Pretrained.read(tmp_path / "student")
    assert student.digest == Pretrained.read(tmp_path / "initial").digest
    assert report["measures"]["after"] == report["measures"]["before"]
    # The same command finds all of it there.
    again = run(tmp_path, toy, LEARNING_RATE=1e-12)
    assert again["measures"] == report["measures"]


class Killed(BaseException):
    """Nothing of the job runs after it, as after SIGKILL."""


@pytest.mark.parametrize("file", ["student.json", "part.json"])
def test_a_job_killed_while_it_replaces_its_student_is_resumed(
    tmp_path, toy, monkeypatch, file
):
    """The weights are replaced, and ``file`` is not yet."""
    path, writes = tmp_path / "student" / file, []

    def write(at, record):
        if Path(at) == path and record.get("complete", True):
            writes.append(at)
            if len(writes) == 2:
                raise Killed
        write_record(at, record)

    with monkeypatch.context() as patched:
        patched.setattr(pretrained, "write_record", write)
        patched.setattr(cached_step, "write_record", write)
        with pytest.raises(Killed):
            main.main(command(tmp_path, toy, LEARNING_RATE=1e-12))
    report = run(tmp_path, toy, LEARNING_RATE=1e-12)
    assert any("is kept" in line for line in report["notices"])
    student = Pretrained.read(tmp_path / "student")
    assert student.digest == Pretrained.read(tmp_path / "initial").digest
    cached_step.check(tmp_path)


def test_a_collection_without_queries_learns_from_its_documents(tmp_path, toy):
    folder = tmp_path / "documents"
    (folder / "qrels").mkdir(parents=True)
    source = Path(toy.removeprefix("beir:"))
    for name in ("corpus.jsonl", "qrels/test.tsv"):
        (folder / name).write_bytes((source / name).read_bytes())
    judged = (source / "qrels/test.tsv").read_text()
    lines = (source / "queries.jsonl").read_text().splitlines()
    own = [x for x in lines if f"{json.loads(x)['_id']}\t" in judged]
    (folder / "queries.jsonl").write_text("\n".join(own) + "\n")
    report = run(tmp_path / "job", f"beir:{folder}", QUERIES=12)
    assert report["provenance"]["document vectors"]
    assert list((tmp_path / "job/queries").glob("queries.jsonl*"))


def test_the_mean_of_weights_is_the_one_that_measures_best():
    start = {"w": np.zeros(3, np.float32)}
    end = {"w": np.full(3, 4.0, np.float32)}
    asked = []

    def evaluate(params, step):
        asked.append(float(params["w"][0]))
        return {"m": -abs(float(params["w"][0]) - 1.2)}

    shares = (1.0, 0.0, 0.25, 0.5)
    found, facts = averaging.chosen(start, end, shares, evaluate, "m")
    assert asked == [0.0, 1.0, 2.0, 4.0]
    assert facts["share"] == 0.25
    np.testing.assert_array_equal(found["w"], np.ones(3))
    # Of equals the least share, so that 0 keeps the base.
    found, facts = averaging.chosen(start, end, shares, lambda p, s: {"m": 1.0}, "m")
    assert facts["share"] == 0.0
    np.testing.assert_array_equal(found["w"], start["w"])
    found, facts = averaging.chosen(start, end, (0.0, 0.5), None, "m")
    assert facts == {"share": 0.5}
    with pytest.raises(UserError, match=r"lie in \[0, 1\]"):
        averaging.chosen(start, end, (1.5,), evaluate, "m")


def test_means_of_narrow_weights_keep_their_type():
    start = {"w": jnp.ones(4, jnp.bfloat16)}
    end = {"w": jnp.full(4, 2.0, jnp.bfloat16)}
    found = averaging.between(start, end, 0.5)
    assert found["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(found["w"], np.float32), np.full(4, 1.5))


def test_feedback_votes_in_the_order_to_learn_by_its_weight(tmp_path, toy):
    """Written out in numpy: z-scores of BM25, of the model, and 0.6 of feedback's."""
    from distill_jax.inference.forward import encode_all
    from distill_jax.retrieval import BM25
    from distill_jax.runs.run import Run
    from distill_jax.workspace.context import open_workspace

    flags = {"TEACHER_ORDER": "@taught/candidates.Fused()", "TRAIN_STEPS": 1}
    run(tmp_path, toy, **flags, DEV_SHARE=0.0, EVAL_PERIOD=1)
    workspace = open_workspace(tmp_path, toy, dev_share=0.0)
    docs = workspace.collection
    learnt = Run.read(tmp_path / "candidates/run.trec", collection=docs).lists()
    initial = Pretrained.read(tmp_path / "initial")
    queries = workspace.train.queries
    q, d = (
        encode_all(initial, side, features, np.arange(count))
        for side, features, count in (
            ("query", workspace.query_features(initial, queries), len(queries)),
            ("doc", workspace.doc_features(initial), len(docs)),
        )
    )
    index = BM25.build(docs).search(queries, 12).lists()

    def scores(vector):
        found = d @ vector
        first = np.argsort(-found)[:12]
        return {docs.ids[row]: float(found[row]) for row in first}

    def above_least(found):
        values = np.array([*found.values()])
        z = (values - values.mean()) / (values.std() or 1.0)
        return dict(zip(found, z - z.min(), strict=True))

    def total(*parts):
        names = {name for part in parts for name in part}
        return {name: sum(part.get(name, 0.0) for part in parts) for name in names}

    place = {doc: row for row, doc in enumerate(docs.ids)}
    for number, query in enumerate(queries.ids):
        lexical, dense = (
            above_least(found) for found in (dict(index[query]), scores(q[number]))
        )
        fused = total(lexical, dense)
        first = sorted(fused, key=fused.__getitem__)[:-4:-1]
        weights = np.exp([fused[name] for name in first])
        moved = q[number] + weights / weights.sum() @ d[[place[n] for n in first]]
        again = above_least(scores(moved / np.linalg.norm(moved)))
        expected = total(fused, {name: 0.6 * value for name, value in again.items()})
        # A constant of a query, that of documents which nothing finds, tells nothing.
        best, most = learnt[query][0]
        assert expected[best] == pytest.approx(max(expected.values()), abs=2e-3)
        for name, value in learnt[query]:
            less = expected[best] - expected[name]
            assert most - value == pytest.approx(less, abs=2e-3)
