"""An endpoint on 127.0.0.1 that answers well, badly or not at all.

``with FakeLLM() as llm: ... llm.base_url`` in tests, and for recipes
``python -m tests.teaching.fake_llm --port 8000``. It ranks passages by the words they
share with the query, scores them likewise, answers questions with the start of the
first passage, and writes queries from the first sentence of a text. It says Yes or No,
grades, and compares two passages, with log-probabilities where they are wanted; it has
/rerank (a bare list for TEI's ``texts``) and /embeddings (counts of hashed words).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WORD = re.compile(r"\w+")
NUMBERED = re.compile(r"^\[(\d+)\] (.*)$", re.MULTILINE)

BEHAVIOURS = (
    "good", "late", "busy", "busy_bare", "error", "truncated", "no_choices", "blank",
    "filtered", "prose", "duplicates", "refusal", "hang", "drip", "reset",
    "bad_request", "unauthorised", "missing",
)  # fmt: skip


def words(text: str) -> set[str]:
    return {word.lower() for word in WORD.findall(text)}


def answer(messages: list[dict]) -> str:
    """What a good model says."""
    text = "\n".join(turn["content"] for turn in messages if turn["role"] == "user")
    passages = {int(n): said for n, said in NUMBERED.findall(text)}
    if not passages:
        source = text.rpartition("Text:")[2] or text
        sentence = re.split(r"[.!?\n]", source.strip())[0]
        return " ".join(sentence.split()[:12]) or "a query"
    question = re.search(r"^Question: (.*)$", text, re.MULTILINE)
    if question:
        return " ".join(passages[min(passages)].split()[:3])
    query = words(re.findall(r"(?:Query|this query): (.*)$", text, re.MULTILINE)[-1])
    overlap = {n: len(words(said) & query) for n, said in passages.items()}
    if "scores" in text:
        most = max(1, len(query))
        return str([round(min(1.0, overlap[n] / most), 3) for n in sorted(passages)])
    order = sorted(passages, key=lambda n: (-overlap[n], n))
    return " > ".join(f"[{n}]" for n in order)


def shared(query: str, passage: str) -> float:
    """The share of a query's words that a passage has."""
    found = words(query)
    return len(found & words(passage)) / max(1, len(found))


def judged(messages: list[dict]) -> dict[str, float] | None:
    """Probabilities of the words that a judge may say; None where nothing is judged.

    The first of two passages is preferred a little for its place.
    """
    text = messages[-1]["content"]
    query = re.search(r"^Query: (.*)$", text, re.MULTILINE)
    found = re.findall(r"^Passage(?: \d)?: (.*)$", text, re.MULTILINE)
    if not query or not found:
        return None
    share = [shared(query[1], passage) for passage in found]
    if len(share) == 2:
        first = 1 / (1 + math.exp(-4 * (share[0] - share[1]) - 0.25))
        return {"1": first, "2": 1 - first}
    most = re.search(r"\) to (\d+) \(", text)
    if most is None:
        yes = 0.1 + 0.8 * share[0]
        return {"Yes": yes, "No": 1 - yes}
    grades = range(int(most[1]) + 1)
    weights = [math.exp(-abs(grade - share[0] * grades[-1])) for grade in grades]
    return {str(g): w / sum(weights) for g, w in zip(grades, weights)}


def scored(body: dict) -> str:
    """The answer of /rerank: best first, as servers give it."""
    texts = body.get("texts")
    documents = body["documents"] if texts is None else texts
    pairs = [(shared(body["query"], text), i) for i, text in enumerate(documents)]
    pairs.sort(reverse=True)
    if texts is not None:
        return json.dumps([{"index": i, "score": score} for score, i in pairs])
    results = [{"index": i, "relevance_score": score} for score, i in pairs]
    return json.dumps({"results": results, "usage": {"total_tokens": len(documents)}})


def embedded(body: dict, width: int = 16) -> str:
    """The answer of /embeddings."""
    data = []
    for index, text in enumerate(body["input"]):
        vector = [0.5] * width
        for word in WORD.findall(text.lower()):
            vector[zlib.crc32(word.encode()) % width] += 1
        data.append({"object": "embedding", "index": index, "embedding": vector})
    usage = {"prompt_tokens": len(data), "total_tokens": len(data)}
    return json.dumps({"data": data[::-1], "usage": usage})


