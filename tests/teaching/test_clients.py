"""An LLM behind HTTP: every way to fail, and a ledger that adds up."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import sqlite3
import time
from pathlib import Path

import pytest

from distill_jax.io.errors import Unfinished, UserError
from distill_jax.teaching import chat
from distill_jax.teaching.clients import Client, Request
from distill_jax.teaching.ledger import Ledger, reply_key
from distill_jax.teaching.limits import Backoff, Gate, Rate, retry_after
from tests.teaching.fake_llm import FakeLLM

KEY = "sk-secret-4711"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "*")


def requests(count, start=0, max_tokens=20):
    return [
        Request(
            id=f"test-00000000/{i}",
            messages=[{"role": "user", "content": f"Text: number {i}. More."}],
            max_tokens=max_tokens,
        )
        for i in range(start, start + count)
    ]


def open_session(llm, folder, *, no_wait=True, **fields):
    defaults = {"model": "m", "timeout": 5.0, "max_attempts": 3}
    client = Client(base_url=llm.base_url, **(defaults | fields))
    # Waits are a thousandth of what they are, and without jitter.
    clockwork = {"sleep": lambda s: asyncio.sleep(s / 1000)} if no_wait else {}
    session = client.at(folder, jitter=lambda: 0.0, **clockwork)
    if no_wait:
        session._clock = Fast()
    return session


class Fast:
    """A clock that runs a thousand times as fast."""

    def __call__(self):
        return time.monotonic() * 1000


def adds_up(session, requested=None):
    counts = session.counts()
    assert counts["calls"] == counts["succeeded"] + counts["failed"]
    assert "pending" not in counts
    assert sum(counts["failures"].values()) == counts["failed"]
    if requested is not None:
        assert counts["succeeded"] + counts["cached"] <= requested
    return counts


def test_replies_come_in_order_and_a_rerun_costs_nothing(tmp_path):
    with FakeLLM() as llm:
        session = open_session(llm, tmp_path)
        replies = session.complete_all(requests(30))
        assert replies == [f"number {i}" for i in range(30)]
        assert adds_up(session)["calls"] == len(llm.calls) == 30
        session.close()
        again = open_session(llm, tmp_path)
        assert again.complete_all(requests(31)) == [f"number {i}" for i in range(31)]
        counts = adds_up(again)
        assert len(llm.calls) == counts["calls"] == 31
        assert counts["cached"] == 30
        assert llm.calls[0]["model"] == "m"
        assert llm.keys == {f"Bearer {KEY}"}
        assert llm.most_at_once <= 8


def test_the_same_request_twice_is_one_call(tmp_path):
    with FakeLLM() as llm:
        session = open_session(llm, tmp_path)
        assert session.complete_all(requests(1) * 5) == ["number 0"] * 5
        assert len(llm.calls) == 1
        assert session.counts()["cached"] == 4


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        ("busy", "HTTP 429"),
        ("busy_bare", "HTTP 429"),
        ("error", "HTTP 500"),
        ("truncated", "malformed JSON"),
        ("no_choices", "no choices"),
        ("blank", "empty"),
        ("reset", "RemoteProtocolError"),
        ("hang", "time-out"),
        ("drip", "time-out"),
    ],
)
def test_what_may_pass_is_tried_again_but_not_for_ever(tmp_path, behave, reason):
    timeout = 0.3 if reason == "time-out" else 10.0
    with FakeLLM([behave, "good"]) as llm:
        session = open_session(llm, tmp_path / "once", timeout=timeout, concurrency=1)
        assert session.complete_all(requests(2)) == ["number 0", "number 1"]
        counts = adds_up(session)
        assert counts["failures"] == {reason: 2}
        assert counts["calls"] == len(llm.calls) == 4
    with FakeLLM(behave) as llm:
        session = open_session(llm, tmp_path / "always", timeout=timeout)
        assert session.complete_all(requests(2)) == [None, None]
        counts = adds_up(session)
        # A call may time out before it has reached the server.
        assert counts["calls"] == 6 >= len(llm.calls)
        # A failure is not a reply: it is not in the cache.
        llm.behave = lambda number, body: "good"
        session = open_session(llm, tmp_path / "always")
        assert session.complete_all(requests(2)) == ["number 0", "number 1"]


def test_what_will_not_pass_is_not_tried_again(tmp_path):
    with FakeLLM("filtered") as llm:
        session = open_session(llm, tmp_path)
        assert session.complete_all(requests(3)) == [None] * 3
        assert len(llm.calls) == adds_up(session)["calls"] == 3
    with FakeLLM(["good", "bad_request"]) as llm:
        session = open_session(llm, tmp_path / "later", concurrency=1)
        assert session.complete_all(requests(4)).count(None) == 2
        assert len(llm.calls) == adds_up(session)["calls"] == 4


@pytest.mark.parametrize(
    ("behave", "word"),
    [("unauthorised", "401"), ("missing", "404"), ("bad_request", "400.*bad_request")],
)
def test_a_refused_key_ends_the_job_at_once(tmp_path, behave, word):
    with FakeLLM(behave) as llm:
        session = open_session(llm, tmp_path, concurrency=2)
        with pytest.raises(UserError, match=word) as caught:
            session.complete_all(requests(50))
        assert KEY not in str(caught.value)
        assert caught.value.status == 2
        assert len(llm.calls) == 1
        adds_up(session)


def test_everything_at_once(tmp_path):
    kinds = [
        "good",
        "late",
        "busy",
        "error",
        "truncated",
        "no_choices",
        "prose",
        "reset",
    ]
    with FakeLLM(kinds, late=0.05) as llm:
        session = open_session(llm, tmp_path, timeout=1.0, max_attempts=40)
        replies = session.complete_all(requests(40))
        counts = adds_up(session, 40)
        # A call on a connection that the server is just closing never reaches it.
        assert counts["calls"] >= len(llm.calls)
        assert counts["succeeded"] == sum(reply is not None for reply in replies)
        assert None not in replies
        assert set(counts["failures"]) >= {
            "HTTP 429",
            "HTTP 500",
            "malformed JSON",
            "no choices",
            "RemoteProtocolError",
        }


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_budget_of_calls_is_hard_and_a_higher_one_goes_on(tmp_path, concurrency):
    with FakeLLM(["good", "error", "good"]) as llm:
        fields = {"concurrency": concurrency, "max_attempts": 30}
        session = open_session(llm, tmp_path, budget_calls=10, **fields)
        with pytest.raises(Unfinished, match="10 of 10") as caught:
            session.complete_all(requests(20))
        assert caught.value.status == 3
        assert len(llm.calls) == adds_up(session)["calls"] == 10
        with pytest.raises(Unfinished):
            session.complete_all(requests(20))
        assert len(llm.calls) == 10
        session.close()
        more = open_session(llm, tmp_path, budget_calls=100, **fields)
        assert more.complete_all(requests(20)) == [f"number {i}" for i in range(20)]
        counts = adds_up(more)
        # Spent once: what the first budget paid for was not paid again.
        assert counts["succeeded"] == 20
        assert counts["calls"] == len(llm.calls)


def test_the_budget_of_tokens_counts_what_is_reserved(tmp_path):
    one = chat.estimated_tokens(requests(1)[0].messages) + 20
    with FakeLLM() as llm:
        session = open_session(llm, tmp_path, budget_tokens=one * 4, concurrency=8)
        with pytest.raises(Unfinished, match="budget of tokens"):
            session.complete_all(requests(50))
        counts = adds_up(session)
        spent = counts["prompt_tokens"] + counts["completion_tokens"]
        assert spent <= one * 4
        # What calls gave back was used: more than the four that were reserved.
        assert counts["calls"] > 4


@pytest.mark.parametrize("behave", ["hang", "truncated"])
def test_a_call_that_fails_after_it_was_sent_is_charged(tmp_path, behave):
    one = chat.estimated_tokens(requests(1)[0].messages) + 20
    fields = {"timeout": 0.3 if behave == "hang" else 10.0}
    with FakeLLM(behave) as llm:
        fields |= {"price_in": 0.0, "price_out": 1.0, "budget_tokens": one}
        session = open_session(llm, tmp_path, **fields)
        with pytest.raises(Unfinished, match="budget of tokens"):
            session.complete_all(requests(1))
        counts = adds_up(session)
        assert counts["calls"] == 1
        assert counts["prompt_tokens"] + counts["completion_tokens"] == one
        assert counts["cost"] == pytest.approx(20 / 1e6)


def test_the_budget_of_money(tmp_path):
    with FakeLLM() as llm:
        session = open_session(
            llm, tmp_path, budget_money=0.001, price_in=10.0, price_out=30.0
        )
        with pytest.raises(Unfinished, match="budget of money"):
            session.complete_all(requests(200))
        counts = adds_up(session)
        tokens = counts["prompt_tokens"], counts["completion_tokens"]
        assert counts["cost"] == pytest.approx(session.config.cost(tokens), abs=2e-6)
        assert 0 < counts["cost"] <= 0.001


def test_the_budget_of_seconds_is_of_one_run(tmp_path):
    fields = {"concurrency": 1, "no_wait": False}
    with FakeLLM("late", late=0.1) as llm:
        session = open_session(llm, tmp_path, budget_seconds=0.45, **fields)
        with pytest.raises(Unfinished, match=r"budget of seconds .*0\.45 s") as caught:
            session.complete_all(requests(12))
        assert caught.value.status == 3
        # Calls in flight end, and are kept.
        assert 0 < adds_up(session)["succeeded"] <= 5
        session.close()
        more = open_session(llm, tmp_path, budget_seconds=60.0, **fields)
        assert more.complete_all(requests(12)) == [f"number {i}" for i in range(12)]
        assert adds_up(more)["succeeded"] == 12


def test_an_endpoint_that_lets_one_wait_does_not_stretch_the_time(tmp_path):
    with FakeLLM("busy", retry_after="30") as llm:
        session = open_session(llm, tmp_path, no_wait=False, budget_seconds=0.3)
        began = time.monotonic()
        with pytest.raises(Unfinished, match="budget of seconds"):
            session.complete_all(requests(3))
        assert time.monotonic() - began < 5


def test_calls_of_a_killed_job_stay_spent(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.reserve("test-00000000/1", "k", (70, 30), 0.5)
    ledger.close()
    again = Ledger(tmp_path / "ledger.sqlite")
    assert dataclasses.astuple(again.spent()) == (1, 100, 0.5)
    assert again.counts("test-00000000")["failures"] == {"lost": 1}
    assert again.counts("other-00000000")["calls"] == 0


def test_concurrency_falls_with_429_and_comes_back(tmp_path):
    with FakeLLM(lambda n, body: "busy" if n < 12 else "late", late=0.02) as llm:
        session = open_session(llm, tmp_path, concurrency=8, max_attempts=20)
        assert None not in session.complete_all(requests(60))
        assert session._gate.limit > 2
        assert adds_up(session)["failures"] == {"HTTP 429": 12}
    gate = Gate(8)
    gate.in_flight = 8
    gate.refused(started=0.0, now=1.0, wait=5.0)
    gate.refused(started=0.5, now=1.1, wait=2.0)
    # Two refusals of one burst halve it once; the longer wait counts.
    assert (gate.limit, gate.closed_until) == (4.0, 6.0)
    gate.refused(started=1.5, now=2.0, wait=0.0)
    assert gate.limit == 2.0
    for _ in range(100):
        gate.succeeded()
    assert gate.limit == 8.0


def test_rates_are_kept(tmp_path):
    with FakeLLM() as llm:
        session = open_session(llm, tmp_path, no_wait=False, requests_per_minute=1200)
        began = time.monotonic()
        session.complete_all(requests(10))
        assert time.monotonic() - began >= 9 * 60 / 1200
    rate = Rate(60)
    rate.take(1, 100.0)
    assert rate.wait(100.25) == 0.75
    tokens = Rate(600)
    tokens.take(1200, 0.0)
    assert tokens.wait(0.0) == 120.0
    free = Rate(None)
    free.take(10**9, 0.0)
    assert free.wait(0.0) == 0.0


def test_waits():
    backoff = Backoff(first=1.0, longest=60.0)
    assert [backoff.seconds(n, 0.0) for n in (1, 2, 3, 99)] == [0.5, 1.0, 2.0, 30.0]
    assert backoff.seconds(2, 1.0) == 2.0
    assert backoff.seconds(1, 0.0, asked=7.0) == 7.0
    assert backoff.seconds(1, 0.0, asked=9999.0) == 60.0
    assert retry_after("3", 0.0) == 3.0
    assert retry_after("-3", 0.0) == 0.0
    assert retry_after("Thu, 01 Jan 1970 00:01:40 GMT", 40.0) == 60.0
    for nothing in (None, "", "soon", "nan"):
        assert retry_after(nothing, 0.0) is None


def test_retry_after_is_waited_for(tmp_path):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)
        await asyncio.sleep(0)

    now = [0.0]
    with FakeLLM(["busy", "good"], retry_after="17") as llm:
        client = Client(base_url=llm.base_url, model="m")
        session = client.at(
            tmp_path, sleep=sleep, jitter=lambda: 0.0, clock=lambda: now[0]
        )

        async def wait(seconds):
            waits.append(seconds)
            now[0] += seconds

        session._sleep = wait
        assert session.complete_all(requests(1)) == ["number 0"]
    assert waits == [17.0]


def test_the_key_is_nowhere(tmp_path, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    with FakeLLM(["unauthorised", "bad_request", "error", "good"]) as llm:
        client = Client(base_url=llm.base_url, model="m", max_attempts=4)
        session = open_session(llm, tmp_path, max_attempts=4)
        session._worked = True
        session.complete_all(requests(8))
        assert KEY not in repr(client) + str(dataclasses.asdict(client))
        session.close()
    for path in Path(tmp_path).rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
    assert KEY not in caplog.text
    out = capsys.readouterr()
    assert KEY not in out.out + out.err


def test_a_key_that_no_header_holds_is_refused_without_being_shown(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-two words")
    with FakeLLM() as llm, pytest.raises(UserError, match="OPENAI_API_KEY") as caught:
        open_session(llm, tmp_path).complete_all(requests(1))
    assert "two" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://x/v1", "https://user:pw@host/v1", "https://h/v1?key=pw"],
)
def test_addresses_that_are_none_or_hold_secrets(url):
    with pytest.raises(UserError) as caught:
        Client(base_url=url, model="m")
    assert "pw" not in str(caught.value)


def test_it_works_inside_a_running_loop(tmp_path):
    async def notebook():
        with FakeLLM() as llm:
            return open_session(llm, tmp_path).complete_all(requests(3))

    assert asyncio.run(notebook()) == ["number 0", "number 1", "number 2"]


def test_the_cache_may_be_shared_and_knows_model_and_parameters(tmp_path):
    cache = str(tmp_path / "shared.sqlite")
    with FakeLLM() as llm:
        first = open_session(llm, tmp_path / "a", cache=cache)
        first.complete_all(requests(2))
        second = open_session(llm, tmp_path / "b", cache=cache)
        second.complete_all(requests(2))
        assert len(llm.calls) == 2
        open_session(llm, tmp_path / "c", cache=cache, model="other").complete_all(
            requests(2)
        )
        second.complete_all([dataclasses.replace(requests(1)[0], seed=1)])
        second.complete_all([dataclasses.replace(requests(1)[0], temperature=1.0)])
        second.complete_all(requests(1, max_tokens=21))
        assert len(llm.calls) == 7
    a = reply_key("m", [{"role": "user", "content": "x"}], {"t": 1})
    assert a == reply_key("m", [{"content": "x", "role": "user"}], {"t": 1})
    assert len(a) == 64


def test_dead_servers_are_failures(tmp_path):
    with FakeLLM() as llm:
        pass
    session = open_session(llm, tmp_path, budget_calls=1)
    with pytest.raises(UserError, match="Connection refused") as caught:
        session.complete_all(requests(2))
    assert llm.base_url in str(caught.value)
    assert adds_up(session)["failures"] == {"no connection": 1}
    assert dataclasses.astuple(session.ledger.spent()) == (0, 0, 0.0)
    # Nothing was charged: the budget of one call is still there.
    with FakeLLM(port=int(llm.base_url.rpartition(":")[2][:-3])) as alive:
        assert open_session(alive, tmp_path, budget_calls=1).complete_all(
            requests(1)
        ) == ["number 0"]


def test_a_server_that_goes_away_in_the_middle_costs_no_calls(tmp_path):
    with FakeLLM() as llm:
        session = open_session(llm, tmp_path, budget_calls=5, failures_in_a_row=3)
        session.complete_all(requests(1))
    with pytest.raises(UserError, match="nothing was charged"):
        session.complete_all(requests(9, start=1))
    assert session.ledger.spent().calls == 1


@pytest.mark.parametrize(
    "body",
    [None, [], "x", {}, {"choices": None}, {"choices": [{}]}, {"choices": [None]},
     {"choices": [{"message": None}]}, {"choices": [{"message": {"content": None}}]},
     {"choices": [{"message": {"content": 7}}]}, {"usage": {"prompt_tokens": "x"}}],
)  # fmt: skip
def test_odd_bodies(body):
    outcome = chat.read(body)
    assert outcome.reply is None
    assert outcome.reason
    assert outcome.tokens is None


def test_parts_and_thinking_that_ran_out():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat.read({"choices": [{"message": {"content": parts}}]}).reply == "ab"
    cut = {"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}
    assert not chat.read(cut).again


def test_a_ledger_is_an_ordinary_table(tmp_path):
    with FakeLLM() as llm:
        open_session(llm, tmp_path).complete_all(requests(2))
    rows = sqlite3.connect(tmp_path / "ledger.sqlite").execute(
        "select request, status from calls order by request"
    )
    assert rows.fetchall() == [
        ("test-00000000/0", "succeeded"),
        ("test-00000000/1", "succeeded"),
    ]
