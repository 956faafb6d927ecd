"""The key is in the header of a request, and nowhere else, whatever happens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill_jax.main import main
from tests.teaching.fake_llm import FakeLLM

KEY = "sk-5ecret0fTheUser-0123456789"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    (folder / "qrels").mkdir()
    words = ["river", "stone", "bridge", "water", "cloud", "paper", "light", "engine"]
    docs = [{"_id": f"d{n}", "text": " ".join(words[n:])} for n in range(7)]
    asked = [
        {"_id": f"q{n}", "text": words[n], "answers": [words[n]]} for n in range(4)
    ]
    for name, records in (("corpus", docs), ("queries", asked)):
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    judged = "".join(f"q{n}\td{n}\t1\n" for n in range(4))
    for split in ("train", "test"):
        head = "query-id\tcorpus-id\tscore\n"
        part = judged.splitlines(keepends=True)[split == "test" :: 2]
        (folder / f"qrels/{split}.tsv").write_text(head + "".join(part))
    with open(folder / "a.trec", "w") as out:
        out.writelines(f"q{n} Q0 d{n} 1 1.0 x\n" for n in range(4))
    return folder


@pytest.mark.parametrize(
    ("recipe", "behave", "status"),
    [
        ("label_llm", "good", 0),
        ("label_llm", "unauthorised", 2),  # the fake server repeats the key it was sent
        ("label_llm", "bad_request", 2),
        ("evaluate", "good", 0),
        ("evaluate", "missing", 2),
    ],
)
def test_no_output_holds_the_key(
    folder, tmp_path, monkeypatch, capfd, caplog, recipe, behave, status
):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level("DEBUG")
    with FakeLLM(behave) as server:
        flags = {
            "COLLECTION": f"beir:{folder}",
            "MODEL_DIR": tmp_path / "out",
            "LLM_BASE_URL": server.base_url,
            "LLM_MODEL": "fake",
        }
        if recipe == "evaluate":
            flags["RUN"] = folder / "a.trec"
        argv = [f"--gin.{name}={value}" for name, value in flags.items()]
        assert main([f"--gin_file={recipe}.gin", *argv]) == status
        assert main([f"--gin_file={recipe}.gin", *argv, "--plan"]) == 0
        assert server.keys == {f"Bearer {KEY}"}
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
    said = capfd.readouterr()
    assert KEY not in said.out + said.err + caplog.text
