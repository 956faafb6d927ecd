"""Every training recipe's small form runs, and its losses are what its paper says."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from distill_jax import main
from distill_jax.collections.schemes import load_collection
from distill_jax.models.pretrained import Pretrained
from distill_jax.recipe import fitting

COLLECTION = "pydocs:json,email,logging,collections"
# Shorter still than small.gin, and without dropout, so that scores can be checked.
TINY = {
    "MESH": "data=1",
    "DROPOUT": 0.0,
    "ATTENTION_DROPOUT": 0.0,
    "QUERY_LENGTH": 12,
    "DOC_LENGTH": 20,
    "VOCABULARY_SIZE": 600,
}
ASKS_LLM = ("twolar", "rank_distillm", "intermediate_distillation")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiles_fast")]
RECIPES = [
    "rankt5_teacher",
    "monot5_teacher",
    "duot5_teacher",
    "cross_encoder_teacher",
    "twolar",
    "twolar+fused",
    "rank_distillm",
    "pairdistill_colbert",
    "pairdistill_dpr",
    "pairdistill_zero_shot",
    "intermediate_distillation",
    "specialize",
    "specialize+laptop",
    "quickstart",
    "ladder",
    "splade",
]


@dataclasses.dataclass
class Ran:
    """A finished job: its folder, and what each training began with."""

    directory: Path
    status: int
    begun: list

    def stage(self, number: int = 0) -> SimpleNamespace:
        return self.begun[number]

    def first_step(self, number: int = 0) -> dict:
        path = self.stage(number).directory / "metrics.jsonl"
        return json.loads(path.read_text().splitlines()[0])


@contextlib.contextmanager
def noting_first_batches():
    """What ``Fit`` is given: its first batch, and how query rows are called."""
    begun, fit = [], fitting.Fit

    def noting(**options):
        made = fit(**options)

        def call(graphdef, params, objective, feed, evaluate):
            batch = jax.tree.map(np.asarray, next(feed(0)))
            names = options["query_names"](batch.targets.query_rows)
            begun.append(
                SimpleNamespace(
                    directory=Path(options["directory"]), batch=batch, names=names
                )
            )
            return made(graphdef, params, objective, feed, evaluate)

        return call

    fitting.Fit = noting
    try:
        yield begun
    finally:
        fitting.Fit = fit


@pytest.fixture(scope="module")
def ran(tmp_path_factory, llm):
    """Runs a recipe's small form, once; "recipe+overlay" has a file more."""
    done: dict[str, Ran] = {}

    def run(recipe: str) -> Ran:
        if recipe not in done:
            directory = tmp_path_factory.mktemp(recipe)
            flags = {"MODEL_DIR": directory, **TINY}
            if recipe in ASKS_LLM:
                flags |= {"LLM_BASE_URL": llm.base_url, "LLM_MODEL": "fake"}
            words = [f"--gin.{name}={value}" for name, value in flags.items()]
            if recipe == "duot5_teacher":
                # Measured during training as well: a duo ranks by votes there too.
                flags["MEASURE"] = "nDCG@10"
            names = [*recipe.split("+"), "small"]
            files = [f"--gin_file={name}.gin" for name in names]
            with noting_first_batches() as begun:
                status = main.main([*files, *words])
            done[recipe] = Ran(directory, status, begun)
        return done[recipe]

    return run


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_small_form_runs_and_leaves_everything(ran, recipe):
    job = ran(recipe)
    assert job.status == 0
    folder = job.directory
    for name in ("config.gin", "report.json", "report.html", "run.trec"):
        assert (folder / name).stat().st_size > 0, name
    assert list((folder / "student").iterdir())
    assert list((folder / "export").iterdir())
    report = json.loads((folder / "report.json").read_text())
    wanted = {"collection", "measures", "significance", "provenance", "cost"}
    assert wanted <= set(report)
    assert {"first_stage", "before", "after"} <= set(report["measures"])
    assert all(
        0 <= value <= 1 for row in report["measures"].values() for value in row.values()
    )
    for begun in job.begun:
        lines = (begun.directory / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines]
        assert all(np.isfinite(step["loss"]) for step in steps if "loss" in step)
        assert [s["step"] for s in steps if "loss" in s][-1] == 4
    taught = recipe not in (
        "rankt5_teacher",
        "monot5_teacher",
        "duot5_teacher",
        "cross_encoder_teacher",
    )
    assert bool(list(folder.rglob("labels/*.parquet"))) == taught
    pairs = recipe.startswith("pairdistill") or recipe == "ladder"
    assert bool(list(folder.rglob("labels/pairs/*.parquet"))) == pairs
    model = Pretrained.read(folder / "student")
    began = Pretrained.read(folder / "initial")
    assert model.digest != began.digest
    assert model.spec.kind == began.spec.kind


