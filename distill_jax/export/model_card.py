"""``README.md`` of an export: what it is, code that runs, and the proof.

Tests run the code of the card inside the exported folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import distill_jax
from distill_jax.evaluation.calibration import sentence
from distill_jax.export.usage import usage
from distill_jax.models.generator import GeneratorSpec
from distill_jax.models.pretrained import Pretrained, flatten
from distill_jax.models.t5 import T5Sizes
from distill_jax.models.templates import side_template
from distill_jax.ops.vector_form import VectorForm


@dataclasses.dataclass(frozen=True)
class _Card:
    """What the card of a kind of student says: title, pipeline tag, tags."""

    title: str
    task: str
    tags: tuple[str, ...]


_CARDS = {
    "reranker": _Card(
        "A reranker: query and document to a score",
        "text-ranking",
        ("reranker", "distillation"),
    ),
    "duo": _Card(
        "A pairwise reranker: which of two documents is the more relevant",
        "text-ranking",
        ("reranker", "pairwise", "distillation"),
    ),
    "dual_encoder": _Card(
        "A dual encoder: queries and documents to vectors",
        "sentence-similarity",
        ("sentence-transformers", "dense", "distillation"),
    ),
    "colbert": _Card(
        "A late-interaction encoder (ColBERT)",
        "sentence-similarity",
        ("ColBERT", "PyLate", "late-interaction", "distillation"),
    ),
    "splade": _Card(
        "A learned sparse encoder (SPLADE)",
        "feature-extraction",
        ("sentence-transformers", "sparse-encoder", "splade", "distillation"),
    ),
    "generator": _Card(
        "A query generator: document to the query that it answers",
        "text2text-generation",
        ("doc2query", "query-generation"),
    ),
}
_SAID = (
    "Distilled with distill_jax. The scores are raw: higher is more relevant, "
    "and no sigmoid is applied."
)
_SAID_OF_GENERATOR = (
    "Trained with distill_jax on documents and the queries that they were judged "
    "relevant for: it makes queries to train retrievers with (docT5query)."
)


def text(
    pretrained: Pretrained,
    format: str,
    verification: Mapping[str, Any],
    measures: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
) -> str:
    """The card in Markdown with its front matter."""
    provenance = {k: v for k, v in (provenance or {}).items() if v not in (None, "")}
    systems = _systems(measures)
    spec = pretrained.spec
    parts = [
        _front_matter(pretrained, format, systems, provenance),
        f"# {_CARDS[spec.kind].title}",
        _SAID_OF_GENERATOR if isinstance(spec, GeneratorSpec) else _SAID,
        "## Usage",
        f"```python\n{usage(pretrained, format)}```",
        "## What it reads",
        _contract(pretrained),
    ]
    if systems:
        parts += ["## Measures", _table(systems)]
    if calibration:
        parts += ["## Probabilities and a threshold", _probabilities(calibration)]
    parts += [
        "## Provenance",
        _bullets(
            {
                "started from": public(pretrained.source) or "random weights",
                **{key: public(value) for key, value in provenance.items()},
                "parameters": f"{_count(pretrained.params):,}",
                "digest of architecture, weights and vocabulary": pretrained.digest,
                "written by": f"distill_jax {distill_jax.__version__}, {format}",
            }
        ),
        "## Verification",
        _verification(verification),
    ]
    return "\n\n".join(parts) + "\n"


def public(value: Any) -> Any:
    """A name without the folders of this machine: the last part of a path.

    ``beir:/home/me/scifact`` becomes ``beir:scifact``; ``hf:a/b`` stays.
    """
    if not isinstance(value, str):
        return value
    scheme, colon, rest = value.rpartition(":") if ":" in value else ("", "", value)
    local = rest.startswith(("/", "~", "./", "../")) or Path(rest).is_dir()
    if not local or scheme in ("hf", "package"):
        return value
    return f"{scheme}{colon}{Path(rest).name}"


def _probabilities(calibration: Mapping[str, Any]) -> str:
    scale, shift = calibration["scale"], calibration["shift"]
    said = (
        "Across queries, a score is a probability of relevance by "
        f"`1 / (1 + exp(-({scale:.6g} * score + {shift:.6g})))`, fitted on "
        f"{calibration['queries']} judged queries; no order changes."
    )
    return f"{said} Threshold: {sentence(calibration)}."


def _front_matter(pretrained, format: str, systems, provenance: dict) -> str:
    spec = pretrained.spec
    library = {
        "pylate": "PyLate",
        "sentence_transformers": "sentence-transformers",
    }.get(format, "transformers")
    tags = list(_CARDS[spec.kind].tags)
    if format == "sentence_transformers" and spec.documents == 1:
        tags = ["sentence-transformers", "cross-encoder", *tags]
    losses = provenance.pop("loss", None)
    if losses:
        names = losses if isinstance(losses, (list, tuple)) else [losses]
        tags += [f"loss:{name}" for name in names]
    lines = []
    for key in ("language", "license"):
        if key in provenance:
            lines.append(f"{key}: {json.dumps(provenance.pop(key))}")
    lines += [f"library_name: {library}", f"pipeline_tag: {_CARDS[spec.kind].task}"]
    if pretrained.source.startswith("hf:"):
        lines.append(f"base_model: {json.dumps(pretrained.source[3:])}")
    collection = provenance.get("collection")
    if "datasets" in provenance:
        lines.append(f"datasets: {json.dumps(provenance.pop('datasets'))}")
    lines.append(f"tags: {json.dumps(tags)}")
    # The model's own row of the table; "generated" is a query generator's.
    own = [systems[name] for name in ("after", "generated") if name in systems]
    final = (own or list(systems.values())[-1:] or [{}])[0]
    if final:
        lines.append(f"metrics: {json.dumps([name.lower() for name in final])}")
        name = str(public(collection) or "the evaluated collection")
        results = [
            {
                "task": {"type": _CARDS[spec.kind].task},
                "dataset": {"name": name, "type": name},
                "metrics": [
                    {"type": measure.lower(), "value": round(float(value), 4)}
                    for measure, value in final.items()
                ],
            }
        ]
        index = [{"name": spec.kind, "results": results}]
        lines.append(f"model-index: {json.dumps(index)}")
    # JSON is YAML: a value with a colon or a quote cannot break the front matter.
    return "\n".join(["---", *lines, "---"])


def _contract(pretrained: Pretrained) -> str:
    spec, tokenizer = pretrained.spec, pretrained.tokenizer
    facts: dict[str, Any] = {}
    if spec.documents:
        facts["template"] = f"`{spec.template.spelled(tokenizer).text}`"
        facts["tokens at most"] = ", ".join(
            f"{name} {count}" for name, count in spec.template.lengths.items()
        )
        facts["cut"] = (
            "each field on its own; the words around them never. Libraries that cut "
            "the joined text instead score over-long documents a little differently"
        )
        head = getattr(spec, "head", "difference")
        words = getattr(spec, "words", ())
        if words:
            ids = ", ".join(f"`{w}` = {i}" for w, i in zip(words, spec.word_ids))
            facts["answer tokens, first step of the decoder"] = ids
        facts["score"] = {
            "difference": "logit of the first answer token minus the second's",
            "monot5": "log-softmax of the two answer tokens, the first's value",
            "rankt5": "logit of the answer token",
            "linear": "a linear layer on the encoder's first position",
        }.get(head, "the logit of the classification head")
        if head == "linear" and not isinstance(spec.backbone, T5Sizes):
            facts["form"] = (
                "a linear layer on [CLS] without a pooler; it is stored exactly in "
                "ElectraForSequenceClassification, as gelu(w.h) - gelu(-w.h)"
            )
    else:
        names = [("query", "queries"), ("doc", "documents")]
        if isinstance(spec, GeneratorSpec):
            names = [("doc", "documents, read"), ("query", "queries, written")]
            facts["score of a pair"] = (
                "mean log-probability of the query's tokens, its </s> included"
            )
        for side, name in names:
            template = side_template(spec, side, tokenizer)
            length = getattr(spec, f"{side}_length")
            facts[name] = f"`{template.text}`, at most {length} tokens in all"
        if spec.vectors is VectorForm.ONE:
            facts["pooling"] = spec.pooling
            facts["similarity"] = spec.similarity
            facts["unit length"] = "yes" if spec.normalise else "no"
        if spec.vectors is VectorForm.PER_TOKEN:
            facts["markers"] = ", ".join(
                f"`{tokenizer.token(i)}` = {i}"
                for i in (spec.query_marker, spec.doc_marker)
            )
            facts["query expansion"] = _expansion(spec)
            facts["document tokens left out"] = f"{len(spec.skiplist or ())} marks"
            facts["similarity"] = "MaxSim: sum over query tokens of the greatest cosine"
    facts["vocabulary"] = f"{tokenizer.vocab_size} tokens, {tokenizer.kind}"
    return _bullets(facts)


def _expansion(spec: Any) -> str:
    if not spec.expand:
        return "none"
    seen = "attended to" if spec.attend_to_expansion else "not attended to"
    return f"[MASK] up to {spec.query_length} tokens, {seen}"


def _systems(measures: Mapping[str, Any] | None) -> dict[str, Mapping[str, float]]:
    if not measures:
        return {}
    if all(isinstance(value, Mapping) for value in measures.values()):
        return dict(measures)
    return {"after": measures}


def _table(systems: Mapping[str, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(m for values in systems.values() for m in values))
    rows = [["", *names], ["---"] * (len(names) + 1)]
    for system, values in systems.items():
        cells = [f"{values[m]:.4f}" if m in values else "" for m in names]
        rows.append([system.replace("_", " "), *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _verification(result: Mapping[str, Any]) -> str:
    rows = [
        ["read by", "scores", "greatest difference", "order agreement"],
        ["---"] * 4,
    ]
    for reader in result["readers"]:
        rows.append(
            [
                reader["reader"],
                str(reader["compared"]),
                f"{reader['greatest_difference']:.1e}",
                f"{reader['order_agreement']:.2%}",
            ]
        )
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    said = (
        f"Scores of this folder against the trained model, in float32, on "
        f"{result['texts']} texts; differences up to "
        f"{result['allowed_difference']:.1e} pass."
    )
    if result["not_verified_by"]:
        said += f" Not asked: {result['not_verified_by']}."
    return f"{said}\n\n{table}"


def _bullets(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _count(params: dict) -> int:
    return sum(int(leaf.size) for leaf in flatten(params).values())
