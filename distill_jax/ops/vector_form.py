"""The forms of what an encoder makes of a text."""

from __future__ import annotations

import enum


class VectorForm(enum.Enum):
    """A spec names its form as ``vectors``; rerankers and generators have None.

    ``inference.vectors`` joins and scores each form, ``retrieval.stored_forms`` keeps
    and searches it: a new student of a known form changes neither.
    """

    ONE = "one vector"
    PER_TOKEN = "a vector a token"
    SPARSE = "weights of the vocabulary"
