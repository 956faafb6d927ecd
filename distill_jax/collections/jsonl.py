"""Question sets in JSON lines: questions and their answers, no documents.

One object a line: ``question`` (or ``text``), ``answers`` (a string, a list of strings,
or trivia_qa's ``{"value", "aliases"}``; ``answer`` as well), and ``_id`` (or ``id``),
without which a question is called by its file and line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill_jax.collections.builder import Item, clean, queries_of
from distill_jax.collections.collection import (
    NO_DOCUMENTS,
    Collection,
    Documents,
    Queries,
)
from distill_jax.collections.qrels import Qrels
from distill_jax.io.bad_lines import parsed_jsonl
from distill_jax.io.errors import UserError, near


def load(
    where: str, split: str, documents: Documents
) -> tuple[Collection, Queries, Qrels]:
    """Loads the questions of a file, which is itself the split.

    Raises:
        UserError: with file:line, for malformed lines, questions without text, and
            answers that are not strings.
    """
    del split
    path = Path(where).expanduser()
    answers: dict[str, list[str]] = {}
    queries, notices = queries_of(path, _items(path, answers), path.stem)
    if not len(queries):
        raise UserError(f"{path}: no questions", "check the file")
    collection = Collection([], [], None, path.stem, (NO_DOCUMENTS, *notices))
    return collection, with_answers(queries, answers), Qrels({})


def with_answers(queries: Queries, answers: Mapping[str, list[str]]) -> Queries:
    """The queries with the accepted answers of each, none for those not named."""
    accepted = [answers.get(query_id, []) for query_id in queries.ids]
    return Queries(queries.ids, queries.texts, queries.name, accepted)


def checked_answers(path: Path, line: int, record: Mapping) -> list[str] | None:
    """``answers_of`` a line.

    Raises:
        UserError: with file:line, where they are not strings.
    """
    try:
        return answers_of(record)
    except TypeError:
        raise UserError(
            f"{path}:{line}: the answers are not strings",
            'write "answers": ["one", "another"]',
        ) from None


def answers_of(record: Mapping[str, Any]) -> list[str] | None:
    """The accepted answers of a record, None where it has no such field.

    Raises:
        TypeError: they are neither strings nor numbers.
    """
    answer = record.get("answers")
    answer = record.get("answer") if answer is None else answer
    if answer is None:
        return None
    if isinstance(answer, Mapping):
        # trivia_qa: a value and its aliases; squad: a list of texts.
        aliases = answer.get("aliases", answer.get("text", []))
        if not isinstance(aliases, list | tuple) or not {"value", "text"} & set(answer):
            raise TypeError
        answer = [answer.get("value", ""), *aliases]
    if isinstance(answer, str | bytes | int | float):
        answer = [answer]
    if any(isinstance(each, str) and _LIST.fullmatch(each) for each in answer):
        raise TypeError  # a list that was written as one text
    texts = [_string(each) for each in answer]
    return list(dict.fromkeys(text for text in texts if text))


_LIST = re.compile(r"\[\s*(['\"]).*\1\s*\]", re.DOTALL)


def _items(path: Path, answers: dict[str, list[str]]) -> Iterator[Item]:
    def parse(line: int, record: dict) -> Item:
        text = record.get("question", record.get("text"))
        if not isinstance(text, str):
            raise UserError(
                f'{path}:{line}: no text under "question"{near("question", record)}',
                'each line is {"_id": ..., "question": ..., "answers": [...]}',
            )
        query_id = record.get("_id", record.get("id"))
        query_id = f"{path.stem}-{line}" if query_id is None else query_id
        if isinstance(query_id, bool) or not isinstance(query_id, str | int):
            raise UserError(
                f"{path}:{line}: the id is a {type(query_id).__name__}, not a string",
                "write it as a JSON string",
            )
        item = clean(Item(line, str(query_id), "", text), path)
        answers.setdefault(item.id, checked_answers(path, line, record) or [])
        return item

    return parsed_jsonl(path, parse)


def _string(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError
    return str(value)
