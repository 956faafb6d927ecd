"""Queries from an LLM: prompts, replies, shards. The LLM is a function here."""

from __future__ import annotations

import json

import numpy as np
import pytest

from distill_jax.collections.collection import Collection
from distill_jax.io.errors import UserError
from distill_jax.synthesis import kinds, llm, replies

KINDS = [
    "claims",
    "keywords",
    "questions",
    "titles",
    "user_queries",
    "zero_shot_queries",
]
DOCS = Collection(
    [f"d{i}" for i in range(5)],
    [f"Text {i} has {{examples}} and {{braces}}." for i in range(5)],
    [f"Title {i}" for i in range(5)],
)


@pytest.mark.parametrize(
    ("reply", "query", "reason"),
    [
        ("What is it?", "What is it?", ""),
        ('\n\n\t"What\tis it?"\nIt is this.', "What is it?", ""),
        ('"“Nested”"', "“Nested”", ""),
        ("“Curly”", "Curly", ""),
        ("Query: what is it", "what is it", ""),
        ("Sure! Here is a query:\n\nwhat is it", "what is it", ""),
        ("1. **what is it**\n2. why", "what is it", ""),
        ("```\nwhat is it\n```", "what is it", ""),
        ("Question:\n- what is it", "what is it", ""),
        ("Here are some:", None, "empty"),
        ('He said "no"', 'He said "no"', ""),
        ("", None, "empty"),
        (' \n "" \n...', None, "empty"),
        (None, None, "failed"),
        ("I'm sorry, but I can't help with that.", None, "refused"),
        ("Sorry, no question fits.", None, "refused"),
        ("As an AI language model, I write none", None, "refused"),
        ("i cannot log in to my account", "i cannot log in to my account", ""),
        ("unable to print", "unable to print", ""),
        ("N/A", None, "empty"),
        ("No query.", None, "empty"),
        ('{"query": "what is it"}', "what is it", ""),
        ('```json\n{"queries": ["what is it", "why"]}\n```', "what is it", ""),
        ('["what is it"]', "what is it", ""),
        ("[1, 2]", None, "empty"),
        ("[what] is it", "[what] is it", ""),
        ("<query>what is it</query>", "what is it", ""),
        ("Sure, here's a query: what is it", "what is it", ""),
        ("Relevant Query: what is it", "what is it", ""),
        ("> what is it", "what is it", ""),
        ("what is it<|im_end|>\n<|im_start|>user\nAnother", "what is it", ""),
        ("what is it</s>", "what is it", ""),
        ("word " * 31, None, "too long"),
        ("x" * 400, None, "too long"),
        ("word " * 30, "word " * 29 + "word", ""),
    ],
)
def test_replies(reply, query, reason):
    assert replies.read(reply) == (query, reason)


def test_the_six_kinds_ship():
    assert kinds.shipped() == KINDS
    for name in KINDS:
        kind = kinds.load(name)
        messages = kind.messages("SOME TEXT", "d1")
        assert [turn["role"] for turn in messages] == ["system", "user"]
        user = messages[1]["content"]
        assert user.count("SOME TEXT") == 1
        assert "{" not in user
        shown = sum(document in user for document, _ in kind.pool)
        assert shown == (0 if name == "zero_shot_queries" else 3)
        assert "under 20 words" in user


def test_examples_belong_to_the_document():
    kind = kinds.load("questions")
    assert kind.messages("x", "d1", 0, 5) == kind.messages("x", "d1", 0, 5)
    turns = {kind.messages("x", f"d{i}")[1]["content"] for i in range(20)}
    assert len(turns) > 10


def test_a_users_own_prompt(tmp_path):
    (tmp_path / "mine.txt").write_text("Ask about: {document}")
    kind = kinds.load(tmp_path / "mine.txt")
    assert kind.name == "mine"
    assert kind.messages("{document} {examples}", "d")[0]["content"] == (
        "Ask about: {document} {examples}"
    )
    (tmp_path / "bad.txt").write_text("Ask about it")
    with pytest.raises(UserError, match=r"no \{document\}"):
        kinds.load(tmp_path / "bad.txt")
    with pytest.raises(UserError, match=r"'questions'|did you mean"):
        kinds.load("question")
    record = {"user": "{examples} {document}", "example": "{query}", "shots": 2}
    (tmp_path / "few.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="pool"):
        kinds.load(tmp_path / "few.json")
    (tmp_path / "pool.jsonl").write_text('{"document": "x", "q": "y"}\n')
    record |= {"pool": "pool.jsonl", "field": "q"}
    (tmp_path / "few.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="1 examples for 2 shots"):
        kinds.load(tmp_path / "few.json")


class Client:
    """Answers with the id; fails and rambles where told."""

    def __init__(self, answers=None, stop_at=None):
        self.calls, self.seen = 0, []
        self.answers, self.stop_at = answers or {}, stop_at

    def __call__(self, requests):
        self.calls += 1
        if self.stop_at == self.calls:
            raise KeyboardInterrupt
        self.seen += requests
        names = [r.id.removeprefix("synthesis/") for r in requests]
        return [self.answers.get(name, f"query of {name}") for name in names]


def test_every_reply_is_a_query_or_counted():
    client = Client({"d1|titles|0": None, "d2|titles|1": "", "d3|claims|0": "w " * 50})
    made = llm.generate(
        DOCS, np.arange(5), client, kinds=["titles", "claims"], samples=2
    )
    assert len(made) == 5 * 2 * 2 - 3
    assert made.dropped == {
        "titles: reply failed": 1,
        "titles: reply empty": 1,
        "claims: reply too long": 1,
    }
    assert made.texts[0] == "query of d0|titles|0"
    assert (
        "Title 0 Text 0 has {examples} and {braces}."
        in (client.seen[0].messages[1]["content"])
    )
    assert len({r.seed for r in client.seen}) == 20


def test_a_kill_costs_the_shard_in_flight(tmp_path):
    options = {"kinds": ["titles"], "directory": tmp_path / "x", "shard_size": 2}
    with pytest.raises(KeyboardInterrupt):
        llm.generate(DOCS, np.arange(5), Client(stop_at=2), **options)
    client = Client()
    made = llm.generate(DOCS, np.arange(5), client, **options)
    assert client.calls == 2
    assert [r.id for r in client.seen] == [
        f"synthesis/d{i}|titles|0" for i in (2, 3, 4)
    ]
    whole = llm.generate(DOCS, np.arange(5), Client(), kinds=["titles"])
    assert (made.ids, made.texts) == (whole.ids, whole.texts)
    again = Client()
    llm.generate(DOCS, np.arange(5), again, **options)
    assert again.calls == 0


def test_other_work_in_the_folder_is_refused(tmp_path):
    options = {"kinds": ["titles"], "directory": tmp_path}
    llm.generate(DOCS, np.arange(5), Client(), **options)
    with pytest.raises(UserError, match="seed, temperature differ"):
        llm.generate(DOCS, np.arange(5), Client(), seed=1, temperature=0.5, **options)
    with pytest.raises(UserError, match="rows differ"):
        llm.generate(DOCS, np.arange(4), Client(), **options)
