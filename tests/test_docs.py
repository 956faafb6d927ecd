"""The documentation says what is so: links, recipes, names, code, the reference."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distill_jax.cli import names, recipes
from distill_jax.collections.collection import Collection, Queries
from distill_jax.losses import Term
from distill_jax.recipe import registry
from distill_jax.runs.run import Run
from tools import make_reference

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
OTHERS = ("README.md", "data/README.md", "AGENTS.md", "CHANGELOG.md", "CONTRIBUTING.md")
PAGES = sorted([*DOCS.rglob("*.md"), *(ROOT / name for name in OTHERS)])
PARTS = {
    f"{module.rpartition('.')[2]}.{part}"
    for module, parts in registry.PARTS.items()
    for part in parts
}
TABLES = sorted(recipes.directory().glob("papers/*.gin"))
# Placeholders for a name or a file of the reader's own.
PLACEHOLDERS = {"NAME", "X", "RECIPE.gin", "config.gin"}


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def texts(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_there_is_a_page_for_each_paper_and_the_navigation_has_every_page():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        assert str(page.relative_to(DOCS)) in navigation
    for paper in recipes.directory().glob("papers/*.json"):
        assert (DOCS / f"recipes/{paper.stem}.md").is_file()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_relative_links_resolve(page):
    prose = re.sub(r"```.*?```", "", texts(page), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        if anchor:
            assert anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """The anchors that Markdown gives to headings."""
    headings = re.findall(r"^#+ +(.+)$", texts(page), flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in headings)
    return {re.sub(r"[\s-]+", "-", heading).strip("-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_recipe_that_a_page_names_ships_or_stands_on_the_page(page):
    shipped = {path.name for path in recipes.directory().glob("*.gin")}
    shipped |= {f"papers/{path.name}" for path in TABLES}
    text = texts(page)
    own = set(re.findall(r'title="(my_\w+\.gin)"', text))
    named = re.findall(r"--(?:gin_file|show)=([\w./-]+)", text)
    named += re.findall(r"`([a-z_0-9]+\.gin)`", text)
    assert set(named) <= shipped | own | PLACEHOLDERS


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_name_that_a_page_sets_is_a_name_of_recipes(page):
    set_by_flag = re.findall(r"--gin\.([A-Za-z_][\w.]*)=", texts(page))
    for name in set_by_flag:
        if "." in name:
            part, _, field = name.rpartition(".")
            assert part in PARTS, name
            assert field in fields_of(part), name
        else:
            assert name in names.known() or name in PLACEHOLDERS, name


def fields_of(part: str) -> set[str]:
    """The arguments of a recipe's part, read from its source."""
    for module, parts in registry.PARTS.items():
        room, _, name = part.rpartition(".")
        if module.rpartition(".")[2] == room and name in parts:
            source = ROOT / f"{module.replace('.', '/')}.py"
            tree = ast.parse(source.read_text(encoding="utf-8"))
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and node.name == name:
                    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
                    return {ast.unparse(field.target) for field in fields}
    return set()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_python_on_a_page_compiles_and_names_what_is_public(page):
    import distill_jax

    for block in re.findall(r"```python[^\n]*\n(.*?)```", texts(page), re.DOTALL):
        compile(block, str(page), "exec")
        for name in re.findall(r"\bdistill_jax\.(\w+)", block):
            assert name in dir(distill_jax), name
        for name in re.findall(r"\bdistill_jax\.losses\.(\w+)", block):
            assert name in distill_jax.losses.__all__, name
        for name in re.findall(r"\bdistill_jax\.retrieval\.(\w+)", block):
            assert name in distill_jax.retrieval.__all__, name


@pytest.mark.parametrize(
    "paper", sorted(recipes.directory().glob("papers/*.json")), ids=lambda p: p.stem
)
def test_a_papers_page_has_its_differences_and_its_ablations(paper):
    page = texts(DOCS / f"recipes/{paper.stem}.md")
    record = json.loads(paper.read_text(encoding="utf-8"))
    for figure in record["figures"]:
        assert all(f"`{flag}`" in page for flag in figure["flags"]), figure
    for element in record["elements"]:
        assert f"| {element['element']} |" in page
        plain = page.replace("\\", "").replace("&lt;", "<")
        assert element.get("differs", "") in plain, element


def test_the_page_of_ablations_has_each_table_and_each_row():
    page = texts(DOCS / "recipes/tables.md")
    for path in TABLES:
        row = re.search(rf"^\| `papers/{path.name}` \|.*$", page, flags=re.MULTILINE)
        assert row is not None, path.name
        named = {name.strip(" |") for name in re.split(r"[,;|] ", row[0])}
        grid = path.read_text(encoding="utf-8").partition("GRID =")[2]
        labels = re.findall(r"'([^']+)': \{", grid)
        assert labels
        for label in labels:
            if label != "small":  # the one axis of a single value
                assert label in named, label


def test_each_training_recipe_has_a_page():
    pages = "".join(texts(page) for page in (DOCS / "recipes").glob("*.md"))
    for path in recipes.directory().glob("*.gin"):
        assert f"`{path.name}`" in pages, path.name


def test_the_reference_is_made_from_the_registry():
    message = "python tools/make_reference.py"
    assert texts(DOCS / "reference.md") == make_reference.page(), message


def module(page: str, title: str) -> dict[str, Any]:
    """What a file that a page shows defines."""
    text = texts(DOCS / page)
    found = re.search(rf'title="{title}"\n(.*?)```', text, re.DOTALL)
    assert found is not None
    defined: dict[str, Any] = {"__name__": title.removesuffix(".py")}
    exec(compile(found[1], title, "exec"), defined)
    return defined


def test_the_loss_of_the_docs_is_a_mean_over_what_counts():
    loss = module("howto/own-loss.md", "my_losses.py")["squared_gap"]
    scores, labels = np.array([[1.0, 4.0, 9.0]]), np.array([[0.0, 2.0, np.nan]])
    where = np.array([[True, True, False]])
    assert float(loss(scores, labels, where=where)) == pytest.approx((1 + 4) / 2)
    Term("own", loss)  # has the signature of a loss on lists


def test_the_teacher_of_the_docs_labels_every_candidate():
    teacher = module("howto/own-teacher.md", "my_teachers.py")["WordOverlap"]()
    collection = Collection(["a", "b"], ["close the socket", "iterate over lines"])
    queries = Queries(["q"], ["Close a socket"])
    context = SimpleNamespace(
        workspace=SimpleNamespace(collection=collection), queries=queries
    )
    run = Run.from_lists(["q"], [[("b", 2.0), ("a", 1.0)]], collection.ids)
    labels = teacher(context, run)
    found = dict(labels.lists()["q"])
    assert found == {"a": pytest.approx(2 / 3), "b": 0.0}
