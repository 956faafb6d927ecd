"""Vocabularies that are trained here: the same pieces in every process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from distill_jax.text.tokenizer import Tokenizer
from distill_jax.text.vocabulary import BERT_SPECIALS, train_wordpiece

# Many pairs of letters are equally frequent here, and nothing says which comes first.
TEXTS = [f"w{a}{b} x{b}{a}! naïve {a}-{b}" for a in "abcdefgh" for b in "ijklmnop"]
TRAIN = """
import sys
from distill_jax.text.tokenizer import Tokenizer
texts = sys.stdin.read().split(chr(10))
print(getattr(Tokenizer, sys.argv[1])(texts, 150).digest)
"""


@pytest.mark.parametrize("kind", ["train_wordpiece", "train_unigram"])
def test_training_is_the_same_in_every_process(kind):
    digests = {
        subprocess.run(
            [sys.executable, "-c", TRAIN, kind],
            input="\n".join(TEXTS),
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for _ in range(4)
    }
    assert len(digests) == 1


def test_characters_come_first_in_their_order():
    pieces = train_wordpiece(TEXTS, 150, 1000)
    assert len(pieces) == len(set(pieces)) <= 150
    rest = pieces[len(BERT_SPECIALS) :]
    alphabet = sorted({c for text in TEXTS for c in text.replace("ï", "i")} - {" "})
    assert rest[: len(alphabet)] == alphabet
    assert "##!" not in pieces
    assert "##a" in pieces


def test_every_text_is_spelt_without_unknowns():
    tokenizer = Tokenizer.train_wordpiece(TEXTS, 150)
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS)):
        assert tokenizer.unk_id not in ids
        plain = text.replace("ï", "i").replace(" ", "")
        assert tokenizer.decode(ids).replace(" ", "") == plain
