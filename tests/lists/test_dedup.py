"""Near-duplicates: the rule of Tamber et al. 2025, against a brute-force form of it."""

from __future__ import annotations

import random

import numpy as np
import pytest

from distill_jax.lists import dedup


def test_normalise_is_that_of_the_paper(cases):
    case = cases["dedup_normalise"]
    found = [dedup.normalise(text) for text in case["inputs"]["texts"]]
    assert found == case["expected"]["normalised"]


def test_ascii_takes_a_shorter_way_to_the_same_text():
    text = "It's 3.5x \t BETTER;\n\n(than) \x0b_before_!"
    assert dedup.normalise(text) == "its x better than before"
    assert dedup.normalise(text + " é") == "its x better than before e"


def test_other_scripts_are_kept():
    assert dedup.normalise("Привет, МИР № 7!") == "привет мир no"
    assert dedup.normalise("你好，世界。42") == "你好世界"
    assert dedup.normalise("x" * 3000) == "x" * 2048


def brute_force(texts, window=9, minimum=10):
    """The rule as it is told, over lists of (text, row)."""
    normal = [dedup.normalise(text) for text in texts]
    removed = {row for row, text in enumerate(normal) if len(text) < minimum}
    found = set(removed)
    for reverse in (False, True):
        items = [
            (text[::-1] if reverse else text, -row)
            for row, text in enumerate(normal)
            if row not in removed
        ]
        items.sort(key=lambda item: (item[0].encode(), item[1]))
        for place, (text, row) in enumerate(items):
            if any(text in other for other, _ in items[place + 1 :][:window]):
                found.add(-row)
    return sorted(found)


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_brute_force(seed):
    rng = random.Random(seed)
    words = ["alpha", "beta", "gamma", "delta", "naïve", "Ω", "fin"]
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(150)]
    found = dedup.near_duplicates(texts)
    assert found.rows.tolist() == brute_force(texts)
    for row, holder in zip(found.rows, found.inside):
        if holder != dedup.TOO_SHORT:
            assert dedup.normalise(texts[row]) in dedup.normalise(texts[holder])
    # Whatever was removed for another is still inside something that stays.
    kept = [dedup.normalise(texts[row]) for row in found.kept(len(texts))]
    for row in found.rows[found.inside >= 0]:
        assert any(dedup.normalise(texts[row]) in text for text in kept)


def test_the_first_of_equal_texts_stays():
    texts = ["A sentence, about cats.", "Other words entirely", "a sentence about CATS"]
    found = dedup.near_duplicates(texts)
    assert found.rows.tolist() == [2]
    assert found.inside.tolist() == [0]
    assert found.kept(3).tolist() == [0, 1]


def test_reasons_are_counted_and_written(tmp_path):
    texts = ["the quick brown fox", "", "12 34", "quick brown fox", "the quick brown"]
    found = dedup.near_duplicates(texts)
    assert found.rows.tolist() == [1, 2, 3, 4]
    found.write(tmp_path / "removed.tsv", list("abcde"))
    assert (tmp_path / "removed.tsv").read_text() == "b\t\nc\t\nd\ta\ne\ta\n"


def test_nothing_at_all():
    assert len(dedup.near_duplicates([])) == 0
    assert len(dedup.near_duplicates(["one lonely document"])) == 0
    assert dedup.near_duplicates(["one lonely document"]).kept(1).dtype == np.int64