# Losses, in plain numpy over lists of numbers.


def softplus(x):
    return np.logaddexp(0.0, x)


def log_softmax(x):
    return x - np.logaddexp.reduce(x)


def ranknet(scores, labels, where):
    found = []
    for s, y, w in zip(scores, labels, where):
        for i in np.flatnonzero(w):
            found += [softplus(s[j] - s[i]) for j in np.flatnonzero(w) if y[i] > y[j]]
    return np.mean(found)


def listmle(scores, labels, where):
    found = []
    for s, y, w in zip(scores, labels, where):
        x = s[w][np.argsort(-y[w], kind="stable")]
        found.append(sum(np.logaddexp.reduce(x[i:]) - x[i] for i in range(len(x))))
    return np.mean(found)


def kl(scores, labels, where, student=1.0, teacher=1.0):
    found = []
    for s, y, w in zip(scores, labels, where):
        p, q = log_softmax(y[w] / teacher), log_softmax(s[w] / student)
        found.append(np.sum(np.exp(p) * (p - q)))
    return np.mean(found)


def kl_in_batch(cross, targets):
    """Other queries' documents stay in the student's softmax, with no mass there."""
    found = []
    every = targets.where.reshape(-1)
    for i, (y, w) in enumerate(zip(targets.labels, targets.where)):
        q = np.full(every.shape, -np.inf)
        q[every] = log_softmax(cross[i].reshape(-1)[every])
        own = q.reshape(targets.where.shape)[i][w]
        p = log_softmax(y[w])
        found.append(np.sum(np.exp(p) * (p - own)))
    return np.mean(found)


def softmax_cross_entropy(scores, labels, where):
    return np.mean(
        [-y[w] @ log_softmax(s[w]) for s, y, w in zip(scores, labels, where)]
    )


def pairwise_kl(scores, targets):
    found = []
    for s, first, second, probability, where in zip(
        scores,
        targets.first,
        targets.second,
        targets.probability.astype(np.float64),
        targets.pair_where,
    ):
        for i, j, p in zip(first[where], second[where], probability[where]):
            for a, log_b in (
                (p, -softplus(s[j] - s[i])),
                (1 - p, -softplus(s[i] - s[j])),
            ):
                found.append(a * (np.log(a) - log_b) if a > 0 else 0.0)
    return sum(found) / (len(found) / 2)


def contrastive(cross, targets, temperature, threshold=None, own=True):
    """Query by query, document by document."""
    found = []
    rows, labels, where = targets.doc_rows, targets.labels, targets.where
    for i in range(len(rows)):
        if not (where[i, 0] and targets.labelled[i]):
            continue
        alike = {int(rows[i, 0])}
        if threshold is not None:
            alike |= {
                int(doc)
                for doc, label, there in zip(rows[i], labels[i], where[i])
                if there and label > threshold * labels[i, 0]
            }
        others = [
            cross[i, j, n] / temperature
            for j in range(len(rows))
            for n in range(rows.shape[1])
            if where[j, n] and int(rows[j, n]) not in alike and (own or i != j)
        ]
        positive = cross[i, i, 0] / temperature
        found.append(np.logaddexp.reduce([positive, *others]) - positive)
    return np.mean(found) if found else 0.0


def scores_of(folder: Path, batch) -> tuple[np.ndarray, np.ndarray | None]:
    """A stored student's scores of a batch, and against the documents of all."""
    student = Pretrained.read(folder).module()
    batch = jax.tree.map(jax.numpy.asarray, batch)
    rep = student.represent(batch)
    cross = None
    if hasattr(student, "cross_scores"):
        cross = np.asarray(student.cross_scores(rep, batch), np.float64)
    return np.asarray(student.scores(rep, batch), np.float64), cross


