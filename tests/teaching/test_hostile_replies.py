"""Replies that are cut, endless, compressed or hostile, and endpoints that refuse."""

from __future__ import annotations

import gzip
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax.io.errors import UserError
from distill_jax.synthesis.replies import read as read_query
from distill_jax.teaching import chat, parsing, prompts
from distill_jax.teaching.clients import Client, Request
from distill_jax.teaching.ledger import Ledger, Replies
from distill_jax.teaching.parsing import parse_ranking, parse_scores
from distill_jax.text import replies
from distill_jax.text.replies import Reply
from tests.teaching.fake_llm import FakeLLM
from tests.teaching.test_clients import open_session, requests


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


class Endpoint:
    """Answers each call with the same status, headers and body."""

    def __init__(self, status=200, body=b"", headers=(), endless=False):
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(handler):
                self.calls += 1
                length = int(handler.headers["content-length"])
                self.context = json.loads(handler.rfile.read(length))
                handler.send_response(status)
                for name, value in headers:
                    handler.send_header(name, value)
                handler.end_headers()
                handler.wfile.write(body)
                try:
                    while endless and self.sent < 1 << 30:
                        handler.wfile.write(b" " * (1 << 16))
                        self.sent += 1 << 16
                except OSError:
                    pass

        self.calls = self.sent = 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,)).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def body(text, finish="stop"):
    choice = {"message": {"content": text}, "finish_reason": finish}
    return {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 9}}


ANSWER = "[2] > [3] > [1]"
THOUGHT = "[1] > [2] > [3] would be the order of reading"


