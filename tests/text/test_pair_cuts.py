"""Pairs that are too long are cut as the tokenizers library cuts them."""

from __future__ import annotations

import numpy as np
import pytest

from distill_jax.io.errors import UserError
from distill_jax.text.features import longest_first
from distill_jax.text.templates import Template

tokenizers = pytest.importorskip("tokenizers")


def test_lengths_are_those_of_the_librarys_longest_first():
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    random = np.random.default_rng(0)
    for room in (1, 2, 5, 8, 13):
        made.enable_truncation(room, strategy="longest_first")
        first, second = random.integers(0, 16, (2, 200))
        kept = []
        for a, b in zip(first, second):
            types = made.encode("a " * a, "a " * b).sequence_ids
            kept.append((types.count(0), types.count(1)))
        ours = np.stack(longest_first(first, second, room), axis=1)
        np.testing.assert_array_equal(ours, kept)


def test_a_common_limit_is_for_two_fields_at_most():
    assert Template("{a} {b}", total=9).total == 9
    with pytest.raises(UserError, match="two at most"):
        Template("{a} {b} {c}", total=9)
