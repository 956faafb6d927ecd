"""Names that stand for several collections of ``ir_datasets``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_FORUMS = (
    "android", "english", "gaming", "gis", "mathematica", "physics", "programmers",
    "stats", "tex", "unix", "webmasters", "wordpress",
)  # fmt: skip
CQADUPSTACK = tuple(f"irds:beir/cqadupstack/{forum}" for forum in _FORUMS)
_TOUCHE = ("touche-2020-task-1", "touche-2021-task-1")
_CLUEWEB12 = (
    "trec-web-2013", "trec-web-2014", "touche-2020-task-2", "touche-2021-task-2",
)  # fmt: skip
_MEDLINE = (
    "2004/trec-genomics-2004", "2004/trec-genomics-2005",
    "2017/trec-pm-2017", "2017/trec-pm-2018",
)  # fmt: skip


def _below(name: str, parts: Iterable[Any], between: str = "/") -> tuple[str, ...]:
    return tuple(f"irds:{name}{between}{part}" for part in parts)


GROUPS: Mapping[str, tuple[Any, ...]] = {
    "dl": (
        "irds:msmarco-passage/trec-dl-2019/judged",
        "irds:msmarco-passage/trec-dl-2020/judged",
    ),
    "cqadupstack": (("cqadupstack", CQADUPSTACK),),
    # BEIR's sets that anybody may download; bioasq, signal1m and trec-news come
    # from their owners, and are then beir:PATH.
    "beir": (
        "irds:beir/trec-covid", "irds:beir/nfcorpus", "irds:beir/nq",
        "irds:beir/hotpotqa", "irds:beir/fiqa", "irds:disks45/nocr/trec-robust-2004",
        "irds:beir/arguana", "irds:beir/webis-touche2020/v2",
        ("cqadupstack", CQADUPSTACK), "irds:beir/quora", "irds:beir/dbpedia-entity",
        "irds:beir/scidocs", "irds:beir/fever", "irds:beir/climate-fever",
        "irds:beir/scifact",
    ),
    # The tasks of TIREx but MS MARCO's (Fröbe et al., SIGIR 2023), a mean a corpus;
    # several corpora come from their owners alone.
    "tirex": (
        "irds:antique/test", ("argsme", _below("argsme/2020-04-01", _TOUCHE)),
        ("clueweb09", _below("clueweb09/en/trec-web", range(2009, 2013), "-")),
        ("clueweb12", _below("clueweb12", _CLUEWEB12)),
        "irds:cord19/fulltext/trec-covid", "irds:cranfield",
        ("disks45", _below("disks45/nocr", ("trec-robust-2004", "trec7", "trec8"))),
        ("gov", _below("gov/trec-web", (2002, 2003, 2004), "-")),
        ("gov2", _below("gov2/trec-tb", (2004, 2005, 2006), "-")),
        ("medline", _below("medline", _MEDLINE)),
        "irds:nfcorpus/test", "irds:vaswani", "irds:wapo/v2/trec-core-2018",
    ),
    "lotte": tuple(
        f"irds:lotte/{topic}/test/{kind}"
        for topic in ("lifestyle", "recreation", "science", "technology", "writing")
        for kind in ("search", "forum")
    ),
}  # fmt: skip
"""Names that stand for several collections; a pair is a mean over its sets."""
