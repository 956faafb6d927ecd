"""Sentence splitting on the texts that break splitters."""

from __future__ import annotations

import pytest

from distill_jax.synthesis.sentences import looks_like_code, sentences, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        (
            "Dr. J. Smith of the U.S. Dept. of Energy paid $3.5 million. It was late.",
            [
                "Dr. J. Smith of the U.S. Dept. of Energy paid $3.5 million.",
                "It was late.",
            ],
        ),
        ('"Really?" he asked. She nodded.', ['"Really?" he asked.', "She nodded."]),
        (
            "See Fig. 2 and no. 7. The answer is no. We go on, e.g. tomorrow.",
            ["See Fig. 2 and no. 7.", "The answer is no.", "We go on, e.g. tomorrow."],
        ),
        ("It costs 1.5 km. of wire at 3.14 each.", None),
        (
            "Version 2.0.1 of foo.bar() is out. Try it.",
            ["Version 2.0.1 of foo.bar() is out.", "Try it."],
        ),
        (
            "1. Open the lid\n2. Close the lid\n- Wait a day. Rest.",
            ["Open the lid", "Close the lid", "Wait a day.", "Rest."],
        ),
        ("no capitals . no spaces . end", ["no capitals .", "no spaces .", "end"]),
        ("你好世界。这是第二句！最后", ["你好世界。", "这是第二句！", "最后"]),
        (
            "soft wrapped lines that go on for quite a while,\nand then stop. Next.",
            [
                "soft wrapped lines that go on for quite a while, and then stop.",
                "Next.",
            ],
        ),
        ("A heading\nThe text begins here.", ["A heading", "The text begins here."]),
        ("Wait... What? He left… Then.", ["Wait...", "What?", "He left…", "Then."]),
        ("", []),
        (" \n\t ... !", []),
    ],
)
def test_sentences(text, expected):
    found = sentences(text)
    assert found == ([text] if expected is None else expected)


def test_code_is_left_out():
    text = (
        "Call it like this:\n\n```python\nx = f(1). Not prose.\n```\n"
        ">>> import os. More\n    total = sum(x for x in y);\nThat was the code."
    )
    assert sentences(text) == ["Call it like this:", "That was the code."]
    assert looks_like_code("{'a': [1, 2], 'b': (3,)} | {}")
    assert not looks_like_code("He paid $5 (or 4 euros) to R&D.")


def test_words_of_unspaced_scripts():
    assert words("three short words") == 3
    assert words("这是一个很长的句子") == 1 + 9 // 2


def test_nothing_but_code_and_blanks_is_lost():
    text = "A first one, e.g. this. A second (see p. 3) one! And 3.5 of 4."
    assert " ".join(sentences(text)) == text
