"""Question answering by recipe: questions of a file, hit rates, and a reader's EM."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from distill_jax.collections.schemes import load_collection
from distill_jax.main import main
from distill_jax.runs.run import Run
from distill_jax.teaching import sessions
from distill_jax.teaching.limits import Backoff
from tests.teaching.fake_llm import FakeLLM

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = {
    "d1": "Homer wrote the Iliad long ago",
    "d2": "Vergil of Mantua wrote the Aeneid",
    "d3": "Nobody knows who built it",
    "d4": "Dante met Vergil in the Comedy",
}
QUESTIONS = [
    {"_id": "q1", "question": "who wrote the iliad", "answers": ["Homer wrote the"]},
    {"_id": "q2", "question": "who wrote the aeneid", "answers": ["Maro", "Vergil"]},
    {"_id": "q3", "question": "who built it", "answers": "the Romans"},
    {"_id": "q4", "question": "nobody knows this", "answers": []},
]
# The order in which two systems find the documents.
GOOD = {"q1": "d1 d2 d3 d4", "q2": "d2 d4 d1 d3", "q3": "d3 d1 d2 d4"}
POOR = {"q1": "d2 d3 d1 d4", "q2": "d3 d1 d4 d2", "q3": "d1 d2 d3 d4"}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Documents without queries, questions with answers, and two runs."""
    folder = tmp_path_factory.mktemp("answering")
    with open(folder / "corpus.jsonl", "w") as out:
        for doc, text in DOCS.items():
            out.write(json.dumps({"_id": doc, "title": "", "text": text}) + "\n")
    with open(folder / "questions.jsonl", "w") as out:
        out.writelines(json.dumps(question) + "\n" for question in QUESTIONS)
    for name, order in (("poor", POOR), ("good", GOOD)):
        lists = [
            [(doc, 1.0 / rank) for rank, doc in enumerate(docs.split(), 1)]
            for docs in order.values()
        ]
        Run.from_lists(list(order), lists).write(folder / f"{name}.trec")
    return folder


def argv(folder: Path, out: Path, **flags) -> list[str]:
    given = {
        "COLLECTION": f"beir:{folder}",
        "QUERIES": f"jsonl:{folder}/questions.jsonl",
        "RUNS": repr((f"{folder}/poor.trec", f"{folder}/good.trec")),
        "MODEL_DIR": out,
        "HITS": "(1, 2, 3)",
        # Nothing reads where no LLM is named, and then the name is refused.
        **({"READ": 2} if "LLM_BASE_URL" in flags else {}),
        **flags,
    }
    words = [f"--gin.{name}={value}" for name, value in given.items()]
    return ["--gin_file=evaluate.gin", *words]


def behind(server, **flags) -> dict:
    return {"LLM_BASE_URL": server.base_url, "LLM_MODEL": "fake", **flags}


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_hit_rates_need_no_judgements_and_no_llm(folder, tmp_path, capsys):
    assert main(argv(folder, tmp_path)) == 0
    found = report(tmp_path)
    # poor: q1 at rank 3, q2 ("Vergil") at rank 3, q3 never; good: q1 and q2 at once.
    assert found["measures"]["poor"] == pytest.approx(
        {"HR@1": 0.0, "HR@2": 0.0, "HR@3": 2 / 3}
    )
    assert found["measures"]["good"] == pytest.approx(
        {"HR@1": 2 / 3, "HR@2": 2 / 3, "HR@3": 2 / 3}
    )
    assert found["queries"]["measure"] == "HR@1"
    assert "1 of 4 questions have no answer: left out" in found["notices"]
    printed = capsys.readouterr().out
    assert "HR@3" in printed
    assert "good" in printed
    assert "HR@1" in (tmp_path / "report.html").read_text()


def test_a_reader_is_planned_stopped_and_measured(folder, tmp_path, capsys):
    with FakeLLM() as server:
        flags = behind(server, LLM_BUDGET_CALLS=4)
        assert main([*argv(folder, tmp_path, **flags), "--plan"]) == 0
        planned = capsys.readouterr().out
        assert "at most 6 calls (budget 4), 2 rankings of 3 questions" in planned
        assert not server.calls
        assert main(argv(folder, tmp_path, **flags)) == 3
        assert "budget of calls" in capsys.readouterr().err
        assert len(server.calls) == 4
        assert main(argv(folder, tmp_path, **behind(server))) == 0
        assert len(server.calls) == 6
        assert main(argv(folder, tmp_path, **behind(server))) == 0
        assert len(server.calls) == 6
    found = report(tmp_path)
    # It says the first three words of the first document: good is right about q1
    # ("Homer wrote the"), and has one word of three for q2 ("Vergil of Mantua").
    good, poor = found["measures"]["good"], found["measures"]["poor"]
    assert good["EM"] == pytest.approx(1 / 3)
    assert good["F1"] == pytest.approx((1 + 2 * (1 / 3) / (4 / 3)) / 3)
    # poor reads d2 for q1 ("Vergil of Mantua"), d3 for q2, and d1 for q3 ("Homer
    # wrote the" has nothing of "Romans" once its article is gone).
    assert (poor["EM"], poor["F1"]) == (0.0, 0.0)
    assert good["HR@1"] == pytest.approx(2 / 3)
    assert found["cost"]["calls"] == 6
    assert found["cost"]["tokens"] > 0
    said = json.loads((tmp_path / "reading/good/answers.json").read_text())
    assert said["answers"]["q1"] == "Homer wrote the"
    assert said["expected"]["q2"] == ["Maro", "Vergil"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("EM", "F1", "HR@2"))
    assert "F1" in (tmp_path / "report.html").read_text()