class FakeLLM:
    """The server.

    Args:
        behave: one behaviour, several to be taken in turn, or a function from (call's
            number from 0, the request's body) to one.
        late: seconds that "late" takes.
        retry_after: what "busy" asks for.
    """

    def __init__(
        self,
        behave: str | Iterable[str] | Callable[[int, dict], str] = "good",
        *,
        port: int = 0,
        late: float = 0.1,
        retry_after: str = "0.05",
    ):
        if isinstance(behave, str):
            behave = (behave,)
        if not callable(behave):
            turns = tuple(behave)
            assert set(turns) <= set(BEHAVIOURS), turns
            behave = lambda number, body: turns[number % len(turns)]  # noqa: E731
        self.behave, self.late, self.retry_after = behave, late, retry_after
        self.calls: list[dict] = []
        self.keys: set[str | None] = set()
        self.at_once = self.most_at_once = 0
        self._lock, self._over = threading.Lock(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> FakeLLM:
        threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def wait(self) -> None:
        self._over.wait()


def _handler(llm: FakeLLM):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            length = int(self.headers.get("content-length", 0))
            body = json.loads(self.rfile.read(length))
            with llm._lock:
                number = len(llm.calls)
                llm.calls.append(body)
                llm.keys.add(self.headers.get("authorization"))
                llm.at_once += 1
                llm.most_at_once = max(llm.most_at_once, llm.at_once)
            try:
                self._behave(llm.behave(number, body), body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                with llm._lock:
                    llm.at_once -= 1

        def _behave(self, how: str, body: dict) -> None:
            if "messages" not in body:
                good = scored(body) if self.path.endswith("/rerank") else embedded(body)
                if how == "good":
                    self._send(200, good)
                    return
                body = {**body, "messages": []}
            judges = judged(body["messages"]) if body["messages"] else None
            if judges:
                good = max(judges, key=lambda word: judges[word])
                if body.get("logprobs") and how == "good":
                    self._send(200, with_logprobs(body, good, judges))
                    return
            elif body["messages"]:
                good = answer(body["messages"])
            count = good.count("[")
            if how == "late":
                time.sleep(llm.late)
            said = {
                "good": good,
                "late": good,
                "prose": "These 3 passages matter in 2024: first 2, then 1, not 10.",
                "duplicates": good.replace(f"[{count}]", "[1]") + " > [99]",
                "refusal": "I cannot rank these.",
                "blank": "  ",
                "filtered": good,
            }
            refused = {
                "busy": 429, "busy_bare": 429, "error": 500, "bad_request": 400,
                "unauthorised": 401, "missing": 404,
            }  # fmt: skip
            if how in said:
                finish = "content_filter" if how == "filtered" else "stop"
                self._send(200, reply(body, said[how], finish))
            elif how in refused:
                error = {
                    "error": {"message": f"{how}: {self.headers['authorization']}"}
                }
                headers = {"Retry-After": llm.retry_after} if how == "busy" else {}
                self._send(refused[how], json.dumps(error), headers)
            elif how == "truncated":
                self._send(200, reply(body, good)[:-20])
            elif how == "no_choices":
                self._send(200, json.dumps({"choices": []}))
            elif how == "hang":
                llm._over.wait(60)
                self.close_connection = True
            elif how == "drip":
                self._head(200, 10_000)
                while not llm._over.wait(0.02):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                self.close_connection = True
            elif how == "reset":
                # The answer's head, then a reset in the middle of its body.
                self._head(200, 10_000)
                self.wfile.write(b'{"choices"')
                self.wfile.flush()
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                self.close_connection = True

        def _head(self, status: int, length: int, headers: dict | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(length))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()

        def _send(self, status: int, text: str, headers: dict | None = None) -> None:
            self._head(status, len(text.encode()), headers)
            self.wfile.write(text.encode())

    return Handler


def reply(body: dict, text: str, finish: str = "stop") -> str:
    asked = "".join(turn["content"] for turn in body["messages"])
    return json.dumps(
        {
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": finish,
                }
            ],
            "usage": {
                "prompt_tokens": len(asked) // 4,
                "completion_tokens": len(text) // 4,
            },
        }
    )


def with_logprobs(body: dict, text: str, judges: dict[str, float]) -> str:
    """A reply with the log-probabilities of its one token, half of each for " word"."""
    top = [
        {"token": token, "logprob": math.log(p / 2)}
        for word, p in judges.items()
        for token in (word, f" {word.lower()}")
    ]
    found = json.loads(reply(body, text))
    step = {"token": text, "logprob": math.log(judges[text]), "top_logprobs": top}
    found["choices"][0]["logprobs"] = {"content": [step]}
    return json.dumps(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--behave", nargs="*", default=["good"])
    given = parser.parse_args()
    with FakeLLM(given.behave, port=given.port) as server:
        print(server.base_url, flush=True)
        server.wait()
