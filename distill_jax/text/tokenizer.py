"""One tokenizer for training and inference: ids equal to those of transformers.

``tokenizers`` (Rust) does the work; ``pipelines`` puts T5's and BERT's together.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from distill_jax.io.errors import UserError, near, understood
from distill_jax.io.files import atomic_write, digest
from distill_jax.io.reading import write_json
from distill_jax.text.pipelines import (
    EXTRA_IDS,
    SPACE,
    SPECIAL_TOKENS,
    bert_backend,
    byte_level_backend,
    deberta_backend,
    pair_frame,
    t5_backend,
)
from distill_jax.text.spiece import parse_model, read_model, with_pieces
from distill_jax.text.tokenizer_files import (
    read_backend,
    settings,
    with_added_tokens,
    with_own_normalizer,
    write_files,
)
from distill_jax.text.vocabulary import (
    train_spiece,
    train_wordpiece,
    without_surrogates,
)

ANSWER_WORDS = ("true", "false", "Yes", "No", "A", "B")
"""Words whose logits T5 rerankers read; a vocabulary made here keeps each whole."""

_FILES = ("tokenizer.json", "spiece.model", "spm.model", "vocab.txt", "vocab.json")
_CLASSES = {
    "t5": "T5Tokenizer",
    "bert": "BertTokenizer",
    "other": "PreTrainedTokenizerFast",
}


class Tokenizer:
    """Texts to ids and back. Built by ``load`` or ``train_unigram``.

    Args:
        backend: a ``tokenizers.Tokenizer``; its padding and truncation are switched
            off, lengths are templates' business.
        config: content of ``tokenizer_config.json``, kept for ``save``.
        spiece: the bytes of ``spiece.model`` where it came from one.
    """

    def __init__(
        self,
        backend: Any,
        config: dict[str, Any] | None = None,
        spiece: bytes | None = None,
    ):
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self._config = dict(config or {})
        self._spiece = spiece
        names = self._special_names()
        self.pad_id = self._id(names.get("pad"))
        self.eos_id = self._id(names.get("eos"))
        self.unk_id = self._id(names.get("unk"))
        self.cls_id = self._id(names.get("cls"))
        self.sep_id = self._id(names.get("sep"))
        self.mask_id = self._id(names.get("mask"))

    @functools.cached_property
    def frame(self) -> dict[str, tuple[int, ...]]:
        """Ids of the special tokens that templates name: cls, pair, sep, mask.

        The first three are what the tokenizer's own post-processor puts before,
        between and after texts.
        """
        with understood("the tokenizer's special tokens", "fetch its files again"):
            found = pair_frame(self._backend, self._config, self.cls_id, self.sep_id)
        mask = () if self.mask_id is None else (self.mask_id,)
        return {**found, "mask": mask, "join": ()}

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Loads a folder, or a ``tokenizer.json``, ``spiece.model`` or ``vocab.txt``.

        Raises:
            UserError: nothing there that can be read as a tokenizer.
        """
        path = Path(path)
        if path.is_dir():
            found = [path / name for name in _FILES if (path / name).is_file()]
            if not found:
                raise UserError(
                    f"{path}: no tokenizer in this folder",
                    f"it must hold one of {', '.join(_FILES)}",
                )
            path = found[0]
        if not path.is_file():
            raise UserError(f"{path}: no such file", "check the path")
        with understood(
            f"{path}: it, or a file beside it, is not understood", "fetch them again"
        ):
            return cls._read(path)

    @classmethod
    def _read(cls, path: Path) -> Tokenizer:
        config = settings(path.parent)
        spiece = None
        if path.name == "vocab.json":
            backend = byte_level_backend(path, config)
        elif path.suffix == ".json":
            beside = path.parent / "spiece.model"
            spiece = beside.read_bytes() if beside.is_file() else None
            backend = with_own_normalizer(read_backend(path), config)
        elif path.name == "spm.model":
            backend = deberta_backend(read_model(path), config)
        elif path.suffix == ".model":
            spiece = path.read_bytes()
            extra = config.get("extra_ids", EXTRA_IDS)
            backend = t5_backend(read_model(path), extra)
        elif path.name.endswith("vocab.txt"):
            backend = bert_backend(path, config)
        else:
            raise UserError(
                f"{path}: not a tokenizer file", f"give one of {', '.join(_FILES)}"
            )
        return cls(with_added_tokens(backend, config, path), config, spiece)

    @classmethod
    def train_unigram(
        cls,
        texts: Iterable[str],
        vocab_size: int = 8000,
        *,
        max_texts: int = 200_000,
        seed: int = 0,
    ) -> Tokenizer:
        """Trains a T5-shaped vocabulary on texts.

        pad 0, ``</s>`` 1, ``<unk>`` 2, then pieces, the answer words, and the 100
        ``<extra_id_*>`` last, as in T5.

        Args:
            texts: read once.
            vocab_size: pieces wanted, sentinels not counted; fewer when the texts are
                too few for that many pieces.
            max_texts: texts beyond these are not read.
            seed: of the sampling among very many texts.

        Raises:
            UserError: there is no text, or sentencepiece is not installed.
        """
        data = train_spiece(texts, vocab_size, max_texts, seed)
        known = {piece for piece, _, _ in parse_model(data).pieces}
        plain = cls(t5_backend(parse_model(data), 0))
        missing = []
        for word in ANSWER_WORDS:
            if SPACE + word not in known:
                missing.append((SPACE + word, plain._best_score(word, data) + 0.1))
        # Just above the best split: the word itself becomes one piece, and longer
        # words that begin with it are disturbed as little as can be.
        data = with_pieces(data, missing)
        made = cls(t5_backend(parse_model(data), EXTRA_IDS), spiece=data)
        for word in ANSWER_WORDS:
            made.token_id(SPACE + word)
        return made

    @classmethod
    def train_wordpiece(
        cls, texts: Iterable[str], vocab_size: int = 8000, *, max_texts: int = 200_000
    ) -> Tokenizer:
        """Trains a BERT-shaped vocabulary on texts: uncased WordPiece, [PAD] is 0."""
        pieces = train_wordpiece(texts, vocab_size, max_texts)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vocab.txt"
            path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
            return cls.load(path)

    def _best_score(self, word: str, data: bytes) -> float:
        scores = {piece: score for piece, score, _ in parse_model(data).pieces}
        tokens = self._backend.encode(word, add_special_tokens=False).tokens
        worst = min(scores.values()) - 10.0
        return sum(scores.get(token, worst) for token in tokens)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens around it.

        A special token's own spelling inside a text (``</s>``, ``[SEP]``) becomes that
        token, as in transformers. Lone surrogates count as U+FFFD.
        """
        try:
            encoded = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            clean = [without_surrogates(text) for text in texts]
            encoded = self._backend.encode_batch_fast(clean, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without special tokens around it."""
        return self.encode_batch([text])[0]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are left out."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def token(self, token_id: int) -> str | None:
        """The token of an id, None when there is none."""
        return self._backend.id_to_token(int(token_id))

    def find(self, token: str) -> int | None:
        """The id of a token exactly as the vocabulary spells it, None when absent.

        Also of tokens that no text becomes, such as BERT's ``[unused0]``.
        """
        return self._backend.token_to_id(token)

    def token_id(self, token: str) -> int:
        """The id of a token as the vocabulary spells it, e.g. ``"▁true"``.

        Raises:
            UserError: no such token, or the word's text does not become that token.
        """
        found = self._backend.token_to_id(token)
        if found is None:
            raise UserError(
                f"the vocabulary ({self.vocab_size} tokens) has no token {token!r}"
                + near(token, self._answer_like()),
                "use the tokenizer that belongs to the model, or another head",
            )
        text = token.replace(SPACE, " ").strip() if self.kind == "t5" else token
        if not token.startswith("##") and text and self.encode(text) != [found]:
            raise UserError(
                f"{text!r} is not one token for this tokenizer: {self.encode(text)}",
                "use the tokenizer that belongs to the model, or another head",
            )
        return found

    def _answer_like(self) -> list[str]:
        words = [SPACE + word for word in ANSWER_WORDS] + list(ANSWER_WORDS)
        return [word for word in words if self._backend.token_to_id(word) is not None]

    @functools.cached_property
    def vocab_size(self) -> int:
        """Ids are below it: the highest id plus one, added tokens included."""
        vocab = self._backend.get_vocab(with_added_tokens=True)
        return max(vocab.values(), default=-1) + 1

    @functools.cached_property
    def kind(self) -> str:
        """``"t5"``, ``"bert"`` or ``"other"``, by the vocabulary's special tokens."""
        model = type(self._backend.model).__name__
        for kind, name in (("t5", "Unigram"), ("bert", "WordPiece")):
            needed = (
                SPECIAL_TOKENS[kind]["pad"],
                SPECIAL_TOKENS[kind].get("eos", "[SEP]"),
            )
            if model == name and all(self._id(token) is not None for token in needed):
                return kind
        return "other"

    @functools.cached_property
    def merges(self) -> bool:
        """Whether byte pairs may merge a text with what stands beside it."""
        return type(self._backend.model).__name__ == "BPE"

    @functools.cached_property
    def added_tokens(self) -> tuple[str, ...]:
        """Tokens that are found in a text first, special ones among them."""
        found = self._backend.get_added_tokens_decoder().values()
        return tuple(token.content for token in found)

    @functools.cached_property
    def digest(self) -> str:
        """Of everything that decides an id: vocabulary, normaliser, special tokens."""
        frame = () if self.kind != "other" else sorted(self.frame.items())
        return digest("tokenizer", self._plain_json(), *frame)

    def _plain_json(self) -> str:
        import json

        record = json.loads(self._backend.to_str())
        # The post-processor adds special tokens around a text: never used here.
        for unused in ("padding", "truncation", "post_processor", "decoder"):
            record.pop(unused, None)
        vocab = record["model"].get("vocab")
        if isinstance(vocab, list):
            # A tokenizer.json gives scores back with another last digit.
            record["model"]["vocab"] = [[p, f"{score:.6g}"] for p, score in vocab]
        return json.dumps(record, sort_keys=True)

    def _special_names(self) -> dict[str, str]:
        names = dict(SPECIAL_TOKENS.get(self.kind, {}))
        for role in ("pad", "eos", "unk", "cls", "sep", "mask"):
            given = self._config.get(f"{role}_token")
            if isinstance(given, dict):
                given = given.get("content")
            if isinstance(given, str):
                names[role] = given
        return names

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self._backend.token_to_id(token)

    def with_special(self, **names: str) -> Tokenizer:
        """The same vocabulary with other tokens in roles: ``pad="[PAD]"``."""
        config = {**self._config, **{f"{role}_token": t for role, t in names.items()}}
        return Tokenizer(self._backend, config, self._spiece)

    def save(self, directory: str | Path, max_length: int | None = None) -> None:
        """Writes what transformers' AutoTokenizer and sentence-transformers load.

        Args:
            directory: created when missing; files of the same names are replaced.
            max_length: ``model_max_length`` of the written config, in tokens.
        """
        directory = Path(directory)
        names = {f"{role}_token": n for role, n in self._special_names().items()}
        config = {**self._config, **names}
        config["tokenizer_class"] = config.get("tokenizer_class") or _CLASSES[self.kind]
        write_files(directory, self._backend, self.kind, config, max_length)
        write_json(directory / "special_tokens_map.json", names)
        if self._spiece is not None:
            with atomic_write(directory / "spiece.model", "wb") as out:
                out.write(self._spiece)

    def __reduce__(self):
        return (_from_state, (self._backend.to_str(), self._config, self._spiece))

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind}, {self.vocab_size} tokens, {self.digest[:8]})"


def _from_state(state: str, config: dict[str, Any], spiece: bytes | None) -> Tokenizer:
    from tokenizers import Tokenizer as Backend

    return Tokenizer(Backend.from_str(state), config, spiece)
