"""Question sets of TensorFlow Datasets: questions and their answers, no documents.

``natural_questions_open`` and ``trivia_qa`` ask for answers, not for documents: the
collection is empty and nothing is judged. Use the questions as training queries with
a teacher, or judge a run by ``ir.answers`` (does a document hold the answer).
TensorFlow itself is not needed to read them (``array_record`` files).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from distill_jax.collections.builder import Item, clean, queries_of
from distill_jax.collections.collection import (
    NO_DOCUMENTS,
    Collection,
    Documents,
    Queries,
)
from distill_jax.collections.jsonl import answers_of, with_answers
from distill_jax.collections.qrels import Qrels
from distill_jax.io.errors import UserError, near

_SPLITS = {"dev": "validation"}


def load(
    where: str, split: str, documents: Documents
) -> tuple[Collection, Queries, Qrels]:
    """Loads the questions of one split of a set.

    Args:
        where: a name with an optional config (``trivia_qa/rc.nocontext``), or the
            folder of a prepared set.
        split: train, dev (the set's ``validation``) or test.

    Raises:
        UserError: tensorflow_datasets is not installed, an unknown set, no such split,
            a failed download, or records without questions.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UserError(
            "tfds: collections need the tensorflow_datasets library",
            "pip install 'distill_jax[seqio]'",
        ) from None
    builder = _builder(tfds, where)
    splits = builder.info.splits
    name = split if split in splits else _SPLITS.get(split, split)
    if name not in splits:
        raise UserError(
            f"tfds:{where}: no split {split!r}{near(split, splits)}",
            f"available splits: {', '.join(splits)}",
        )
    try:
        records = builder.as_data_source(split=name)
    except Exception as error:  # whatever the reader of this format raises
        raise UserError(
            f"tfds:{where}: {type(error).__name__}: {error}",
            "prepare it as array_record: tfds build --file_format=array_record",
        ) from None
    return questions(records, where, split)


def questions(
    records: Iterable[dict[str, Any]], where: str, split: str
) -> tuple[Collection, Queries, Qrels]:
    """Records with ``question`` and ``answer`` (or ``answers``) to queries."""
    answers: dict[str, list[str]] = {}

    def items() -> Iterator[Item]:
        for number, record in enumerate(records, 1):
            question = record.get("question")
            if question is None:
                raise UserError(
                    f"tfds:{where}: record {number} has no 'question', "
                    f"only {sorted(record)}",
                    "use a question set, e.g. tfds:natural_questions_open",
                )
            query_id = _string(record.get("question_id", "")) or f"{split}-{number}"
            answers.setdefault(query_id, answers_of(record) or [])
            yield clean(Item(number, query_id, "", _string(question)), source)

    source = Path(f"tfds:{where}")
    queries, notices = queries_of(source, items(), f"{where}/{split}")
    collection = Collection(
        [],
        [],
        None,
        where,
        (NO_DOCUMENTS, *notices),
    )
    return collection, with_answers(queries, answers), Qrels({})


def _builder(tfds: Any, where: str) -> Any:
    try:
        if Path(where).expanduser().is_dir():
            return tfds.builder_from_directory(str(Path(where).expanduser()))
        builder = tfds.builder(where, file_format="array_record")
        builder.download_and_prepare()
        return builder
    except Exception as error:  # registries and downloads raise all sorts
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"tfds:{where}: {reason[0]}",
            "check the name and the network, or give a prepared set's folder",
        ) from None


def _string(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
