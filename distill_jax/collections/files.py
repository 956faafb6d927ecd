"""Plain documents: a folder of text, Markdown and HTML files, cut into passages.

The rule: a file is parted at its headings and blank lines; paragraphs under one heading
are joined until a passage would hold more than ``MOST_WORDS`` words; a longer paragraph
is a passage of its own. A passage's title is the file's title and the heading above it,
its id the file's path in the folder and its number, from 1: ``guide/setup.md#3``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from distill_jax.collections.builder import Item, clean, in_memory
from distill_jax.collections.collection import Collection, Documents, Queries
from distill_jax.collections.qrels import Qrels
from distill_jax.io.errors import UserError

MOST_WORDS = 180
_MARKDOWN, _HTML = (".md", ".markdown"), (".html", ".htm")
SUFFIXES = (".txt", ".rst", *_MARKDOWN, *_HTML)


def load(
    where: str, split: str, documents: Documents
) -> tuple[Collection, Queries, Qrels]:
    """Plain documents have no queries: every split is missing.

    Raises:
        UserError: always, with what to give.
    """
    raise UserError(
        f"files:{where}: plain documents have no split {split!r}",
        "give queries with --gin.TRAIN_QUERIES=queries:FILE, or use a recipe that "
        "makes them, e.g. specialize.gin",
    )


def docs(where: str) -> Collection:
    """The passages of a folder's files, in the order of their paths.

    Raises:
        UserError: no such folder, no file of a known kind in it, or one that is not
            UTF-8.
    """
    folder = Path(where).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", "give a folder of documents")
    paths = [path for path in sorted(folder.rglob("*")) if _wanted(path, folder)]
    items = [item for path in paths for item in _items(path, folder)]
    if not items:
        raise UserError(
            f"{folder}: no text in files that end in {', '.join(SUFFIXES)}",
            "give a folder of documents, or use csv:, jsonl: or parquet:",
        )
    return in_memory(folder, items, folder.resolve().name)


def _wanted(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.is_file() and not hidden and path.suffix.lower() in SUFFIXES


def _items(path: Path, folder: Path) -> Iterator[Item]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start})",
            "convert it: iconv -f LATIN1 -t UTF-8",
        ) from None
    suffix = path.suffix.lower()
    if suffix in _HTML:
        reader = _HtmlText()
        reader.feed(text)
        reader.close()
        title, blocks = reader.title.strip(), reader.blocks()
    else:
        title, blocks = "", list(_blocks(text, markdown=suffix in _MARKDOWN))
    title = title or next((text for level, text in blocks if level == 1), path.stem)
    name = path.relative_to(folder).as_posix()
    for number, (heading, passage) in enumerate(passages(blocks), start=1):
        whole = title if heading in ("", title) else f"{title}: {heading}"
        yield clean(Item(number, f"{name}#{number}", whole, passage), path)


def passages(blocks: list[tuple[int, str]]) -> Iterator[tuple[str, str]]:
    """(heading, text) of each passage.

    Args:
        blocks: (level, text) in reading order: headings from level 1, paragraphs 0.
    """
    heading, parts, words = "", [], 0
    for level, text in blocks:
        size = len(text.split())
        if parts and (level or words + size > MOST_WORDS):
            yield heading, "\n\n".join(parts)
            parts, words = [], 0
        if level:
            heading = text
        else:
            parts.append(text)
            words += size
    if parts:
        yield heading, "\n\n".join(parts)


def _blocks(text: str, markdown: bool) -> Iterator[tuple[int, str]]:
    """Paragraphs, and in Markdown headings and fenced code (as paragraphs)."""
    lines: list[str] = []
    fence = ""
    for line in [*text.splitlines(), ""]:
        mark = re.match(r"\s{0,3}(```+|~~~+)", line) if markdown else None
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        heading = re.match(r"\s{0,3}(#{1,6})\s+(.*?)\s*#*\s*$", line)
        if markdown and not fence and heading:
            yield from _paragraph(lines)
            yield len(heading[1]), heading[2]
            lines = []
        elif line.strip() or fence:
            lines.append(line.rstrip())
        else:
            yield from _paragraph(lines)
            lines = []
    yield from _paragraph(lines)


def _paragraph(lines: list[str]) -> Iterator[tuple[int, str]]:
    text = "\n".join(lines).strip()
    if text:
        yield 0, text


class _HtmlText(HTMLParser):
    """The title, headings and paragraphs of a page, without scripts and styles."""

    _SKIPPED = ("script", "style", "template", "noscript", "svg")
    _BLOCKS = (
        "p", "div", "li", "ul", "ol", "table", "tr", "section", "article", "pre",
        "blockquote", "br", "dt", "dd", "header", "footer", "main", "nav",
    )  # fmt: skip

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.title = ""
        self._found: list[tuple[int, str]] = []
        self._text: list[str] = []
        self._skipped, self._in_title = 0, False

    def blocks(self) -> list[tuple[int, str]]:
        self._end(0)
        return self._found

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in self._SKIPPED:
            self._skipped += 1
        elif tag == "title":
            self._in_title = True
        elif tag in self._BLOCKS or re.fullmatch("h[1-6]", tag):
            self._end(0)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._SKIPPED:
            self._skipped = max(0, self._skipped - 1)
        elif tag == "title":
            self._in_title = False
        elif re.fullmatch("h[1-6]", tag):
            self._end(int(tag[1]))
        elif tag in self._BLOCKS:
            self._end(0)

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._skipped:
            self._text.append(data)

    def _end(self, level: int) -> None:
        text = " ".join("".join(self._text).split())
        self._text = []
        if text:
            self._found.append((level, text))
