"""What a gin file may name: the recipe parts of this package, one line each.

Gin reaches anything that an imported module holds. Only names listed here can be bound
or called from a gin file; a new part of a recipe is added here. Code of the user's own
comes from a package that ``--allow_import`` names.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

PARTS: dict[str, tuple[str, ...]] = {
    "distill_jax.jobs": ("run",),
    "distill_jax.jobs.compare": ("Compare",),
    "distill_jax.jobs.distill": ("Distill",),
    "distill_jax.jobs.evaluate": ("Evaluate",),
    "distill_jax.jobs.export": ("Export",),
    "distill_jax.jobs.generator": ("TrainGenerator",),
    "distill_jax.jobs.labelling": (
        "DataJob",
        "Label",
        "Mine",
        "Synthesize",
    ),
    "distill_jax.jobs.tables": ("Tables",),
    "distill_jax.jobs.variants": ("Variants",),
    "distill_jax.losses": (
        "Listwise",
        "Mixture",
        "Term",
        "adr_mse",
        "approx_ndcg",
        "embedding_distance",
        "in_batch_contrastive",
        "in_batch_kl",
        "kl_divergence",
        "lambda_loss",
        "listmle",
        "margin_mse",
        "mean_squared_error",
        "no_contrast",
        "p_listmle",
        "pairwise_kl",
        "pointwise_cross_entropy",
        "query_likelihood",
        "ranknet",
        "similarity_matrix",
        "softmax_cross_entropy",
    ),
    "distill_jax.recipe.candidates": (
        "BM25",
        "Fused",
        "InRounds",
        "Named",
        "Reranked",
        "RunFile",
        "Search",
        "Shared",
        "WithJudged",
        "WithoutKnown",
    ),
    "distill_jax.recipe.checkpoints": ("Checkpoint",),
    "distill_jax.recipe.embedding": (
        "EmbeddingStage",
        "Encoder",
        "Endpoint",
        "VectorFile",
    ),
    "distill_jax.recipe.examples": (
        "FromQrels",
        "JudgedPairs",
        "Mixed",
        "FromTeacher",
    ),
    "distill_jax.recipe.feedback": ("Feedback",),
    "distill_jax.recipe.judges": ("Pairwise", "Pointwise", "Reranker"),
    "distill_jax.recipe.labelled": ("LabelFile",),
    "distill_jax.recipe.llm": (
        "Listwise",
        "Reader",
        "if_named",
    ),
    "distill_jax.recipe.materials": ("Mixing",),
    "distill_jax.recipe.pseudo": (
        "OwnElseMade",
        "Titles",
    ),
    "distill_jax.recipe.queries": (
        "Cropped",
        "Generated",
        "Synthetic",
        "Together",
        "Training",
        "Written",
        "written_or_cropped",
    ),
    "distill_jax.recipe.questions": (
        "AnswersFirst",
        "Answered",
        "BM25Scores",
        "Rouge2",
    ),
    "distill_jax.recipe.stage": ("Stage",),
    "distill_jax.recipe.students": ("Student",),
    "distill_jax.recipe.strengths": ("BradleyTerry",),
    "distill_jax.recipe.teachers": (
        "Ensemble",
        "LabelFile",
        "Model",
        "PairModel",
        "PairScores",
        "Scores",
    ),
    "distill_jax.recipe.training": ("Training",),
    "distill_jax.teaching.clients": ("Client", "LocalModel", "chat"),
    "distill_jax.training.optimizers": ("adafactor", "adamw"),
    "distill_jax.training.schedules": (
        "constant",
        "epochs_to_floor",
        "floor",
        "linear",
    ),
}
"""Names by the module that gives them."""


def is_part(value: Any) -> bool:
    """Whether ``value`` is one of ``PARTS``, by identity and not by name.

    A module that was not imported yet has given nothing to a gin file.
    """
    return any(value is part for part in _loaded())


def _loaded() -> Iterator[Any]:
    for module, names in PARTS.items():
        if module in sys.modules:
            yield from (getattr(sys.modules[module], name) for name in names)
