"""Documents as people have them: folders of pages, and tables of any columns."""

from __future__ import annotations

import csv
import gzip
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from distill_jax.collections.files import MOST_WORDS, passages
from distill_jax.collections.schemes import load_docs
from distill_jax.io.errors import UserError

ROWS = [
    {"sku": "a1", "name": "Cable", "body": "A cable, red,\nof two lines."},
    {"sku": "a2", "name": 'The "big" one', "body": "Größe: 2 m"},
]
NAMED = "#id=sku,title=name,text=body"


def write_csv(path, rows, **options):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet", "dataset", "gz"])
def test_a_table_gives_the_same_documents_in_any_form(tmp_path, form):
    path = tmp_path / f"items.{form}"
    scheme = {"tsv": "csv", "dataset": "parquet", "gz": "jsonl"}.get(form, form)
    if form in ("csv", "tsv"):
        write_csv(path, ROWS, delimiter="," if form == "csv" else "\t")
    elif form == "jsonl":
        write_jsonl(path, ROWS)
    elif form == "gz":
        path = tmp_path / "items.jsonl.gz"
        path.write_bytes(gzip.compress(b"".join(
            json.dumps(row).encode() + b"\n" for row in ROWS)))  # fmt: skip
    elif form == "parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.mkdir()
        table = pa.Table.from_pylist(ROWS)
        name = str(path / "data-00000-of-00001.arrow")
        with pa.OSFile(name, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as w:
            w.write_table(table)
    docs = load_docs(f"{scheme}:{path}{NAMED}")
    assert list(docs.ids) == ["a1", "a2"]
    assert list(docs.texts) == [row["body"] for row in ROWS]
    assert list(docs.titles) == [row["name"] for row in ROWS]


def test_columns_are_found_by_their_usual_names(tmp_path):
    write_csv(tmp_path / "a.csv", [{"Title": "T", "pid": "7", "Contents": "text"}])
    docs = load_docs(f"csv:{tmp_path}/a.csv")
    assert (docs.ids[0], docs.titles[0], docs.texts[0]) == ("7", "T", "text")


def test_rows_without_ids_are_numbered_by_their_lines(tmp_path):
    write_csv(tmp_path / "faq.csv", [{"text": "one"}, {"text": "two\nlines"}])
    assert list(load_docs(f"csv:{tmp_path}/faq.csv").ids) == ["faq-2", "faq-4"]


@pytest.mark.parametrize(
    ("text", "what", "todo"),
    [
        ("a,b\n1,2\n", "no column of texts among a, b", "#text=COLUMN"),
        ("id,text\n1,2,3\n", ":2: 3 fields, but 2 columns", "quote"),
        ("id,text,id\n1,2,3\n", ":1: a column is named twice", "rename"),
        ("id,text\n", "no documents", "check"),
        ("id,text\n1,a\n1,b\n", "3: document id '1' is already on line 2", "another"),
    ],
)
def test_a_table_that_cannot_be_read_is_named_with_its_line(tmp_path, text, what, todo):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_docs(f"csv:{path}")
    assert what in str(error.value)
    assert todo in str(error.value)


def test_a_column_that_is_not_there_names_those_that_are(tmp_path):
    write_csv(tmp_path / "a.csv", ROWS)
    with pytest.raises(UserError, match=r"no column 'bdy' \(did you mean \"body\""):
        load_docs(f"csv:{tmp_path}/a.csv#text=bdy")


def test_json_lines_of_questions_are_no_documents(tmp_path):
    write_jsonl(tmp_path / "q.jsonl", [{"question": "why?", "answers": ["so"]}])
    with pytest.raises(UserError, match="no documents"):
        load_docs(f"jsonl:{tmp_path}/q.jsonl")


def test_markdown_is_cut_at_headings_and_keeps_them_as_titles(tmp_path):
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide/setup.md").write_text(
        "# Setup\n\nFirst.\n\nSecond.\n\n## Network\n\n```\n# no heading\n\nx\n```\n"
    )
    docs = load_docs(f"files:{tmp_path}")
    assert list(docs.ids) == ["guide/setup.md#1", "guide/setup.md#2"]
    assert list(docs.titles) == ["Setup", "Setup: Network"]
    assert list(docs.texts) == ["First.\n\nSecond.", "```\n# no heading\n\nx\n```"]


def test_html_gives_its_text_without_scripts(tmp_path):
    (tmp_path / "a.html").write_text(
        "<title>Returns &amp; refunds</title><script>var x = '<p>no</p>'</script>"
        "<h1>Returns</h1><p>Within <b>30</b>\n days.<h2>How</h2><div>Write to us.</div>"
    )
    docs = load_docs(f"files:{tmp_path}")
    assert list(docs.texts) == ["Within 30 days.", "Write to us."]
    assert list(docs.titles) == [
        "Returns & refunds: Returns",
        "Returns & refunds: How",
    ]


def test_passages_hold_no_more_words_than_the_rule_allows():
    paragraphs = [(0, "word " * 70) for _ in range(5)] + [(0, "long " * 400)]
    found = [len(text.split()) for _, text in passages(paragraphs)]
    assert found == [140, 140, 70, 400]
    assert all(size <= MOST_WORDS for size in found[:-1])


def test_hidden_and_other_files_are_left_alone(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/a.txt").write_text("hidden")
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match="no text in files"):
        load_docs(f"files:{tmp_path}")
