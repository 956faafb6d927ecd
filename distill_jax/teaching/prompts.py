"""Prompts over lists of passages: files with places for the query and the passages.

A prompt is JSON in ``data/prompts/listwise``, or a user's own file in the same form:
``user`` with ``{query}`` and ``{documents}`` (also ``{count}``, ``{example}``) and,
where wanted, ``name``, ``system``, ``document`` (how one passage is written, with
``{number}`` and ``{text}``), and ``turns`` for the form with one passage a turn. A
``.txt`` file is the user message alone.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_jax.collections.collection import Collection
from distill_jax.io.errors import UserError
from distill_jax.io.files import digest
from distill_jax.text import prompt_files

Turn = dict[str, str]

_TURNS = ("opening", "ready", "document", "received", "ask")
_DOCUMENT = "[{number}] {text}"
# What a passage may not say in our notation: identifiers in any kind of bracket, a chat
# template's own marks, a thought or its end.
_BRACKETED = re.compile(r"[\[［【〔﹇⟦]([^\[\]［］【】〔〕﹇﹈⟦⟧]*+)[\]］】〕﹈⟧]")
_IDENTIFIERS = re.compile(
    r"\A(?:(?:doc|document|passage)\s?)?#?[\s,;>]*+\d[\d\s,;>]*+", re.IGNORECASE
)
_MARKS = re.compile(
    r"<(?=\s*+(?:/\s*+)?(?:\||im_|s>|system|user|assistant|document|start_of|end_of"
    r"|channel|unused|[\w-]{0,32}:?(?:think|thought|reason|reflection|analysis)))"
    r"|◁(?=/?think)",
    re.IGNORECASE,
)
_INST = re.compile(r"[\[［](\s*+(?:/\s*+)?(?:INST|THINK)\s*+)[\]］]", re.I)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """How an LLM is shown a query with its passages.

    Attributes:
        name: for provenance.
        system: the system message, "" for none.
        user: of the single-turn form.
        document: one passage.
        turns: opening, ready, document, received and ask of the multi-turn form; empty
            where there is none.
    """

    name: str
    system: str
    user: str
    document: str = _DOCUMENT
    turns: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def digest(self) -> str:
        return digest("prompt", dataclasses.asdict(self))

    def messages(
        self,
        query: str,
        documents: Sequence[str],
        *,
        multi_turn: bool = False,
        example: str = "",
    ) -> list[Turn]:
        """Chat turns for a query and its passages, which are numbered from 1.

        Args:
            query, documents: as ``plain`` leaves them.
            example: what an answer looks like.
        """
        parts = {"query": query, "count": str(len(documents)), "example": example}
        system = [_turn("system", self.system)] if self.system else []
        if not multi_turn:
            shown = "\n\n".join(
                _fill(self.document, number=str(number), text=text)
                for number, text in enumerate(documents, 1)
            )
            user = _fill(self.user, documents=shown, **parts)
            return [*system, _turn("user", user)]
        said = self.turns
        turns = [
            *system,
            _turn("user", _fill(said["opening"], **parts)),
            _turn("assistant", _fill(said["ready"], **parts)),
        ]
        for number, text in enumerate(documents, 1):
            own = {"number": str(number), "text": text}
            turns.append(_turn("user", _fill(said["document"], **own)))
            turns.append(
                _turn("assistant", _fill(said["received"], number=str(number)))
            )
        return [*turns, _turn("user", _fill(said["ask"], **parts))]


def shipped() -> list[str]:
    """Names of the prompts that come with the package."""
    return prompt_files.shipped(_folder())


def load(name: str | Path, *, multi_turn: bool = False) -> Prompt:
    """A prompt by name, or by the path of a user's own file.

    Raises:
        UserError: no such prompt (those that ship are listed), or a part is missing.
    """
    path, record = prompt_files.read_prompt(name, _folder(), "prompt")
    return _prompt(path, record, multi_turn)


def plain(text: str, words: int) -> str:
    """A text as an LLM is shown it: one line, its first words, no marks of ours.

    ``[3]`` becomes ``(3)``, and what chat templates use as marks loses its ``<``, so
    that a passage can neither number itself nor end its turn.
    """
    text = " ".join(text[: 20 * words].split()[:words])
    text = _BRACKETED.sub(_unbracketed, text)
    return _INST.sub(r"(\1)", _MARKS.sub("‹", text))


def _unbracketed(found: re.Match) -> str:
    inside = unicodedata.normalize("NFKC", found[1]).strip()
    return f"({found[1]})" if _IDENTIFIERS.fullmatch(inside) else found[0]


def passages(collection: Collection, rows: Sequence[int], words: int) -> list[str]:
    """Titles and texts of documents, each cut to a budget of words."""
    return [plain(collection.full_text(int(row)), words) for row in rows]


def _prompt(path: Path, record: Any, multi_turn: bool) -> Prompt:
    if not isinstance(record, dict):
        raise UserError(f"{path}: not a JSON object", 'write {"user": "..."}')
    turns = record.get("turns") or {}
    if multi_turn:
        missing = [name for name in _TURNS if not turns.get(name)]
        if missing:
            raise UserError(
                f"{path}: the prompt has no turns.{missing[0]}",
                f"several turns need {', '.join(_TURNS)}; or use multi_turn=False",
            )
    document = str(record.get("document") or _DOCUMENT)
    needed: dict[str, tuple[str, ...]] = {"document": (document, "{text}")}
    if multi_turn:
        asked = f"{turns['opening']} {turns['ask']}"
        needed = {
            "turns.opening or turns.ask": (asked, "{query}"),
            "turns.document": (turns["document"], "{number}", "{text}"),
        }
    else:
        needed["user"] = (record.get("user") or "", "{query}", "{documents}")
    for part, (text, *places) in needed.items():
        for place in places:
            if place not in text:
                raise UserError(
                    f"{path}: {part} has no {place}", f"write {place} where it goes"
                )
    return Prompt(
        name=record.get("name") or path.stem,
        system=record.get("system") or "",
        user=record.get("user") or "",
        document=document,
        turns={name: str(turns[name]) for name in _TURNS if turns.get(name)},
    )


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def _fill(text: str, /, **parts: str) -> str:
    # One pass, and not str.format: passages may hold braces of their own.
    names = "|".join(parts)
    return re.sub(rf"{{({names})}}", lambda found: parts[found.group(1)], text)


def _folder() -> Path:
    package = Path(__file__).resolve().parent.parent
    inside = package / "data" / "prompts" / "listwise"
    outside = package.parent / "data" / "prompts" / "listwise"
    return inside if inside.is_dir() else outside
