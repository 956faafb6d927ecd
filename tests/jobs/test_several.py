"""One student of several collections: what it learns from, what chooses, the table."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from distill_jax import main
from distill_jax.models.pretrained import Pretrained
from distill_jax.workspace import ranking
from distill_jax.workspace.context import Workspace, open_workspace

pytestmark = pytest.mark.usefixtures("compiles_fast")
SMALL = {
    "MESH": "data=1",
    "EXPORT": None,
    "VOCABULARY_SIZE": 300,
    "QUERY_LENGTH": 12,
    "DOC_LENGTH": 20,
    "DEV_SHARE": 0.5,
    "LIST_SIZE": 6,
    "POOL": 6,
}


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    """A collection with row numbers, ids and words of its own."""
    folder = tmp_path_factory.mktemp("other") / "other"
    (folder / "qrels").mkdir(parents=True)
    words = ["river", "stone", "cloud", "meadow", "lantern", "violin", "copper"]
    pairs = list(itertools.permutations(words, 2))[:30]
    with open(folder / "corpus.jsonl", "w") as out:
        for number, (first, second) in enumerate(pairs):
            text = f"the {first} lies by the {second}, {first} and {first}"
            out.write(json.dumps({"_id": f"o{number}", "title": "", "text": text}))
            out.write("\n")
    with open(folder / "queries.jsonl", "w") as out:
        for number, (first, second) in enumerate(pairs):
            text = f"which {first} is by a {second}"
            out.write(json.dumps({"_id": f"oq{number}", "text": text}) + "\n")
    for split, rows in (("train", range(20)), ("test", range(20, 30))):
        lines = ["query-id\tcorpus-id\tscore"]
        lines += [f"oq{number}\to{number}\t1" for number in rows]
        (folder / f"qrels/{split}.tsv").write_text("\n".join(lines) + "\n")
    return f"beir:{folder}"


def words(folder: Path, recipe: str, collections: tuple[str, ...], **more) -> list[str]:
    flags = {"MODEL_DIR": folder, "COLLECTIONS": repr(collections), **SMALL, **more}
    flags = {name: value for name, value in flags.items() if value != "-"}
    return [
        f"--gin_file={recipe}",
        "--gin_file=small.gin",
        *(f"--gin.{name}={value}" for name, value in flags.items()),
    ]


def evaluated(
    student: Pretrained, workspace: Workspace, folder: Path, side: str
) -> float:
    """The student's mean nDCG@10 by trec_eval's own code."""
    split = getattr(workspace, side)
    run = ranking.search(
        student, split.queries, workspace, depth=100, directory=folder / "vectors"
    )
    qrels = {q: dict(split.qrels.of(q)) for q in split.qrels.query_ids}
    found = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(
        {query: dict(docs) for query, docs in run.lists().items()}
    )
    return float(np.mean([values["ndcg_cut_10"] for values in found.values()]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, toy, other, compiles_fast) -> Path:
    folder = tmp_path_factory.mktemp("several")
    more = {"KEEP_BASE": False, "AVERAGES": "(1.0,)", "RATES": "(1, 3)"}
    assert main.main(words(folder, "query_side.gin", (toy, other), **more)) == 0
    return folder


def workspaces(folder: Path, toy: str, other: str) -> list[tuple[Path, Workspace]]:
    found = []
    for number, (name, spec) in enumerate((("toy", toy), ("other", other)), 1):
        place = folder / f"collections/{number}_{name}"
        found.append((place, open_workspace(place, spec, dev_share=0.5)))
    return found


@pytest.mark.long
def test_the_table_has_every_collection_and_their_mean(trained, toy, other):
    with open(trained / "table.tsv") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    table = {
        (row["system"], row["collection"]): float(row["value"])
        for row in rows
        if row["measure"] == "nDCG@10"
    }
    student = Pretrained.read(trained / "student")
    values = [
        evaluated(student, workspace, place, "test")
        for place, workspace in workspaces(trained, toy, other)
    ]
    assert table["after", "toy"] == pytest.approx(values[0], abs=1e-5)
    assert table["after", "other"] == pytest.approx(values[1], abs=1e-5)
    assert table["after", "mean"] == pytest.approx(np.mean(values), abs=1e-5)
    systems = {system for system, _ in table}
    assert {"before", "first_stage", "before, with BM25", "after, with BM25"} <= systems


def test_the_checkpoint_is_chosen_by_the_mean_of_the_dev_queries(trained, toy, other):
    student = Pretrained.read(trained / "student")
    chosen = np.mean(
        [
            evaluated(student, workspace, place, "dev")
            for place, workspace in workspaces(trained, toy, other)
        ]
    )
    lines = map(json.loads, (trained / "metrics.jsonl").read_text().splitlines())
    measured = [line["eval/nDCG@10"] for line in lines if "eval/nDCG@10" in line]
    assert len(measured) == 2
    assert max(measured) == pytest.approx(chosen, abs=1e-5)


def test_each_collection_keeps_its_own_lists_and_document_vectors(trained, toy, other):
    for place, workspace in workspaces(trained, toy, other):
        lists = np.load(next((place / "lists").glob("*doc_rows*")), allow_pickle=False)
        assert lists.max() < len(workspace.collection)
        assert len(list((place / "vectors").glob("*/embeddings.json"))) == 1
        report = json.loads((place / "report.json").read_text())
        assert report["measures"]["after"]["nDCG@10"] >= 0


def test_the_same_command_trains_nothing_again(trained, toy, other, capsys):
    more = {"KEEP_BASE": False, "AVERAGES": "(1.0,)", "RATES": "(1, 3)"}
    capsys.readouterr()
    assert main.main(words(trained, "query_side.gin", (toy, other), **more)) == 0
    printed = capsys.readouterr()
    assert "training: already there" in printed.out + printed.err
    assert printed.out.splitlines()[-1].startswith("VERDICT: ")


@pytest.mark.long
def test_both_towers_learn_from_batches_of_one_collection_each(
    tmp_path, toy, other, monkeypatch
):
    from distill_jax.inputs import feed

    seen = []
    original = feed.Featurizer.__call__

    def spy(self, rows, mine=slice(None)):
        seen.append((self.doc, rows))
        return original(self, rows, mine)

    monkeypatch.setattr(feed.Featurizer, "__call__", spy)
    more = {"TRAIN_STEPS": 8, "RATES": "(1, 1)"}
    assert main.main(words(tmp_path, "quickstart.gin", (toy, other), **more)) == 0
    workspaces_of = dict(workspaces(tmp_path, toy, other))
    lengths = {len(w.collection) for w in workspaces_of.values()}
    by_documents: dict = {}
    for doc, rows in seen:
        by_documents.setdefault(id(doc), []).append(rows)
    assert len(by_documents) == len(lengths) == 2
    taught = {
        tuple(sorted(rows["query_rows"].tolist()))
        for batches in by_documents.values()
        for rows in batches
    }
    assert len(taught) > 2
    lists = [
        np.load(next((place / "lists").glob("*doc_rows*"))) for place in workspaces_of
    ]
    for batches in by_documents.values():
        given = np.concatenate([rows["doc_rows"] for rows in batches])
        own = [{tuple(row) for row in known.tolist()} for known in lists]
        # Every list of every batch is one of the lists of a single collection.
        assert any({tuple(row) for row in given.tolist()} <= known for known in own)


@pytest.mark.parametrize(
    ("recipe", "more", "message"),
    [
        ("quickstart.gin", {"RATES": "(1, 2, 3)"}, "3 rates for 2 collections"),
        ("quickstart.gin", {"COLLECTION": "pydocs"}, "both COLLECTION and COLLECTIONS"),
        ("quickstart.gin", {"ELSEWHERE": "('pydocs',)"}, "of a job of one"),
        ("quickstart.gin", {"BUDGET": "1 MB"}, "of a job of one"),
        ("leaf.gin", {"LIST_SIZE": "-", "POOL": "-"}, "of one collection"),
        ("students.gin", {}, "COLLECTIONS are several"),
    ],
)
def test_what_several_collections_cannot_do_is_refused_in_two_lines(
    tmp_path, toy, other, capsys, recipe, more, message
):
    assert main.main(words(tmp_path, recipe, (toy, other), **more)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in " ".join(lines[-2:])


def test_a_collection_twice_is_refused(tmp_path, toy, capsys):
    assert main.main(words(tmp_path, "quickstart.gin", (toy, toy))) == 2
    assert "a collection twice" in capsys.readouterr().err
