"""Flags, names and literals of the command line."""

from __future__ import annotations

import ast
import shlex
import subprocess

import pytest

from distill_jax.cli import recipes
from distill_jax.cli.flags import parse_flags
from distill_jax.io.errors import UserError
from distill_jax.io.values import Text
from distill_jax.workspace.console import duration


def test_flags_with_and_without_equals_are_the_same():
    joined = parse_flags(["--gin_file=a.gin", "--gin.SEED=3"])
    apart = parse_flags(["--gin_file", "a.gin", "--gin.SEED", "3"])
    single = parse_flags(["-gin_file=a.gin", "-gin.SEED=3"])
    assert joined == apart == single
    assert joined.bindings == (("SEED", "3"),)


def test_later_values_keep_their_sequence_and_equals_signs():
    flags = parse_flags(
        ["--gin_file=a.gin", "--gin_file=b.gin", "--gin.MESH=data=2,model=4", "--plan"]
    )
    assert flags.gin_files == ("a.gin", "b.gin")
    assert flags.plan
    assert not flags.debug
    assert flags.bindings == (("MESH", "data=2,model=4"),)


def test_search_paths_are_a_list(tmp_path):
    flags = parse_flags(["--gin_file=a.gin", f"--gin_search_paths=x,{tmp_path}"])
    (tmp_path / "a.gin").write_text("")
    assert recipes.find("a.gin", flags.search_paths) == tmp_path / "a.gin"


@pytest.mark.parametrize(
    "value", ["@candidates.BM25()", "%OTHER", "(@a.B(),)", "{'head': %HEAD}"]
)
def test_references_are_left_to_gin(value):
    assert recipes.literal(value) == value


@pytest.mark.parametrize("value", ["200", "it's", "beir:/data/x y", "", "None", "(1,"])
def test_what_else_is_typed_is_text_until_its_type_is_known(value):
    marked = ast.literal_eval(recipes.literal(value))
    assert recipes.as_text(marked) == Text(value)


def test_the_command_can_be_pasted_again():
    argv = ["--gin_file=a.gin", "--gin.MODEL_DIR=runs/of mine", "--gin.X=('a',)"]
    argv += ["--gin.Y='$HOME'", "--gin.Z=`ls`'\"", "--gin.W='a!'", "--gin.V='\\\\'"]
    line = recipes.command_line(argv)
    assert shlex.split(line) == ["python", "-m", "distill_jax.main", *argv]
    assert "\"--gin.X=('a',)\" '--gin.Y=" in line
    shell = f"set -- {line}; printf '%s\\n' \"$@\""
    shown = subprocess.run(["sh", "-c", shell], capture_output=True, text=True)
    assert shown.stdout.splitlines() == shlex.split(line)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"),
     (7620, "2 h 07 min"), (3599.7, "1 h 00 min")],
)  # fmt: skip
def test_durations_are_said_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_gin_s_errors_lose_their_inner_lines():
    error = ValueError("no such thing\n  In file x, line 3\n    A = b\n")
    told = str(recipes.explain(error, [str(recipes.directory() / "label.gin")]))
    assert told.startswith("label.gin: no such thing")
    assert told.count("\n") == 1


def test_a_user_s_error_is_not_wrapped():
    error = UserError("what", "todo")
    assert recipes.explain(error, []) is error


def test_the_shipped_folder_has_the_recipes():
    assert (recipes.directory() / "quickstart.gin").is_file()
