"""Proof of an export: the same scores from the folder as from the model in memory.

Our own reader always, the target library where it is installed. Scores are compared
in float32, on texts that no library cuts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distill_jax import weights
from distill_jax.export import foreign_scorers, subprocess_scorer
from distill_jax.inference.texts import score_tuples
from distill_jax.io.errors import UserError
from distill_jax.models.pretrained import Pretrained
from distill_jax.models.templates import side_template
from distill_jax.text.tokenizer import Tokenizer

QUERIES = (
    "how do vaccines protect against infection",
    "what is the boiling point of water at high altitude",
    "symptoms of vitamin d deficiency",
    "naïve café 東京",
)
DOCS = (
    "Vaccines train the immune system to recognise a pathogen before it is met.",
    "Water boils at lower temperatures where the air pressure is lower: about 93 °C at "
    "2,000 metres.",
    "Fatigue, bone pain and muscle weakness are common when vitamin D is low.",
    "The city council voted on the new bus lanes; 7 members were in favour.",
    "Tokyo, 東京, is the capital of Japan and has many small cafés.",
)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How two sets of scores of the same pairs agree.

    Attributes:
        reader: what computed the second set.
        greatest_difference: of any two scores.
        order_agreement: the share of document pairs of a query, with scores further
            apart than the tolerance, that both order alike; 1.0 when there are none.
        compared: how many scores.
    """

    reader: str
    greatest_difference: float
    order_agreement: float
    compared: int

    def line(self) -> str:
        return (
            f"{self.reader}: greatest difference {self.greatest_difference:.2e} over "
            f"{self.compared} scores, order agreement {self.order_agreement:.2%}"
        )


def verified(
    pretrained: Pretrained,
    folder: Path,
    format: str,
    samples: tuple[Sequence[str], Sequence[str]] | None = None,
    tolerance: float = 1e-4,
    library: bool = True,
) -> dict[str, Any]:
    """Compares the folder with the model it was written from.

    Args:
        samples: real queries and documents; built-in ones when None.
        tolerance: greatest absolute difference allowed, times the greatest absolute
            score where that is above 1.
        library: whether to ask the target library too.

    Returns:
        what ``verification.json`` holds.

    Raises:
        UserError: a difference above the tolerance, or a folder that does not load.
    """
    tuples = sample_tuples(pretrained, *(samples or (QUERIES, DOCS)))
    with jax.default_matmul_precision("highest"):
        expected = score_tuples(in_float32(pretrained), tuples)
        reloaded = in_float32(weights.load(folder))
        own = score_tuples(reloaded, tuples)
    allowed = tolerance * max(1.0, float(np.abs(expected).max(initial=0.0)))
    found = [_agreement("distill_jax", expected, own, tuples, allowed)]
    skipped = None
    if library:
        scorer: Callable | None
        name, scorer = foreign_scorers.scorer(pretrained, folder, format)
        if scorer is None:
            skipped = name
        else:
            if subprocess_scorer.needed():
                theirs = subprocess_scorer.scores(
                    pretrained, Path(folder), format, tuples
                )
            else:
                with _without_bars():
                    theirs = scorer(tuples)
            theirs = np.asarray(theirs, np.float32)
            found.append(_agreement(name, expected, theirs, tuples, allowed))
    for agreement in found:
        difference = agreement.greatest_difference
        # Written so that nan fails too.
        if not difference <= allowed:
            raise UserError(
                f"the export failed its verification by {agreement.line()} (allowed "
                f"{allowed:.1e}); nothing was written",
                "report it with the model's spec; until then keep our own format",
            )
    return {
        "format": format,
        "tolerance": tolerance,
        "allowed_difference": allowed,
        "texts": "given" if samples else "built-in",
        "readers": [dataclasses.asdict(agreement) for agreement in found],
        "not_verified_by": skipped,
    }


def in_float32(pretrained: Pretrained) -> Pretrained:
    """The same model computing in float32."""
    backbone = dataclasses.replace(pretrained.spec.backbone, dtype="float32")
    spec = dataclasses.replace(pretrained.spec, backbone=backbone)
    return pretrained.replace(spec=spec)


def sample_tuples(
    pretrained: Pretrained, queries: Sequence[str], docs: Sequence[str]
) -> list[tuple[str, ...]]:
    """Every query with every doc (for a duo, with neighbours), cut to what fits whole.

    Each library truncates over-long pairs in its own way. The check compares the
    model, so texts are first cut to fit at the end of a word.
    """
    spec, tokenizer = pretrained.spec, pretrained.tokenizer
    if spec.documents:
        lengths = spec.template.lengths
        docs_most = min(most for name, most in lengths.items() if name != "query")
        most = [lengths.get("query"), docs_most]
    else:
        sides = ("query", "doc")
        most = [side_template(spec, s, tokenizer).lengths["text"] for s in sides]
    queries = [fitting(text, most[0], tokenizer) for text in queries]
    docs = [fitting(text, most[1], tokenizer) for text in docs]
    if spec.documents != 2:
        return list(itertools.product(queries, docs))
    neighbours = list(zip(docs, (*docs[1:], docs[0])))
    return [(query, *pair) for query in queries for pair in neighbours]


def fitting(text: str, most: int | None, tokenizer: Tokenizer) -> str:
    """The longest beginning of ``text``, at a word's end, of ``most`` tokens."""
    if most is None or len(tokenizer.encode(text)) <= most:
        return text
    words = text.split()
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        if len(tokenizer.encode(" ".join(words[:middle]))) <= most:
            low = middle
        else:
            high = middle - 1
    return " ".join(words[:low])


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Holds back the progress bars of transformers, which go to standard error."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _agreement(
    reader: str,
    expected: np.ndarray,
    found: np.ndarray,
    tuples: Sequence[tuple[str, ...]],
    allowed: float,
) -> Agreement:
    queries = np.unique([t[0] for t in tuples], return_inverse=True)[1]
    i, j = np.triu_indices(len(tuples), 1)
    gap = expected[i] - expected[j]
    judged = (queries[i] == queries[j]) & (np.abs(gap) > allowed)
    alike = (gap > 0) == (found[i] - found[j] > 0)
    difference = np.abs(expected - found).max(initial=0.0)
    return Agreement(
        reader=reader,
        greatest_difference=float(difference),
        order_agreement=float(alike[judged].mean()) if judged.any() else 1.0,
        compared=len(expected),
    )
