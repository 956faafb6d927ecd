"""Values as people type them become what an annotation says, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from distill_jax.io.errors import UserError
from distill_jax.io.paths import model_name, user_path
from distill_jax.io.values import (
    Count,
    Mismatch,
    ModelName,
    Name,
    Positive,
    Rate,
    Size,
    Text,
    UserPath,
    read,
)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("4.0", Size, 4),
        ("1e3", Size, 1000),
        ("1_000", int, 1000),
        ("0", Count, 0),
        ("1e-4", Positive, 1e-4),
        ("3", float, 3.0),
        ("false", bool, False),
        ("TRUE", bool, True),
        ("0", bool, False),
        ("None", Size | None, None),
        ("null", str | None, None),
        ("none", Literal["a"] | None, None),
        ("epoch", Size | Literal["epoch"] | None, "epoch"),
        ("250", Size | Literal["epoch"] | None, 250),
        ("2024", str, "2024"),
        ("007", str, "007"),
        ("'quoted'", str, "quoted"),
        ("5,10", tuple[int, ...], (5, 10)),
        ("(5, 10)", tuple[int, ...], (5, 10)),
        ("5", tuple[int, ...], (5,)),
        ("0,100", tuple[Count, Count], (0, 100)),
        ("nDCG@5,RR@10", tuple[str, ...], ("nDCG@5", "RR@10")),
        ('["a","b"]', tuple[str, ...], ("a", "b")),
        ("{'head': 'linear'}", dict[str, Any], {"head": "linear"}),
        ("0.05", Any, 0.05),
        ("abc", Any, "abc"),
        ("~/runs", UserPath, str(Path.home() / "runs")),
        ("hf:org/name", ModelName, "hf:org/name"),
    ],
)
def test_a_flag_s_text_is_read_by_its_type(text, kind, value):
    found = read(Text(text), kind)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Text("abc"), Size),
        (Text("1.5"), Size),
        (Text("0"), Size),
        (Text("-1"), Count),
        (Text("nan"), float),
        (Text("inf"), Positive),
        (Text("1e999"), float),
        (Text("9" * 5000), int),
        (Text("1/1000"), Positive),
        (Text("1"), Rate),
        (Text(""), Name),
        (Text(""), int),
        (Text("None"), str),
        (Text("maybe"), bool),
        (Text("2"), bool),
        (Text("lineer"), Literal["linear", "constant"]),
        (Text("5"), tuple[int, int]),
        (Text("1,2,3"), tuple[int, int]),
        (Text("5"), dict[str, Any]),
        (Text("5"), Callable[..., Any]),
        (True, int),
        (1.5, int),
        (float("nan"), float),
        (None, str),
        (3.5, str),
        (5, Mismatch),
    ],
)
def test_what_is_of_another_type_is_refused(value, kind):
    with pytest.raises(Mismatch):
        read(value, kind)


@pytest.mark.parametrize(
    "text", ["", "  ", "a\0b", "a\nb", "nosuch://bucket/x", "nosuch:///y"]
)
def test_a_path_that_is_none_is_refused(text):
    with pytest.raises(UserError):
        user_path(text)
    with pytest.raises(UserError):
        model_name(text)


@pytest.mark.parametrize("name", ["hf:", "package:", "stage: "])
def test_a_scheme_alone_names_no_model(name):
    with pytest.raises(UserError):
        model_name(name)
