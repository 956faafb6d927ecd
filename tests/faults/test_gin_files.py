"""A gin file from a stranger names, includes and expands to nothing foreign."""

from __future__ import annotations

import time

import pytest

from distill_jax import main

HEADER = "from __gin__ import dynamic_registration\n"
RECIPE = ("--gin_file=monot5_teacher.gin", "--gin.COLLECTION=pydocs:json")


def refused(capsys, *argv: str) -> str:
    """What is said, in two lines, with status 2, before the job is built."""
    assert main.main([*RECIPE, *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert 1 <= len(err.strip().splitlines()) <= 2, err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        # Modules that our modules import are attributes of ours.
        ("from distill_jax.io import files\nSEED = @files.os.system()\n"
         "files.os.system.command = 'touch {mark}'\n", "files.os.system"),
        ("import distill_jax.workspace.cached_step\n"
         "SEED = @distill_jax.workspace.cached_step.shutil.rmtree()\n"
         "distill_jax.workspace.cached_step.shutil.rmtree.path = '{home}'\n",
         "shutil.rmtree"),
        # A reference that is bound but not called would be called by the job.
        ("from distill_jax.io import cache\nSEED = @cache.os.getenv\n", "os.getenv"),
        ("from distill_jax.jobs import labelling\n"
         "labelling.json.loads.s = '1'\n", "json.loads"),
        ("from distill_jax.recipe import candidates\nSEED = @x/gin.singleton()\n"
         "x/gin.singleton.constructor = @candidates.BM25\n", "gin.singleton"),
        ("import antigravity\n", "antigravity"),
        ("import distill_jax_of_a_stranger\n", "distill_jax_of_a_stranger"),
    ],
)  # fmt: skip
def test_foreign_names_are_refused_before_they_are_called(capsys, tmp_path, text, told):
    (tmp_path / "home").mkdir()
    mark = tmp_path / "mark"
    evil = tmp_path / "evil.gin"
    evil.write_text(HEADER + text.format(mark=mark, home=tmp_path / "home"))
    err = refused(capsys, f"--gin_file={evil}")
    assert told in err
    assert "--allow_import=" in err
    assert not mark.exists()
    assert (tmp_path / "home").is_dir()


@pytest.mark.parametrize("job", ["5", "None", "'x'", "@candidates.BM25()"])
def test_what_is_no_job_is_refused(capsys, tmp_path, job):
    mine = tmp_path / "mine.gin"
    mine.write_text(
        f"{HEADER}from distill_jax import jobs\n"
        "from distill_jax.recipe import candidates\n"
        f"jobs.run.job = {job}\n"
    )
    assert "which is not a job" in refused(capsys, f"--gin_file={mine}", "--plan")


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.gin", "link.gin"])
def test_includes_stay_in_the_folders_of_recipes(capsys, tmp_path, name):
    (tmp_path / "secret.gin").write_text("PASSWORD = 'hunter2'\n")
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "link.gin").symlink_to(tmp_path / "secret.gin")
    (folder / "evil.gin").write_text(f"include {name!r}\n")
    err = refused(capsys, f"--gin_file={folder / 'evil.gin'}")
    assert "outside of the folders of recipes" in err
    assert "hunter2" not in err
    assert "root:" not in err


def test_a_folder_that_is_named_may_be_included_from(tmp_path, capsys):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "seed.gin").write_text("SEED = 11\n")
    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine" / "mine.gin"
    mine.write_text("include 'seed.gin'\n")
    argv = [*RECIPE, f"--gin_file={mine}", f"--gin_search_paths={tmp_path / 'parts'}"]
    assert main.build_job(main.parse_flags(argv)).seed == 11


def test_the_file_that_is_checked_is_the_file_that_is_read(capsys, tmp_path):
    """Gin looks in the working folder first, then beside the file that was given."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "top.gin").write_text("include 'deep/one.gin'\n")
    (tmp_path / "deep" / "one.gin").write_text("include 'two.gin'\n")
    (tmp_path / "deep" / "two.gin").write_text("SEED = 1\n")
    (tmp_path / "two.gin").write_text("import subprocess\n")
    err = refused(capsys, f"--gin_file={tmp_path / 'top.gin'}")
    assert "subprocess" in err


def test_a_file_that_includes_itself_is_told(capsys, tmp_path):
    (tmp_path / "round.gin").write_text("include 'about.gin'\n")
    (tmp_path / "about.gin").write_text("include 'round.gin'\n")
    err = refused(capsys, f"--gin_file={tmp_path / 'round.gin'}")
    assert "includes it in turn" in err


def test_macros_of_macros_are_counted_not_expanded(capsys, tmp_path):
    lines = [f"M{n} = (%M{n + 1}, %M{n + 1}, [%M{n + 1}])" for n in range(60)]
    bomb = tmp_path / "bomb.gin"
    bomb.write_text("\n".join([*lines, "M60 = 1", "SEED = %M0\n"]))
    began = time.perf_counter()
    err = refused(capsys, f"--gin_file={bomb}")
    assert "expands to more than 100,000 values" in err
    assert time.perf_counter() - began < 5


def test_a_macro_of_itself_ends(capsys, tmp_path):
    circle = tmp_path / "circle.gin"
    circle.write_text("ONE = %TWO\nTWO = %ONE\nSEED = %ONE\n")
    assert "circle.gin" in refused(capsys, f"--gin_file={circle}")