@pytest.mark.parametrize(
    ("opened", "closed"),
    [
        ("<think>", "</think>"),
        ("<THINKING>", "</THINKING>"),
        ('<thinking lang="en">', "</ thinking>"),
        ("<thought>", "</thought>"),
        ("<reasoning>", "</reasoning>"),
        ("<reflection>", "</reflection>"),
        ("<seed:think>", "</seed:think>"),
        ("<a:thinking>", "</a:thinking>"),
        ("<scratchpad>", "</scratchpad>"),
        ("[THINK]", "[/THINK]"),
        ("◁think▷", "◁/think▷"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
        ("<unused94>thought\n", "<unused95>"),
        (
            "<|channel|>analysis<|message|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
        ("analysisWe read on. ", "assistantfinal"),
        ("Here is my thought process: ", "Here is my response: "),
        ("&lt;think&gt;", "&lt;/think&gt;"),
    ],
)
def test_thoughts_of_every_form_are_left_out(opened, closed):
    found = parse_ranking(f"{opened}{THOUGHT}{closed}\n{ANSWER}", 3)
    assert (found.order, found.failure) == ((1, 2, 0), "")
    # Of an answer shorter than the thought's chain, too.
    assert parse_ranking(f"{opened}{THOUGHT}{closed}[2] > [3]", 3).order == (1, 2, 0)
    unclosed = parse_ranking(f"{opened}{THOUGHT}", 3)
    assert (unclosed.order, unclosed.failure) == (None, "cut while thinking")
    if "&lt;" not in opened:
        assert read_query(f"{opened}{THOUGHT}{closed}a query") == ("a query", "")
        assert read_query(f"{opened}a query")[0] is None


def test_only_what_is_in_the_answer_s_mark_is_read():
    assert read_query("Why not:\n<answer>a query</answer>\nDone.") == ("a query", "")
    assert read_query("<|START_RESPONSE|>a query<|END_RESPONSE|>") == ("a query", "")


RECORDED = [
    "[2] > [3] > [1]",
    "The order is: [2] > [3] > [1].\nPassage [2] names the bridge, [1] does not.",
    "[2, 3, 1]",
    "1. [2]\n2. [3]\n3. [1]",
    "Document 2, Document 3, Document 1",
    "2 > 3 > 1",
    "<think>[1] > [2] > [3]</think>[2] > [3] > [1]",
    "Okay, the question is about X. Passage [1] talks of it, [2] less, [3] not.",
    "[2] is most relevant > [1] > [3]",
]


@pytest.mark.parametrize("reply", RECORDED)
def test_a_cut_reply_is_the_whole_one_s_order_or_a_failure(reply):
    whole = parse_ranking(reply, 3)
    for end in range(len(reply) + 1):
        cut = parse_ranking(Reply(reply[:end], cut=True), 3)
        assert cut.order in (None, whole.order), reply[:end]
        assert cut.order or cut.failure
    chain = "[" in reply and whole.order and "Passage [1]" not in reply
    if chain and "1. " not in reply:
        assert parse_ranking(reply, 3, cut=True).order == whole.order


def test_a_cut_thought_without_marks_is_no_order():
    text = f"Let me see. [1] is close. So [1] > [2] > [3]? But {ANSWER} may"
    assert parse_ranking(text, 3, cut=True).failure == "cut at max_tokens"
    assert parse_scores("[0.1, 0.2, 0.3] or [0.3, 0.2", 3, cut=True).values
    assert parse_scores("[1]: 0.1\n[2]: 0.2\n[3]: 0.", 3, cut=True).values is None
    # A query that the end of the reply cuts in two is none.
    assert read_query(Reply("which bridge was bui", cut=True)) == (None, "cut")


@pytest.mark.parametrize(
    "reply",
    [
        "[2] = [1] > [3]",
        "[2] (by far the best) > [1] > [3]",
        "[2] is most relevant > [1] > [3]",
        "[1] > [3], and [2] is off topic",
    ],
)
def test_identifiers_outside_a_chain_make_it_no_order(reply):
    assert parse_ranking(reply, 3).failure == "identifiers outside the chain"


def test_what_endpoints_say_of_the_end_reaches_the_parser(tmp_path):
    long = "Okay. [1] > [2] is how they are shown, then [3]"
    with Endpoint(body=json.dumps(body(long, "length")).encode()) as endpoint:
        client = Client(base_url=endpoint.base_url, model="m")
        request = Request(id="a-00000000/1", messages=[_turn("x")])
        for _ in range(2):  # from the endpoint, then from the cache
            (reply,) = client.at(tmp_path).complete_all([request])
            assert isinstance(reply, Reply)
            assert reply.cut
            assert parse_ranking(reply, 3).order is None
        assert endpoint.calls == 1


def test_a_reply_is_the_same_from_the_endpoint_and_from_the_cache(tmp_path):
    raw = json.dumps(body("a \ud800 b")).encode()
    with Endpoint(body=raw) as endpoint:
        client = Client(base_url=endpoint.base_url, model="m")
        request = Request(id="a-00000000/1", messages=[_turn("x")])
        first, second = (client.at(tmp_path).complete_all([request]) for _ in "12")
    assert first == second == ["a ? b"]


def _turn(text):
    return {"role": "user", "content": text}


def test_caches_of_before_are_read(tmp_path):
    import sqlite3

    path = tmp_path / "replies.sqlite"
    with sqlite3.connect(path) as database:
        database.execute(
            "create table replies (key text primary key, model text not null, reply"
            " text not null, prompt_tokens integer not null, completion_tokens integer"
            " not null, at real not null)"
        )
        database.execute("insert into replies values ('k', 'm', 'said', 1, 1, 0.0)")
    database.close()
    kept = Replies(path)
    assert kept.find("k") == "said"
    kept.keep("l", "m", Reply("b", cut=True), (1, 1))
    assert kept.find("l").cut


@pytest.mark.parametrize("open_file", [Ledger, Replies])
@pytest.mark.parametrize("damage", [b"no database, " * 99, 700])
def test_a_damaged_ledger_is_named(tmp_path, open_file, damage):
    path = tmp_path / "x.sqlite"
    open_file(path).close()
    whole = path.read_bytes()
    path.write_bytes(damage if isinstance(damage, bytes) else whole[:damage])
    with pytest.raises(UserError, match=r"x\.sqlite"):
        open_file(path)


# Patterns of parts that a repeat could meet, and what may keep them from matching.
PUMPS = [
    "[", " ", "\n", "1", "0.5, ", "[1] > ", "[1]", "1 > ", "1,", ">", "<think>", "<",
    "[ ", "Document ", "Document 1 ", "[1, ", "a", "<|channel|>", "1. ", "**", "≻", "-",
    "[1]: 0.5\n", "【", "</", "doc 1,", "&lt;", "analysis", "<a:", "/", "#", "0.5 ",
]  # fmt: skip


def timed(call, text):
    began = time.process_time()
    call(text)
    return time.process_time() - began


def patterns():
    for module in (parsing, prompts, replies):
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern):
                yield pytest.param(value, id=f"{module.__name__}.{name}")


@pytest.mark.parametrize("pattern", list(patterns()))
def test_every_expression_takes_time_in_proportion(pattern):
    """Four times the text may take some four times as long, not sixteen."""

    def search(text):
        for _ in pattern.finditer(text):
            pass
        pattern.fullmatch(text)

    for first in ("", "[", "<", "1", "Document "):
        for pump in PUMPS:
            n = 2500 // len(pump) + 1
            small = min(timed(search, first + pump * n + "!x") for _ in range(2))
            large = min(timed(search, first + pump * (4 * n) + "!x") for _ in range(3))
            assert large < 0.02 + 8 * small, (first, pump)


@pytest.mark.parametrize("pump", PUMPS)
def test_long_replies_are_read_at_once(pump):
    text = "[" + pump * (60_000 // len(pump)) + "x"
    for read in (parse_ranking, parse_scores):
        assert timed(lambda text: read(text, 3), text) < 2.0  # noqa: B023
    assert parse_ranking(pump * 70_000, 3).failure == "too long"
    assert parse_scores(pump * 70_000, 3).failure == "too long"


@settings(max_examples=200, deadline=2000)
@given(st.lists(st.sampled_from([*PUMPS, "2", "3", "]", ".", "N/A", "é", "\ud800"])))
def test_any_reply_is_an_order_scores_or_a_failure(parts):
    text = "".join(parts)
    ranking, scores = parse_ranking(text, 3), parse_scores(text, 3)
    assert (ranking.order is None) == bool(ranking.failure)
    assert ranking.order is None or sorted(ranking.order) == [0, 1, 2]
    assert (scores.values is None) == bool(scores.failure)
    # What a document says is not a notation of ours.
    shown = prompts.plain(text, 300)
    assert not parsing._chains(parsing._answer(shown)[0])


@pytest.mark.parametrize("text", ["[3, 2, 1]", "[²]", "［３］", "[doc 2]", "【1】>"])
def test_a_document_cannot_number_itself(text):
    assert parse_ranking(f"so {prompts.plain(text, 9)} it is", 3).order is None


def test_an_endless_reply_ends_at_four_mebibytes(tmp_path):
    with Endpoint(body=b'{"choices": [', endless=True) as endpoint:
        session = Client(base_url=endpoint.base_url, model="m").at(tmp_path)
        assert session.complete_all(requests(1)) == [None]
        assert session.counts()["failures"] == {"reply too long": 1}
        assert endpoint.sent < 32 << 20


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_bomb_ends_at_four_mebibytes(tmp_path, coding):
    bomb = gzip.compress(b" " * (256 << 20), 9)
    headers = [("Content-Encoding", coding)]
    with Endpoint(body=bomb, headers=headers) as endpoint:
        session = Client(base_url=endpoint.base_url, model="m").at(tmp_path)
        assert timed(session.complete_all, requests(1)) < 2.0
        assert session.counts()["failures"] == {"reply too long": 1}
    small = gzip.compress(json.dumps(body("said")).encode())
    with Endpoint(body=small, headers=[("Content-Encoding", "gzip")]) as endpoint:
        session = Client(base_url=endpoint.base_url, model="m").at(tmp_path / "b")
        assert session.complete_all(requests(1)) == ["said"]


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (400, {"message": "Unsupported parameter: 'max_tokens'", "param": "max_tokens"},
         ("Unsupported parameter", "LLM_TOKENS_FIELD")),
        (400, {"message": "temperature must be 1", "param": "temperature"},
         ("LLM_OMIT=", "temperature")),
        (422, {"message": "extra field seed not permitted"}, ("422", "'seed'")),
        (400, {"message": "maximum context length is 4096 tokens"}, ("4096", "WINDOW")),
        (400, {"message": "System role not supported"}, ("System role", "system")),
        (413, {"message": "payload"}, ("413", "WINDOW")),
        (400, {"message": "no such thing"}, ("no such thing", "LLM_OMIT")),
        (402, {"message": "no credit left"}, ("402", "no credit left")),
        (308, {"message": "moved"}, ("308", "LLM_BASE_URL")),
    ],
)  # fmt: skip
def test_a_refused_request_ends_the_job_in_the_endpoint_s_words(
    tmp_path, status, error, words
):
    with Endpoint(status, json.dumps({"error": error}).encode()) as endpoint:
        session = Client(base_url=endpoint.base_url, model="m").at(tmp_path)
        with pytest.raises(UserError) as caught:
            session.complete_all(requests(30))
        assert endpoint.calls == 1
    for word in words:
        assert word in str(caught.value)
    assert str(caught.value).count("\n") == 1
    assert {400, 401, 403, 404, 413, 422} <= chat.REFUSED


