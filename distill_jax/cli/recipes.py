"""Recipes and flags: found, listed, overridden, and their mistakes explained."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from distill_jax.io.errors import UserError, near

REQUIRED = "%gin.REQUIRED"
_FLAGS = (
    "--gin_file", "--gin_search_paths", "--allow_import", "--gin.NAME",
    "--on-bad-line", "--bad-line-rate",
)  # fmt: skip
_SWITCHES = ("--list", "--plan", "--debug", "--deterministic", "--help")

USAGE = """\
python -m distill_jax.main --gin_file=RECIPE.gin [--gin_file=...] [--gin.NAME=VALUE ...]

  --gin_file=FILE          a recipe by its name, or a path; later files win
  --gin.NAME=VALUE         sets a name of the recipe, e.g. --gin.MODEL_DIR=runs/teacher
  --gin_search_paths=A,B   more folders to look for gin files in
  --allow_import=PACKAGE   lets a gin file import a package of yours
  --on-bad-line=skip       leaves out lines that cannot be read, and writes them to
                           MODEL_DIR/rejects.jsonl; the default, stop, names the first
  --bad-line-rate=0.01     the share of a file's lines that may be left out
  --list                   the shipped recipes, one line each
  --plan                   sizes, steps, memory and cost, without training
  --deterministic          the same bits again on a GPU too, at some cost in speed
  --debug                  a traceback where a mistake is explained in two lines

Exit status: 0 complete, 2 a mistake, 3 partial, 143 stopped by SIGTERM and saved.
On several hosts the same command runs on each, as one program, with
JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0) in
its environment. A gin file is code of this package: read what you are given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What was asked for on the command line."""

    gin_files: tuple[str, ...] = ()
    bindings: tuple[tuple[str, str], ...] = ()
    search_paths: tuple[Path, ...] = ()
    allowed_imports: tuple[str, ...] = ()
    skip_bad_lines: bool = False
    bad_line_rate: float = 0.01
    list: bool = False
    plan: bool = False
    debug: bool = False
    deterministic: bool = False


def parse_flags(argv: Sequence[str]) -> Flags:
    """Flags of ``argv`` (without the program's name); a typo names what is near.

    Raises:
        UserError: an unknown flag, a flag without its value, or no recipe at all.
    """
    files, bindings, paths = [], [], []
    imports: list[str] = []
    skip, rate = False, 0.01
    switches = dict.fromkeys(_SWITCHES, False)
    words = list(argv)
    while words:
        name, equals, value = words.pop(0).partition("=")
        name = "--" + name.lstrip("-")
        if name in switches:
            switches[name] = True
            continue
        if name not in _FLAGS and not name.startswith("--gin."):
            raise UserError(
                f"unknown flag {name}{near(name, (*_FLAGS, *_SWITCHES))}",
                "python -m distill_jax.main --help shows the flags",
            )
        if not equals:
            if not words:
                raise UserError(f"{name} has no value", f"write {name}=VALUE")
            value = words.pop(0)
        if name == "--gin_file":
            files.append(value)
        elif name == "--gin_search_paths":
            paths += [Path(part) for part in value.split(",") if part]
        elif name == "--allow_import":
            imports.append(value)
        elif name == "--on-bad-line":
            skip = _choice(name, value, ("stop", "skip")) == "skip"
        elif name == "--bad-line-rate":
            rate = _share(name, value)
        else:
            bindings.append((name.removeprefix("--gin."), value))
    if switches["--help"]:
        print(USAGE)
        raise SystemExit(0)
    if not files and not switches["--list"]:
        raise UserError(
            "no recipe: --gin_file is missing",
            "python -m distill_jax.main --list shows the recipes",
        )
    return Flags(
        gin_files=tuple(files),
        bindings=tuple(bindings),
        search_paths=tuple(paths),
        allowed_imports=tuple(imports),
        skip_bad_lines=skip,
        bad_line_rate=rate,
        list=switches["--list"],
        plan=switches["--plan"],
        debug=switches["--debug"],
        deterministic=switches["--deterministic"],
    )


def _choice(name: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise UserError(
            f"{name}={value}{near(value, choices)}", f"write {' or '.join(choices)}"
        )
    return value


def _share(name: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f"{name}={value} is no share", "write 0.05 for 5 %")
    return share


def resources(name: str) -> Path:
    """A folder that ships with the package: in the wheel, or beside it in a clone."""
    package = Path(__file__).resolve().parent.parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def directory() -> Path:
    """The shipped recipes."""
    return resources("gin_configs")


def find(name: str, roots: Sequence[Path] = ()) -> Path:
    """A gin file by path or bare name: the working folder, ``roots``, then shipped.

    Raises:
        UserError: there is none; near misses of the shipped names are given.
    """
    for root in (Path(), *roots, directory()):
        path = root / name
        if path.is_file():
            return path.resolve()
    shipped = [path.name for path in sorted(directory().glob("*.gin"))]
    raise UserError(
        f"no gin file {name!r}{near(name, shipped)}",
        "python -m distill_jax.main --list shows the shipped recipes",
    )


def listing() -> str:
    """One line a recipe: its name and the first line of its header."""
    lines = []
    for path in sorted(directory().glob("*.gin")):
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        lines.append((path.name, first.lstrip("# ").strip()))
    width = max((len(name) for name, _ in lines), default=0)
    return "\n".join(f"{name:{width}}  {what}" for name, what in lines)


def bindings(flags: Flags, parsed: Sequence) -> list[str]:
    """The command line's overrides as gin bindings; every mistake is named at once.

    Raises:
        UserError: a name that the recipe does not have, or required names unset.
    """
    macros = {}
    for statement in parsed:
        if hasattr(statement, "arg_name") and not statement.arg_name:
            name = "/".join(filter(None, (statement.scope, statement.selector)))
            macros[name] = statement.value
    lines = []
    for name, value in flags.bindings:
        if "." not in name and name not in macros:
            raise UserError(
                f"this recipe has no name {name}{near(name, macros)}",
                "its names: " + ", ".join(sorted(macros)),
            )
        macros[name] = value
        lines.append(f"{name} = {literal(value)}")
    missing = sorted(name for name, value in macros.items() if value == REQUIRED)
    if missing:
        raise UserError(
            f"the recipe needs {', '.join(missing)}",
            "add " + " ".join(f"--gin.{name}=..." for name in missing),
        )
    return lines


def literal(value: str) -> str:
    """A command-line value as gin text: Python literals stay, the rest is a string.

    References and macros (``@name()``, ``%NAME``) stay too, in tuples and lists.
    """
    if value[:1] in ("@", "%") or re.match(r"[(\[{].*[@%]\w", value):
        return value
    try:
        ast.literal_eval(value)
        return value
    except (ValueError, SyntaxError, MemoryError):
        return repr(value)


def explain(error: Exception, files: Sequence[str]) -> UserError:
    """A gin error in two lines: what and where, and what to do."""
    if isinstance(error, UserError):
        return error
    text = re.sub(r"\s+", " ", str(error)).strip()
    text = re.sub(r"In call to configurable '[^']*' \(<.*?>\)", "", text).strip()
    where = ", ".join(Path(name).name for name in files)
    return UserError(
        f"{where}: {text[:400]}",
        "check the name's spelling and its value; --debug shows the traceback",
    )


def command_line(argv: Sequence[str]) -> str:
    """The command that runs this again, as one would type it."""
    return "python -m distill_jax.main " + " ".join(map(shlex.quote, argv))