def test_questions_without_a_reply_count_nothing_and_the_status_tells(
    folder, tmp_path, capsys, monkeypatch
):
    quick = functools.partial(Backoff, first=0.01)
    monkeypatch.setattr(sessions, "Backoff", quick)

    def behave(number, body):
        return "no_choices" if "iliad" in str(body) else "good"

    with FakeLLM(behave) as server:
        flags = behind(server, RUNS=repr((f"{folder}/good.trec",)))
        assert main(argv(folder, tmp_path, **flags)) == 2
        assert "1 of 3 questions have no reply" in capsys.readouterr().err
        more = "--gin.llm.Reader.most_failed=0.5"
        assert main([*argv(folder, tmp_path, **flags), more]) == 3
    found = report(tmp_path)
    assert found["measures"]["good"]["EM"] == 0.0
    assert found["cost"]["questions without a reply"] == 1


def test_answers_and_judgements_are_measured_together(folder, tmp_path):
    own = tmp_path / "own"
    (own / "qrels").mkdir(parents=True)
    (own / "corpus.jsonl").write_bytes((folder / "corpus.jsonl").read_bytes())
    with open(own / "queries.jsonl", "w") as out:
        for question in QUESTIONS[:3]:
            record = {**question, "text": question["question"]}
            out.write(json.dumps(record) + "\n")
    judged = "q1\td1\t1\nq2\td2\t1\nq3\td4\t1\n"
    (own / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    queries = load_collection(f"beir:{own}")[1]
    assert queries.answers == [["Homer wrote the"], ["Maro", "Vergil"], ["the Romans"]]
    flags = {"COLLECTION": f"beir:{own}", "QUERIES": None}
    assert main(argv(folder, tmp_path / "out", **flags)) == 0
    good = report(tmp_path / "out")["measures"]["good"]
    assert good["RR@10"] == pytest.approx((1 + 1 + 1 / 4) / 3)
    assert good["HR@1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"LLM_MODEL": "fake"}, "LLM_MODEL without LLM_BASE_URL"),
        ({"LLM_BASE_URL": "http://127.0.0.1:1/v1"}, "LLM_BASE_URL without LLM_MODEL"),
        ({"QUERIES": "jsonl:/no/such.jsonl"}, "/no/such.jsonl"),
        ({"QUERIES": "jsonl:"}, "nothing after the scheme"),
        ({"COLLECTION": "jsonl:{folder}/questions.jsonl"}, "holds questions"),
        ({"QUERIES": "jsonl:{folder}/corpus.jsonl"}, "a table of documents"),
        ({"QUERIES": None}, "qrels"),
        ({"RUNS": "()"}, "nothing to evaluate"),
    ],
)
def test_mistakes_are_told_in_two_lines(folder, tmp_path, capsys, flags, told):
    flags = {n: v and v.replace("{folder}", str(folder)) for n, v in flags.items()}
    assert main(argv(folder, tmp_path, **flags)) == 2
    err = capsys.readouterr().err
    assert told in err
    assert len(err.strip().splitlines()) <= 2
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"question": ', r":2:14: malformed JSON"),
        ('{"answers": ["x"]}', r':2: no text under "question"'),
        (
            '{"question": "x", "answers": [{"a": 1}]}',
            r":2: the answers are not strings",
        ),
        ('{"question": "x", "_id": ["a"]}', r":2: the id is a list"),
        ('{"question": "x", "_id": "a\\tb"}', r":2: the id 'a\tb' cannot"),
    ],
)
def test_a_malformed_question_is_named(folder, tmp_path, capsys, line, told):
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps(QUESTIONS[0]) + "\n" + line + "\n")
    assert main(argv(folder, tmp_path, QUERIES=f"jsonl:{path}")) == 2
    assert f"asked.jsonl{told}" in capsys.readouterr().err


def test_questions_have_ids_of_their_own_lines(tmp_path):
    path = tmp_path / "asked.jsonl"
    lines = [
        {"question": "one", "answer": 1912},
        {"text": "two", "id": 7, "answers": {"value": "A", "aliases": ["B", "A"]}},
    ]
    path.write_text("\n\n".join(map(json.dumps, lines)))
    _, queries, qrels = load_collection(f"jsonl:{path}")
    assert queries.ids == ["asked-1", "7"]
    assert queries.answers == [["1912"], ["A", "B"]]
    assert len(qrels) == 0


def test_the_command_line(folder, tmp_path):
    """A model, the first stage it reorders, and a reader, as a user starts it."""
    with FakeLLM() as server:
        flags = behind(server, CHECKPOINT="fresh:reranker:t5:tiny", RUNS="()")
        flags |= {"CHECKPOINTS": "(%CHECKPOINT,)", "MESH": "data=1"}
        words = argv(folder, tmp_path, **flags)
        done = subprocess.run(
            [sys.executable, "-m", "distill_jax.main", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    measured = report(tmp_path)["measures"]
    assert set(measured) == {"first_stage", "fresh:reranker:t5:tiny"}
    assert set(measured["first_stage"]) == {"HR@1", "HR@2", "HR@3", "EM", "F1"}
    assert measured["first_stage"]["HR@1"] == pytest.approx(2 / 3)