def test_failures_that_are_all_alike_end_the_job(tmp_path):
    with FakeLLM(lambda n, body: "good" if n == 0 else "bad_request") as llm:
        session = open_session(llm, tmp_path, failures_in_a_row=4, concurrency=1)
        with pytest.raises(UserError, match=r"HTTP 400.*4 requests in a row"):
            session.complete_all(requests(60))
        assert len(llm.calls) == 5
    kinds = ["bad_request", "bad_request", "good"]
    with FakeLLM(kinds[::-1]) as llm:
        session = open_session(
            llm, tmp_path / "mixed", failures_in_a_row=3, concurrency=1
        )
        assert session.complete_all(requests(30)).count(None) == 20


def test_one_call_goes_first(tmp_path):
    with FakeLLM(lambda n, body: "late" if n == 0 else "good", late=0.3) as llm:
        session = open_session(llm, tmp_path, concurrency=8, no_wait=False)
        done = threading.Thread(target=session.complete_all, args=(requests(20),))
        done.start()
        time.sleep(0.15)
        assert len(llm.calls) <= 1
        done.join()
        assert len(llm.calls) == 20


def test_no_price_is_no_cost(tmp_path):
    with FakeLLM() as llm:
        unknown = open_session(llm, tmp_path / "a")
        unknown.complete_all(requests(2))
        assert unknown.counts()["cost"] is None
        free = open_session(llm, tmp_path / "b", price_in=0.0, price_out=0.0)
        free.complete_all(requests(2))
        assert free.counts()["cost"] == 0.0
    with pytest.raises(UserError, match="one price"):
        Client(base_url=llm.base_url, model="m", price_in=1.0)
    with pytest.raises(UserError, match="price_out is nan"):
        Client(base_url=llm.base_url, model="m", price_in=1.0, price_out=float("nan"))
