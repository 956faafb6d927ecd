"""Every recipe parses, says what it is, and explains the mistakes of its user."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from gin import config_parser

import distill_jax
from distill_jax import main
from distill_jax.cli import config, recipes
from distill_jax.cli import names as registry
from distill_jax.cli.flags import parse_flags
from distill_jax.io.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "gin_configs"
FILES = sorted(
    path
    for folder in ("", "parts/", "papers/")
    for path in FOLDER.glob(f"{folder}*.gin")
)
OVERLAYS = ("small", "laptop", "fused")
RECIPES = [
    path.relative_to(FOLDER).with_suffix("").as_posix()
    for path in FILES
    if path.stem not in OVERLAYS and path.parent.name != "parts"
]
TRAINING = [
    "rankt5_teacher",
    "monot5_teacher",
    "duot5_teacher",
    "cross_encoder_teacher",
    "twolar",
    "rank_distillm",
    "pairdistill_colbert",
    "pairdistill_dpr",
    "pairdistill_zero_shot",
    "intermediate_distillation",
    "specialize",
    "quickstart",
    "splade",
]
ASKS_LLM = ("twolar", "rank_distillm", "intermediate_distillation")
SINGLE = {
    "mine": "CHECKPOINT SPLIT TOP_K MESH",
    "label": "CHECKPOINT RUN SPLIT TOP_K MESH",
    "label_pairs": "CHECKPOINT SPLIT TOP_K MESH",
    "label_llm": "SPLIT TOP_K LLM_BASE_URL LLM_MODEL LLM_BUDGET_CALLS",
    "synthesize": "LLM_BASE_URL LLM_MODEL LLM_BUDGET_CALLS MESH",
    "query_generator": "INITIAL_CHECKPOINT TRAIN_STEPS BATCH_SIZE LEARNING_RATE "
    "CHECKPOINT_PERIOD MESH QUERY_LENGTH DOC_LENGTH",
    "evaluate": "CHECKPOINT RUN SPLIT TOP_K MESH",
    "compare": "",
    "export_hf": "CHECKPOINT EXPORT_DIR",
}
EVERYWHERE = "MODEL_DIR COLLECTION SEED"
IN_TRAINING = (
    "INITIAL_CHECKPOINT TRAIN_STEPS BATCH_SIZE LIST_SIZE LEARNING_RATE "
    "CHECKPOINT_PERIOD MESH QUERY_LENGTH DOC_LENGTH"
)
VALUES = {
    "COLLECTION": "pydocs:json",
    "MODEL_DIRS": "('runs/a', 'runs/b')",
    "CHECKPOINT": "runs/teacher",
    "LLM_BASE_URL": "http://localhost:1/v1",
}


def own_statements(path: Path) -> list:
    with open(path, encoding="utf-8") as file:
        return list(config_parser.ConfigParser(file, config.Names()))


def bound(statement) -> str | None:
    if not hasattr(statement, "arg_name"):
        return None
    parts = (statement.scope, f"{statement.selector}.{statement.arg_name or ''}")
    return "/".join(filter(None, parts))


def names(path: Path) -> dict:
    """Names of a recipe and of what it includes, with their values."""
    flags = parse_flags([f"--gin_file={path}"])
    return {
        s.selector: s.value
        for s in config.statements(path, [path.parent, FOLDER], flags)
        if hasattr(s, "arg_name") and not s.arg_name
    }


def given(recipe: str) -> list[str]:
    """Flags that set what the recipe requires."""
    required = [
        name
        for name, value in names(FOLDER / f"{recipe}.gin").items()
        if value == recipes.REQUIRED
    ]
    if Path(recipe).name in ASKS_LLM:
        required += ["LLM_BASE_URL", "LLM_MODEL"]
    return [f"--gin.{name}={VALUES.get(name, 'x')}" for name in dict.fromkeys(required)]


def build(*argv: str):
    return main.build_job(parse_flags(argv))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_no_name_is_bound_twice(path):
    """Gin lets the last one win without a word."""
    found = [name for name in map(bound, own_statements(path)) if name]
    assert found, "an empty recipe"
    assert len(found) == len(set(found)), [n for n in found if found.count(n) > 1]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_header_says_what_it_needs_and_costs(recipe):
    lines = (FOLDER / f"{recipe}.gin").read_text(encoding="utf-8").splitlines()
    header = lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")]
    text = "\n".join(header)
    assert 20 < len(header[0]) <= 104
    assert header[0].endswith((".", "!"))
    assert re.search(r"^# Needs: ", text, re.M)
    costs = re.search(r"^# Costs: (.*?)(?=^# ?[A-Z]\w+: |^#$)", text, re.M | re.S)
    assert costs
    # How long it takes depends on the machine: --plan knows which.
    assert not re.search(r"\b(seconds?|minutes?|hours?|days?)\b", costs[1])
    assert f"#   python -m distill_jax.main --gin_file={recipe}.gin" in text


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_header_s_commands_name_what_exists(recipe):
    text = (FOLDER / f"{recipe}.gin").read_text(encoding="utf-8")
    header = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    files = re.findall(r"--gin_file=(\S+)", header)
    assert all((FOLDER / file).is_file() for file in files)
    own = names(FOLDER / f"{recipe}.gin")
    commands = re.split(r"python -m distill_jax.main|\.\.\. ", header)[1:]
    for command in commands:
        if f"--gin_file={recipe}.gin" in command or "--gin_file" not in command:
            assert set(re.findall(r"--gin\.([A-Z_]+)=", command)) <= set(own)


def test_the_public_recipes_are_there():
    assert {*TRAINING, *SINGLE} <= set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_public_names_exist_where_they_apply(recipe):
    wanted = EVERYWHERE.split()
    wanted += (
        SINGLE.get(recipe) or (IN_TRAINING if recipe in TRAINING else "")
    ).split()
    assert set(wanted) <= set(names(FOLDER / f"{recipe}.gin"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_builds_its_job(recipe):
    job = build(f"--gin_file={recipe}.gin", *given(recipe))
    assert dataclasses.is_dataclass(job)
    assert callable(job)
    assert callable(job.plan)


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r != "evaluate"])
def test_the_small_form_builds_its_job(recipe):
    argv = (f"--gin_file={recipe}.gin", "--gin_file=small.gin", *given(recipe))
    job = build(*argv)
    if recipe in TRAINING:
        assert job.collection.startswith("pydocs:")
        assert job.depth <= 12
        assert job.rounds == 1
        for stage in job.stages:
            assert stage.training.steps <= 4
            assert stage.training.stream == "arrays"


def test_bindings_reach_the_job():
    job = build(
        "--gin_file=rankt5_teacher.gin",
        "--gin.COLLECTION=beir:x/y",
        "--gin.TRAIN_STEPS=17",
        "--gin.LEARNING_RATE=3e-05",
        "--gin.MESH=data=2,model=4",
        "--gin.MODEL_DIR",
        "runs/of mine",
    )
    assert (job.collection, job.mesh) == ("beir:x/y", "data=2,model=4")
    assert job.directory == "runs/of mine"
    (stage,) = job.stages
    assert stage.training.steps == 17
    assert stage.training.learning_rate == 3e-5


def test_a_recipe_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert build("--gin_file=quickstart.gin").collection == "pydocs"


def test_a_file_of_ones_own_includes_a_shipped_one(tmp_path):
    mine = tmp_path / "mine.gin"
    mine.write_text("include 'quickstart.gin'\nSEED = 7\n")
    assert build(f"--gin_file={mine}").seed == 7


def test_parsing_says_nothing(caplog, capfd):
    build("--gin_file=quickstart.gin")
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def mistake(capsys, *argv: str) -> str:
    """What a wrong command line prints: two lines at most, status 2."""
    assert main.main(list(argv)) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in err + out
    assert out == ""
    assert 1 <= len(err.strip().splitlines()) <= 2, err
    return err


ONE = ("--gin_file=monot5_teacher.gin", "--gin.COLLECTION=pydocs:json")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (
            ("--gin_fiel=a.gin",),
            ('unknown flag --gin_fiel (did you mean "--gin_file"',),
        ),
        ((), ("--gin_file is missing", "--list")),
        (("--gin_file",), ("--gin_file has no value",)),
        (("--gin_file=quikstart.gin",), ('did you mean "quickstart.gin"', "--list")),
        (
            (*ONE, "--gin.TRAIN_STEP=3"),
            ('no name TRAIN_STEP (did you mean "TRAIN_STEPS"',),
        ),
        ((*ONE, "--gin.students.Student.knd='duo'"), ("knd",)),
        ((*ONE, "--gin.KIND=rerankr"), ('"reranker"',)),
        ((*ONE, "--gin_file=tests/none.gin"), ("tests/none.gin",)),
        (
            ("--gin_file=label_llm.gin",),
            (
                "LLM_BASE_URL, LLM_MODEL",
                "--gin.LLM_BASE_URL=... --gin.LLM_MODEL=...",
            ),
        ),
        (
            ("--gin_file=twolar.gin", "--gin.COLLECTION=pydocs:json"),
            ("no teacher: the recipe needs LLM_BASE_URL and LLM_MODEL", "LABELS"),
        ),
    ],
)
def test_mistakes_are_told_in_two_lines(capsys, argv, told):
    err = mistake(capsys, *argv)
    for part in told:
        assert part in err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import subprocess\n", ("subprocess", "--allow_import=subprocess")),
        ("from os import path\n", ("'os", "--allow_import=os")),
        ("include 'nowhere.gin'\n", ("nowhere.gin",)),
        ("SEED = = 3\n", ("mine.gin",)),
        ("distil.Distill.seed = 3\n", ("distil",)),
        ("from distill_jax.jobs import distil\nSEED = 1\n", ("distil",)),
    ],
)
def test_a_wrong_file_is_told_in_two_lines(capsys, tmp_path, text, told):
    header = "from __gin__ import dynamic_registration\n"
    mine = tmp_path / "mine.gin"
    mine.write_text(header + text)
    err = mistake(capsys, *ONE, f"--gin_file={mine}")
    for part in told:
        assert part in err


def test_a_foreign_import_runs_only_when_allowed(tmp_path, monkeypatch):
    (tmp_path / "parts_of_mine.py").write_text("def width():\n    return 5\n")
    monkeypatch.syspath_prepend(tmp_path)
    mine = tmp_path / "mine.gin"
    mine.write_text(
        "from __gin__ import dynamic_registration\nimport parts_of_mine\n"
        "SEED = @parts_of_mine.width()\n"
    )
    with pytest.raises(UserError, match="parts_of_mine"):
        build(*ONE, f"--gin_file={mine}")
    allowed = "--allow_import=parts_of_mine"
    assert build(*ONE, f"--gin_file={mine}", allowed).seed == 5


def test_debug_shows_the_traceback():
    with pytest.raises(Exception, match="knd"):
        build(*ONE, "--gin.students.Student.knd='duo'", "--debug")


def test_a_missing_collection_is_told_in_two_lines(capsys, tmp_path):
    argv = ["--gin_file=mine.gin", "--gin.COLLECTION=beir:/no/such/folder"]
    assert main.main([*argv, f"--gin.MODEL_DIR={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert "/no/such/folder" in err
    assert len(err.strip().splitlines()) <= 2


def test_the_list_has_one_line_a_recipe(capsys):
    assert main.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    assert sorted(names) == sorted([*(f"{r}.gin" for r in [*RECIPES, *OVERLAYS])])


def test_help_and_version_are_no_mistakes(capsys):
    assert main.main(["--help"]) == 0
    assert "--gin.NAME=VALUE" in capsys.readouterr().out
    assert main.main(["--version"]) == 0
    assert distill_jax.__version__ in capsys.readouterr().out


def test_show_prints_a_shipped_recipe(capsys):
    assert main.main(["--show=label.gin"]) == 0
    assert capsys.readouterr().out.strip() == (FOLDER / "label.gin").read_text().strip()


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_of_a_recipe_gives_each_name_its_value_and_meaning(recipe, capsys):
    assert main.main([f"--gin_file={recipe}.gin", "--help"]) == 0
    text = capsys.readouterr().out
    assert (FOLDER / f"{recipe}.gin").read_text().split("\n")[0].lstrip("# ") in text
    for name in names(FOLDER / f"{recipe}.gin"):
        line = next(x for x in text.splitlines() if x.startswith(f"  {name} "))
        assert "=" in line


def test_every_name_of_a_recipe_has_a_meaning_and_none_is_left_over():
    used = {name for path in FILES for name in names(path)}
    assert used == set(registry.known())


def test_a_flag_names_what_the_recipe_imports_but_does_not_use():
    """Gin alone knows a name on the command line only once a file has used it."""
    job = build(
        "--gin_file=specialize.gin",
        "--gin.COLLECTION=pydocs:json",
        "--gin.FILTERS=(@candidates.WithoutKnown(),)",
    )
    (stage,) = job.stages
    assert [type(step).__name__ for step in stage.filters] == ["WithoutKnown"]
