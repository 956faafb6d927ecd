"""Whether a difference of means is significant: paired tests over queries.

    comparisons = compare_all({"before": {...}, "after": {...}}, baseline="before")
    comparisons[0].verdict()

The p-value in the verdict is the paired t-test's, corrected by Holm-Bonferroni over
all comparisons made; the randomisation test is shown with it, and the interval is the
bootstrap's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from distill_jax.io.errors import UserError

_EXACT = 14  # up to 2^14 sign patterns are enumerated
_TIE = 1e-9  # a smaller difference is rounding, not a win
_CELLS = 1 << 22  # numbers held at once while resampling


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One system against the baseline in one measure, over the same queries."""

    measure: str
    baseline: str
    system: str
    queries: int
    baseline_mean: float
    system_mean: float
    difference: float
    low: float
    high: float
    confidence: float
    p_t: float | None
    p_randomisation: float | None
    p_holm: float | None
    comparisons: int
    wins: int
    ties: int
    losses: int

    def significant(self, level: float = 0.05) -> bool:
        """Whether the corrected p-value is below the level."""
        return self.p_holm is not None and self.p_holm < level

    def verdict(self, level: float = 0.05) -> str:
        """One line for people."""
        if not self.significant(level):
            says = f"{self.system} is not shown to differ from {self.baseline}"
        elif self.difference > 0:
            says = f"{self.system} beats {self.baseline}"
        else:
            says = f"{self.system} is worse than {self.baseline}"
        return (
            f"{says}: {self.difference:+.3f} {self.measure}"
            f" [{_signless(self.low)}, {_signless(self.high)}],"
            f" {p_text(self.p_holm)} (Holm),"
            f" {self.wins} {'win' if self.wins == 1 else 'wins'} /"
            f" {self.losses} {'loss' if self.losses == 1 else 'losses'}"
            f" of {self.queries}"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def compare(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    measure: str = "",
    baseline: str = "before",
    system: str = "after",
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compares two systems by their values per query; the p-value is uncorrected.

    Raises:
      UserError: they have not the same queries, or none.
    """
    missing = before.keys() ^ after.keys()
    if missing or not before:
        raise UserError(
            f"{baseline} has {len(before)} queries and {system} {len(after)},"
            f" {len(missing)} of them in one only",
            "evaluate both on the same queries",
        )
    query_ids = sorted(before)
    a = np.array([before[query_id] for query_id in query_ids], np.float64)
    b = np.array([after[query_id] for query_id in query_ids], np.float64)
    differences = b - a
    low, high = bootstrap_interval(
        differences, confidence=confidence, resamples=resamples, seed=seed
    )
    p = t_test(differences)
    return Comparison(
        measure=measure,
        baseline=baseline,
        system=system,
        queries=len(differences),
        baseline_mean=float(a.mean()),
        system_mean=float(b.mean()),
        difference=float(differences.mean()),
        low=low,
        high=high,
        confidence=confidence,
        p_t=p,
        p_randomisation=randomisation_test(differences, resamples, seed),
        p_holm=p,
        comparisons=1,
        wins=int((differences > _TIE).sum()),
        ties=int((np.abs(differences) <= _TIE).sum()),
        losses=int((differences < -_TIE).sum()),
    )


def compare_all(
    per_query: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    baseline: str,
    measures: Sequence[str] | None = None,
    **options: Any,
) -> list[Comparison]:
    """Every system against the baseline in every measure, corrected together.

    A system under two names, such as the best round and what is kept, is tested once.

    Args:
      per_query: {system: {measure: {query id: value}}}.
      measures: the baseline's, unless given.
      options: as for ``compare``.
    """
    if baseline not in per_query:
        raise UserError(
            f"no system {baseline!r} to compare with",
            f"there are {', '.join(per_query)}",
        )
    measures = list(measures or per_query[baseline])
    systems = [name for name in per_query if name != baseline]
    # The first name of each: systems of equal values are one.
    first = {
        b: next(a for a in systems if per_query[a] == per_query[b]) for b in systems
    }
    found = {
        (measure, system): compare(
            per_query[baseline][measure],
            per_query[system][measure],
            measure=measure,
            baseline=baseline,
            system=system,
            **options,
        )
        for measure in measures
        for system in systems
        if first[system] == system and measure in per_query[system]
    }
    corrected = dict(zip(found, correct(list(found.values()))))
    return [
        replace(corrected[measure, first[system]], system=system)
        for measure in measures
        for system in systems
        if (measure, first[system]) in corrected
    ]


def correct(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Holm-Bonferroni over these; what could not be tested is not counted."""
    tested = [c.p_t for c in comparisons if c.p_t is not None]
    adjusted = iter(holm(tested))
    return [
        replace(
            c,
            p_holm=None if c.p_t is None else float(next(adjusted)),
            comparisons=len(tested),
        )
        for c in comparisons
    ]


def holm(pvalues: Iterable[float]) -> np.ndarray:
    """p-values adjusted by Holm's step-down procedure (Holm, 1979)."""
    p = np.asarray(list(pvalues), np.float64)
    order = np.argsort(p, kind="stable")
    factors = len(p) - np.arange(len(p))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted


def t_test(differences: np.ndarray) -> float | None:
    """Two-sided p of Student's paired t-test; None below two queries."""
    from scipy.stats import ttest_1samp

    if len(differences) < 2:
        return None
    if not np.ptp(differences):
        return 0.0 if differences[0] else 1.0
    with warnings.catch_warnings():
        # Of differences that are nearly equal; their p is as near to 0.
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(np.asarray(ttest_1samp(differences, 0))[1])


def randomisation_test(
    differences: np.ndarray, resamples: int = 10_000, seed: int = 0
) -> float | None:
    """Two-sided p of Fisher's test: the signs of the differences are exchangeable.

    Exact up to 14 queries that differ; beyond, ``resamples`` random sign patterns,
    with the one that was observed counted in. ``scipy.stats.permutation_test`` is the
    same test, and takes 15 times as long at 300 queries.
    """
    if len(differences) < 2:
        return None
    # Queries without a difference change no sum, whatever their sign.
    moved = differences[differences != 0]
    observed = abs(moved.sum())
    # Sums of the same numbers in another order differ by rounding.
    bar = observed - 1e-12 * np.abs(moved).sum()
    if len(moved) <= _EXACT:
        signs = np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved)) & 1
        return float((np.abs((1 - 2 * signs) @ moved) >= bar).mean())
    rng, extreme, left = np.random.default_rng(seed), 0, resamples
    while left:
        count = min(left, max(_CELLS // len(moved), 1))
        signs = rng.integers(0, 2, (count, len(moved)), np.int8)
        extreme += int((np.abs((1 - 2 * signs) @ moved) >= bar).sum())
        left -= count
    return (extreme + 1) / (resamples + 1)


def bootstrap_interval(
    values: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron, 1979)."""
    from scipy.stats import bootstrap

    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return float(values.mean()), float(values.mean())
    found = bootstrap(
        (values,),
        np.mean,
        batch=max(_CELLS // len(values), 1),
        confidence_level=confidence,
        method="percentile",
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def p_text(p: float | None) -> str:
    """A p-value as it is written: ``p = 0.003``, ``p < 0.001``, ``not tested``."""
    if p is None:
        return "not tested"
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def _signless(value: float) -> str:
    # "-0.000" is printed as "0.000".
    text = f"{value:.3f}"
    return text.lstrip("-") if float(text) == 0 else text