def same(logged: dict, **expected: float) -> None:
    for name, value in expected.items():
        assert logged[name] == pytest.approx(value, rel=2e-4, abs=2e-5), name


def taught_labels(folder: Path) -> dict[str, dict[str, float]]:
    """{query: {document: score, or minus the rank}} straight from the Parquet files."""
    found = {}
    for path in sorted((folder / "labels").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            sign = -1 if row["kind"] == "rank" else 1
            found[row["query_id"]] = {
                doc: sign * score for doc, score in zip(row["doc_ids"], row["scores"])
            }
    return found


def assert_order_of_teacher(begun, folder: Path, clipped: bool = False) -> None:
    """The batch's labels rank each list as the stored labels do."""
    ids = load_collection(COLLECTION, split="train")[0].ids
    taught, targets = taught_labels(folder), begun.batch.targets
    assert (targets.where.sum(1) > 1).any()  # one document alone has no order
    for name, docs, labels, where in zip(
        begun.names, targets.doc_rows, targets.labels, targets.where
    ):
        stored = np.asarray([taught[name][ids[int(d)]] for d in docs[where]])
        given = labels[where]
        assert (
            np.sign(given[:, None] - given) == np.sign(stored[:, None] - stored)
        ).all()


def test_rankt5_learns_by_softmax(ran):
    job = ran("rankt5_teacher")
    targets = job.stage().batch.targets
    scores, _ = scores_of(job.directory / "initial", job.stage().batch)
    value = softmax_cross_entropy(scores, targets.labels, targets.where)
    same(job.first_step(), softmax=value, loss=value)


@pytest.mark.parametrize("recipe", ["twolar", "twolar+fused"])
def test_twolar_learns_an_order_by_ranknet(ran, recipe):
    job = ran(recipe)
    targets = job.stage().batch.targets
    scores, _ = scores_of(job.directory / "initial", job.stage().batch)
    value = ranknet(scores, targets.labels, targets.where)
    same(job.first_step(), ranknet=value, loss=value)
    assert_order_of_teacher(job.stage(), job.directory)


def test_rank_distillm_is_contrastive_then_ranknet(ran):
    job = ran("rank_distillm")
    first, second = job.begun
    scores, _ = scores_of(job.directory / "initial", first.batch)
    targets = first.batch.targets
    value = softmax_cross_entropy(scores, targets.labels, targets.where)
    same(job.first_step(0), lce=value, loss=value)
    # The second stage goes on with the student of the first.
    scores, _ = scores_of(first.directory / "student", second.batch)
    targets = second.batch.targets
    value = ranknet(scores, targets.labels, targets.where)
    same(job.first_step(1), distil=value, loss=value)
    assert_order_of_teacher(second, second.directory)


def test_intermediate_distillation_is_listmle_then_kl(ran):
    job = ran("intermediate_distillation")
    ranker, retriever = job.begun
    scores, _ = scores_of(job.directory / "initial", ranker.batch)
    targets = ranker.batch.targets
    value = listmle(scores, targets.labels, targets.where)
    same(job.first_step(0), listmle=value, loss=value)
    assert_order_of_teacher(ranker, ranker.directory)
    # The retriever starts afresh, and its labels are the ranker's scores.
    scores, _ = scores_of(job.directory / "initial", retriever.batch)
    targets = retriever.batch.targets
    value = kl(scores, targets.labels, targets.where)
    same(job.first_step(1), kl=value, loss=value)
    taught, _ = scores_of(ranker.directory / "student", retriever.batch)
    np.testing.assert_allclose(
        taught[targets.where], targets.labels[targets.where], rtol=1e-3, atol=1e-4
    )


def test_specialize_adds_kl_and_a_masked_contrast(ran):
    job = ran("specialize")
    targets = job.stage().batch.targets
    scores, cross = scores_of(job.directory / "initial", job.stage().batch)
    listwise = kl(scores, targets.labels, targets.where, student=0.05, teacher=0.3)
    contrast = contrastive(cross, targets, temperature=0.01, threshold=0.6)
    assert listwise > 0
    assert contrast > 0
    loss = listwise + 0.1 * contrast
    same(job.first_step(), listwise=listwise, contrastive=contrast, loss=loss)
    # Percentiles bring all labels to 0-1, and the threshold masks some of them.
    labels = targets.labels[targets.where]
    assert labels.min() >= 0
    assert labels.max() <= 1
    assert contrast != pytest.approx(contrastive(cross, targets, 0.01), rel=1e-4)
    assert_order_of_teacher(job.stage(), job.directory, clipped=True)


def test_specialize_on_a_laptop_learns_an_order_alone(ran):
    job = ran("specialize+laptop")
    targets = job.stage().batch.targets
    scores, _ = scores_of(job.directory / "initial", job.stage().batch)
    listwise = kl(scores, targets.labels, targets.where, student=0.05)
    same(job.first_step(), listwise=listwise, loss=listwise)
    assert "contrastive" not in job.first_step()
    assert_order_of_teacher(job.stage(), job.directory)


def pairdistill_parts(job: Ran) -> tuple[float, float, float]:
    targets = job.stage().batch.targets
    assert targets.pair_where.sum() > 0
    scores, cross = scores_of(job.directory / "initial", job.stage().batch)
    return (
        kl(scores, targets.labels, targets.where),
        pairwise_kl(scores, targets),
        contrastive(cross, targets, temperature=1.0, own=False),
    )


def test_pairdistill_of_a_dual_encoder_adds_three_losses(ran):
    job = ran("pairdistill_dpr")
    _, pairs, contrast = pairdistill_parts(job)
    _, cross = scores_of(job.directory / "initial", job.stage().batch)
    listwise = kl_in_batch(cross, job.stage().batch.targets)
    loss = listwise + 1.0 * pairs + contrast
    same(
        job.first_step(),
        listwise=listwise,
        pairwise=pairs,
        contrastive=contrast,
        loss=loss,
    )
    assert_order_of_teacher(job.stage(), job.directory)


def test_pairdistill_of_colbert_weighs_pairs_by_three(ran):
    job = ran("pairdistill_colbert")
    listwise, pairs, contrast = pairdistill_parts(job)
    loss = listwise + 3.0 * pairs + contrast
    same(
        job.first_step(),
        listwise=listwise,
        pairwise=pairs,
        contrastive=contrast,
        loss=loss,
    )


def flops(weights, where):
    """The squared mean weight of each term over the texts that are there, summed."""
    weights = np.asarray(weights, np.float64).reshape(-1, weights.shape[-1])
    return sum(np.square(weights[np.flatnonzero(where)].mean(0)))


def test_splade_learns_margins_and_pays_for_terms_more_and_more(ran):
    job = ran("splade")
    batch = jax.tree.map(jax.numpy.asarray, job.stage().batch)
    student = Pretrained.read(job.directory / "initial").module()
    rep = student.represent(batch)
    scores = np.asarray(student.scores(rep, batch), np.float64)
    margins = []
    for s, y, w in zip(scores, batch.targets.labels, batch.targets.where):
        for i in np.flatnonzero(w):
            margins += [
                (s[i] - s[j] - (y[i] - y[j])) ** 2
                for j in np.flatnonzero(w)
                if y[i] > y[j]
            ]
    of_queries = flops(rep["q"], batch.targets.where.any(1))
    of_docs = flops(rep["d"], batch.targets.where.reshape(-1))
    assert min(of_queries, of_docs) > 0
    # FLOPS_RAMP is a third of the four updates, and this is the first.
    grown = min(1 / (4 * 0.33), 1) ** 2
    same(
        job.first_step(),
        margins=np.mean(margins),
        flops_queries=of_queries,
        flops_docs=of_docs,
        loss=np.mean(margins) + grown * (0.1 * of_queries + 0.08 * of_docs),
    )


def test_pairdistill_zero_shot_has_no_contrast(ran):
    job = ran("pairdistill_zero_shot")
    listwise, pairs, _ = pairdistill_parts(job)
    same(
        job.first_step(), listwise=listwise, pairwise=pairs, loss=listwise + 3.0 * pairs
    )
    assert "contrastive" not in job.first_step()
