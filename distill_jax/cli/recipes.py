"""Recipes: found, listed, shown, overridden, and their mistakes explained."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill_jax.cli.flags import Flags
from distill_jax.io.errors import UserError, near
from distill_jax.io.values import Text

REQUIRED = "%gin.REQUIRED"
OVERLAYS = ("small.gin", "laptop.gin", "fused.gin")
"""Files that go on top of a recipe."""
# No argument of a command holds this character.
_MARK = "\0"

_GROUPS = (
    ("start here", ("quickstart.gin", "rankt5_teacher.gin")),
    (
        "teachers",
        ("cross_encoder_teacher.gin", "duot5_teacher.gin", "monot5_teacher.gin"),
    ),
    (
        "papers",
        (
            "intermediate_distillation.gin",
            "pairdistill_colbert.gin",
            "pairdistill_dpr.gin",
            "pairdistill_zero_shot.gin",
            "rank_distillm.gin",
            "specialize.gin",
            "twolar.gin",
        ),
    ),
    (
        "single jobs",
        (
            "compare.gin",
            "evaluate.gin",
            "export_hf.gin",
            "label.gin",
            "label_llm.gin",
            "label_pairs.gin",
            "mine.gin",
            "query_generator.gin",
            "synthesize.gin",
        ),
    ),
    (
        "tables of the papers",
        tuple(
            f"papers/{name}.gin"
            for name in (
                "intermediate_distillation",
                "pairdistill_colbert",
                "rank_distillm",
                "specialize",
                "twolar",
            )
        ),
    ),
    ("on top of a recipe", OVERLAYS),
)


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
    raise UserError(
        f"no gin file {name!r}{near(name, shipped())}",
        "python -m distill_jax.main --list shows the shipped recipes",
    )


def shipped() -> list[str]:
    """Names of the shipped recipes, a paper's tables in their folder."""
    found = [*directory().glob("*.gin"), *directory().glob("papers/*.gin")]
    return sorted(path.relative_to(directory()).as_posix() for path in found)


def listing() -> str:
    """One line a recipe, in groups: its name and the first line of its header."""
    lines = {name: header(directory() / name)[0] for name in shipped()}
    width = max((len(name) for name in lines), default=0)
    grouped = {name for _, names in _GROUPS for name in names}
    others = ("more recipes", tuple(name for name in lines if name not in grouped))
    found = []
    for title, names in (*_GROUPS[:-1], others, _GROUPS[-1]):
        here = [name for name in names if name in lines]
        if here:
            found += ["", title]
        found += [f"  {name:{width}}  {lines[name].lstrip('# ')}" for name in here]
    return "\n".join(found[1:])


def header(path: Path) -> list[str]:
    """The comment lines that a gin file opens with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return lines[: next((i for i, x in enumerate(lines) if not x.startswith("#")), 0)]


def bindings(flags: Flags, parsed: Sequence) -> list[str]:
    """The command line's overrides as gin bindings; every mistake is named at once.

    Raises:
        UserError: a name that the recipe does not have, or required names unset.
    """
    macros = names_of(parsed)
    lines = []
    for name, value in flags.bindings:
        if "." not in name and name not in macros:
            raise UserError(
                f"this recipe has no name {name}{near(name, macros)}",
                "its names: " + ", ".join(sorted(macros)),
            )
        macros[name] = value
        lines.append(f"{name} = {literal(value)}")
    given = dict(flags.bindings)
    if given.get("COLLECTIONS") and macros.get("COLLECTION") is not None:
        if "COLLECTION" in given:
            raise UserError(
                "both COLLECTION and COLLECTIONS are given",
                "give COLLECTION for one collection, COLLECTIONS for several",
            )
        macros["COLLECTION"] = None
        lines.append("COLLECTION = None")
    missing = sorted(name for name, value in macros.items() if value == REQUIRED)
    if missing:
        raise UserError(
            f"the recipe needs {', '.join(missing)}",
            "add " + " ".join(f"--gin.{name}=..." for name in missing),
        )
    return lines


def names_of(parsed: Sequence) -> dict[str, Any]:
    """Names that parsed statements set, with their values; later files win."""
    return {
        "/".join(filter(None, (statement.scope, statement.selector))): statement.value
        for statement in parsed
        if hasattr(statement, "arg_name") and not statement.arg_name
    }


def literal(value: str) -> str:
    """A command-line value as gin text: a reference, or a marked string.

    References and macros (``@name()``, ``%NAME``) are gin's, in tuples too. All else
    stays text until its parameter, and so its type, is known.
    """
    if value[:1] in ("@", "%") or re.match(r"[(\[{].*[@%]\w", value):
        return value
    return repr(_MARK + value)


def as_text(value: Any) -> Any:
    """The inverse: a value of ``literal`` as ``Text``, any other as it is."""
    if isinstance(value, str) and value.startswith(_MARK):
        return Text(value.removeprefix(_MARK))
    return value


def explain(error: Exception, files: Sequence[str]) -> UserError:
    """A gin error in two lines: what and where, and what to do."""
    if isinstance(error, UserError):
        return error
    text = re.sub(r"\s+", " ", str(error).replace(repr(_MARK)[1:-1], "")).strip()
    text = re.sub(r"In call to configurable '[^']*' \(<.*?>\)", "", text).strip()
    where = ", ".join(Path(name).name for name in files)
    return UserError(
        f"{where}: {text[:400]}",
        "check the name's spelling and its value; --debug shows the traceback",
    )


def command_line(argv: Sequence[str]) -> str:
    """The command that runs this again, as one would type it."""
    return "python -m distill_jax.main " + " ".join(map(_shell_word, argv))


def _shell_word(word: str) -> str:
    """The word in double quotes where single ones would have to be broken off."""
    plain = "'" in word and not set(word) & set('"$`\\!\n')
    return f'"{word}"' if plain else shlex.quote(word)
