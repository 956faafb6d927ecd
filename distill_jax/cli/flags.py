"""The command line: flags of the program, and bindings of the recipe."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from distill_jax.io.errors import UserError, near

_COMMAND = "python -m distill_jax.main"

USAGE = """\
distill_jax --gin_file=RECIPE.gin [--gin_file=...] [--gin.NAME=VALUE ...]
(the same as python -m distill_jax.main ...)

  --gin_file=FILE          a recipe by its name, or a path; later files win
  --gin.NAME=VALUE         sets a name of the recipe, e.g. --gin.MODEL_DIR=runs/teacher
  --gin_file=FILE --help   what a recipe does, its names, their meanings and values
  --plan                   sizes, steps, memory and cost, without training
  --plan --on=v5e:2x4      plans for a TPU slice or GPUs (h100:8) that are not here
  --list                   the shipped recipes, one line each
  --show=RECIPE.gin        prints a shipped recipe
  --version                the version of this package
  doctor                   checks packages, devices, folders and network of this machine

  --gin_search_paths=A,B   more folders to look for gin files in
  --allow_import=PACKAGE   lets a gin file import a package of yours
  --on-bad-line=skip       leaves out lines that cannot be read, and writes them to
                           MODEL_DIR/rejects.jsonl; the default, stop, names the first
  --bad-line-rate=0.01     the largest share of a file's lines that may be left out
  --deterministic          the same bits again on a GPU too, at some cost in speed
  --debug                  a traceback where a mistake is explained in two lines

Exit status: 0 complete, 2 a mistake, 3 partial, 143 stopped by SIGTERM and saved.
On several hosts the same command runs on each, as one program, with
JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0) in
its environment. A gin file is code of this package: read what you are given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The parsed command line.

    Attributes:
        bindings: (name, value as typed) of each ``--gin.NAME=VALUE``.
        on: the machine to plan for; None for this one.
        show: a shipped recipe to print.
        doctor: check this machine.
    """

    gin_files: tuple[str, ...] = ()
    bindings: tuple[tuple[str, str], ...] = ()
    search_paths: tuple[Path, ...] = ()
    allowed_imports: tuple[str, ...] = ()
    skip_bad_lines: bool = False
    bad_line_rate: float = 0.01
    list: bool = False
    plan: bool = False
    on: str | None = None
    debug: bool = False
    deterministic: bool = False
    help: bool = False
    version: bool = False
    show: str | None = None
    doctor: bool = False


class _Parser(argparse.ArgumentParser):
    """Argparse whose mistakes are ours to word."""

    def error(self, message: str) -> NoReturn:
        match = re.match(r"argument (\S+): expected one argument", message)
        if match:
            raise UserError(f"{match[1]} has no value", f"write {match[1]}=VALUE")
        match = re.match(r"argument (\S+): invalid choice: '(.*?)' \((.*)\)", message)
        if match:
            names = re.findall(
                r"'?(\w+)'?(?:,|$)", match[3].removeprefix("choose from ")
            )
            said = f"{match[1]}={match[2]}{near(match[2], names)}"
            raise UserError(said, f"write {' or '.join(names)}")
        todo = f"{_COMMAND} --help shows the flags"
        raise UserError(f"command line: {message}", todo)


def _parser() -> _Parser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--gin_file", action="append", default=[])
    parser.add_argument("--gin_search_paths", action="append", default=[])
    parser.add_argument("--allow_import", action="append", default=[])
    parser.add_argument("--on-bad-line", choices=("stop", "skip"), default="stop")
    parser.add_argument("--bad-line-rate", type=_share, default=0.01)
    parser.add_argument("--show")
    parser.add_argument("--on")
    for name in ("list", "plan", "debug", "deterministic", "help", "version"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser


def parse_flags(argv: Sequence[str]) -> Flags:
    """Flags of ``argv`` (without the program's name); a typo names what is near.

    Raises:
        UserError: an unknown flag, a flag without its value, or no recipe at all.
    """
    parser = _parser()
    bindings, words = _bindings(argv)
    found, rest = parser.parse_known_args(words)
    known = [name for action in parser._actions for name in action.option_strings]
    commands = [word for word in rest if word == "doctor"]
    for word in rest:
        if word != "doctor":
            _refuse(word, known)
    standing = found.list or found.help or found.version or found.show or commands
    if not found.gin_file and not standing:
        raise UserError(
            "no recipe: --gin_file is missing",
            f"{_COMMAND} --list shows the recipes",
        )
    if found.on is not None and not found.plan:
        raise UserError("--on says what to plan for, and there is no --plan", "add it")
    paths = ",".join(found.gin_search_paths).split(",")
    return Flags(
        gin_files=tuple(found.gin_file),
        bindings=tuple(bindings),
        search_paths=tuple(Path(path) for path in paths if path),
        allowed_imports=tuple(found.allow_import),
        skip_bad_lines=found.on_bad_line == "skip",
        bad_line_rate=found.bad_line_rate,
        list=found.list,
        plan=found.plan,
        on=found.on,
        debug=found.debug,
        deterministic=found.deterministic,
        help=found.help,
        version=found.version,
        show=found.show,
        doctor=bool(commands),
    )


def _bindings(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """The recipe's bindings, and the other words; -flag is read as --flag."""
    bindings, words = [], []
    left = list(argv)
    while left:
        word = left.pop(0)
        if word.startswith("-"):
            word = "--" + word.lstrip("-")
        if not word.startswith("--gin."):
            words.append(word)
            continue
        name, equals, value = word.partition("=")
        if not equals:
            if not left:
                raise UserError(f"{name} has no value", f"write {name}=VALUE")
            value = left.pop(0)
        bindings.append((name.removeprefix("--gin."), value))
    return bindings, words


def _refuse(word: str, known: Sequence[str]) -> NoReturn:
    """Raises an error that shows the correct form of a word that is not a flag."""
    name, equals, value = word.lstrip("-").partition("=")
    if word.endswith(".gin"):
        todo = f"write --gin_file={word.lstrip('-')}"
    elif equals and name.isupper():
        todo = f"write --gin.{name}={value}"
    else:
        todo = f"{_COMMAND} --help shows the flags"
    flag = word.partition("=")[0]
    raise UserError(f"unknown flag {flag}{near(flag, known)}", todo)


def _share(value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 1")
    return share
