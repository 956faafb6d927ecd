"""Labels as a TensorFlow Datasets folder, written without TensorFlow.

``tfds.builder_from_directory(folder)`` reads it, and so does
``seqio.TfdsDataSource("NAME:1.0.0", ...)`` with the parent as the data directory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError
from distill_jax.io.files import atomic_write
from distill_jax.io.reading import write_json
from distill_jax.io.tfrecord import example, write_records
from distill_jax.labels.labels import TeacherLabels

VERSION = "1.0.0"

_CORE = "tensorflow_datasets.core.features."
_TEXT = {"pythonClassName": _CORE + "text_feature.Text", "text": {}}
_FLOAT = {
    "pythonClassName": _CORE + "tensor_feature.Tensor",
    "tensor": {"dtype": "float32", "encoding": "none", "shape": {}},
}


def to_tfds(
    labels: TeacherLabels,
    directory: str | Path,
    *,
    name: str = "teacher_labels",
    split: str = "train",
    queries: Any = None,
    collection: Any = None,
    shards: int = 1,
) -> Path:
    """Writes one split of usable lists; returns the folder ``DIRECTORY/NAME/1.0.0``.

    Features: ``query_id``, ``doc_ids`` [n], ``labels`` float32 [n] (higher is better),
    and with their texts at hand ``query`` and ``docs`` [n].

    Raises:
      UserError: the name is not one that TFDS takes, or there are fewer lists than
        shards.
    """
    usable = labels.usable()
    if not (name.isidentifier() and name == name.lower() and split.isidentifier()):
        raise UserError(
            f"{name!r}, split {split!r}: not names that TFDS takes",
            "use lower-case letters, digits and _",
        )
    if not 1 <= shards <= max(len(usable), 1):
        raise UserError(f"{shards} shards for {len(usable)} usable lists")
    folder = Path(directory) / name / VERSION
    bounds = np.linspace(0, len(usable), shards + 1).astype(int)
    total = 0
    for shard in range(shards):
        path = folder / f"{name}-{split}.tfrecord-{shard:05d}-of-{shards:05d}"
        with atomic_write(path, "wb") as file:
            part = range(bounds[shard], bounds[shard + 1])
            total += sum(
                write_records(file, _examples(usable, part, queries, collection))
            )
    write_json(folder / "features.json", _features(queries, collection))
    write_json(
        folder / "dataset_info.json",
        {
            "description": "Teacher labels for ranking distillation.",
            "fileFormat": "tfrecord",
            "moduleName": __name__,
            "name": name,
            "version": VERSION,
            "splits": [
                {
                    "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                    "name": split,
                    "numBytes": str(total),
                    "shardLengths": [str(n) for n in np.diff(bounds)],
                }
            ],
        },
    )
    write_json(folder / "provenance.json", labels.provenance)
    return folder


def _examples(
    labels: TeacherLabels, part: range, queries: Any, collection: Any
) -> Iterator[bytes]:
    training = labels.training_labels()
    for i in part:
        at = np.flatnonzero(labels.where[i])
        doc_ids = [labels.doc_ids[int(row)] for row in labels.rows[i, at]]
        features: dict[str, Any] = {
            "query_id": labels.query_ids[i],
            "doc_ids": doc_ids,
            "labels": training[i, at],
        }
        if queries is not None:
            features["query"] = queries.texts[queries.row(labels.query_ids[i])]
        if collection is not None:
            features["docs"] = [
                collection.full_text(int(row)) for row in collection.rows(doc_ids)
            ]
        yield example(features)


def _features(queries: Any, collection: Any) -> dict[str, Any]:
    features = {
        "query_id": _TEXT,
        "doc_ids": _sequence(_TEXT),
        "labels": _sequence(_FLOAT),
    }
    if queries is not None:
        features["query"] = _TEXT
    if collection is not None:
        features["docs"] = _sequence(_TEXT)
    return {
        "pythonClassName": _CORE + "features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }


def _sequence(feature: dict[str, Any]) -> dict[str, Any]:
    return {
        "pythonClassName": _CORE + "sequence_feature.Sequence",
        "sequence": {"feature": feature, "length": "-1"},
    }
