"""Kinds of queries that an LLM writes: prompts and examples as data files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from distill_jax.collections.collection import Collection
from distill_jax.io.errors import UserError
from distill_jax.io.files import digest
from distill_jax.io.reading import read_jsonl
from distill_jax.synthesis import seeds
from distill_jax.text import prompt_files


@dataclasses.dataclass(frozen=True)
class Kind:
    """The prompt of one kind of query.

    Attributes:
        name: part of the ids of its queries.
        system: the system message, "" for none.
        user: the user message, with ``{document}`` and, where wanted, ``{examples}``.
        example: one example, with ``{document}`` and ``{query}``.
        shots: how many examples are shown, drawn for each document.
        pool: (document, query) examples to draw from.
        max_words: longer replies are dropped.
    """

    name: str
    system: str
    user: str
    example: str = ""
    shots: int = 0
    pool: tuple[tuple[str, str], ...] = ()
    max_words: int = 30

    @property
    def digest(self) -> str:
        return digest("kind", dataclasses.asdict(self))

    def messages(
        self, document: str, doc_id: str, sample: int = 0, seed: int = 0
    ) -> list[dict[str, str]]:
        """The chat turns for a document; the same for the same id, sample and seed."""
        random = seeds.generator(seed, "shots", self.name, doc_id, sample)
        shown = random.permutation(len(self.pool))[: self.shots].tolist()
        examples = "\n\n".join(
            _fill(self.example, document=self.pool[at][0], query=self.pool[at][1])
            for at in shown
        )
        user = _fill(self.user, examples=examples, document=document)
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": user}]


def shipped() -> list[str]:
    """Names of the kinds that come with the package."""
    return prompt_files.shipped(_folder())


def load(name: str | Path) -> Kind:
    """A kind by name, or by the path of a user's own file in the same form.

    The file is JSON with ``user`` and, where wanted, ``name``, ``system``, ``example``,
    ``shots``, ``pool`` (a JSON-lines file beside it, of objects with ``document`` and
    the query under ``field``), ``field`` and ``max_words``. A ``.txt`` file is the user
    message alone, with ``{document}`` as the place of the document.

    Raises:
        UserError: no such kind (those that ship are listed), or a part is missing.
    """
    path, record = prompt_files.read_prompt(name, _folder(), "kind of query")
    return _kind(path, record)


def cut(collection: Collection, row: int, max_words: int) -> str:
    """A document as an LLM is shown it: title and text, its first words."""
    return " ".join(collection.full_text(row)[: 20 * max_words].split()[:max_words])


def _kind(path: Path, record: dict) -> Kind:
    user = record.get("user", "")
    if "{document}" not in user:
        raise UserError(
            f"{path}: the prompt has no {{document}}",
            "write {document} where the document's text goes",
        )
    shots, pool = int(record.get("shots") or 0), ()
    if shots:
        if not record.get("pool") or not record.get("field"):
            raise UserError(f"{path}: shots without a pool or a field", "name both")
        pool = _pool(path.parent / record["pool"], record["field"], shots)
    return Kind(
        name=record.get("name") or path.stem,
        system=record.get("system") or "",
        user=user,
        example=record.get("example") or "",
        shots=shots,
        pool=pool,
        max_words=int(record.get("max_words") or 30),
    )


def _pool(path: Path, field: str, shots: int) -> tuple[tuple[str, str], ...]:
    pool = []
    for number, record in read_jsonl(path):
        if not record.get("document") or not record.get(field):
            raise UserError(
                f"{path}:{number}: an example without 'document' or {field!r}"
            )
        pool.append((record["document"], record[field]))
    if len(pool) < shots:
        raise UserError(f"{path}: {len(pool)} examples for {shots} shots", "add some")
    return tuple(pool)


def _fill(text: str, **parts: str) -> str:
    # Not str.format: prompts and documents may hold braces of their own. One pass, so
    # that a document with "{examples}" in it stays as it is.
    out, rest = [], text
    while rest:
        at, name = min(
            ((rest.find("{" + name + "}"), name) for name in parts),
            key=lambda found: (found[0] < 0, found[0]),
        )
        if at < 0:
            break
        out += [rest[:at], parts[name]]
        rest = rest[at + len(name) + 2 :]
    return "".join(out) + rest


def _folder() -> Path:
    package = Path(__file__).resolve().parent.parent
    inside = package / "data" / "prompts" / "queries"
    return (
        inside if inside.is_dir() else package.parent / "data" / "prompts" / "queries"
    )
