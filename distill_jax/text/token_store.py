"""Token ids of a collection: flat ids and offsets, memory-mapped."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from distill_jax.io import engine, sums
from distill_jax.io.errors import UserError
from distill_jax.io.files import digest, digest_texts, flush_tree, room_for, staging
from distill_jax.io.reading import read_record, write_record
from distill_jax.text.joins import InContext
from distill_jax.text.tokenizer import Tokenizer

_CHUNK_TEXTS = 8192
_FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class TokenStore:
    """Each text's token ids, without special tokens.

    Attributes:
        ids: uint16[T] or int32[T], all texts' ids end to end.
        offsets: int64[M + 1]; text i is ``ids[offsets[i]:offsets[i + 1]]``.
        digest: of the texts, the tokenizer and the limit.
        truncated: how many texts were cut at ``limit``.
        tokenizer: digest of the tokenizer; "" where it is not known.
    """

    ids: np.ndarray
    offsets: np.ndarray
    digest: str = ""
    truncated: int = 0
    tokenizer: str = ""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """int64[M]: tokens of each text."""
        return np.diff(self.offsets)

    @classmethod
    def build(
        cls,
        texts: Sequence[str],
        tokenizer: Tokenizer | InContext,
        directory: str | Path | None = None,
        limit: int | None = None,
        *,
        texts_digest: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> TokenStore:
        """Tokenises texts, or maps what an earlier call left under ``directory``.

        Args:
            texts: M texts; read in chunks, so a memory-mapped table will do.
            tokenizer: whose ids: a ``Tokenizer``, or what ``Template.reader`` gives.
            directory: where stores are kept, one folder per digest. None: in memory.
            limit: keep at most this many tokens of a text.
            texts_digest: ``digest_texts(texts)`` when it is known already.
            progress: called with (texts done, M) after every chunk.
        """
        key = digest(
            "TokenStore",
            _FORMAT,
            texts_digest or digest_texts(texts),
            tokenizer.digest,
            limit,
        )
        if directory is None:
            made = cls._build_in_memory(texts, tokenizer, limit, key, progress)
        else:
            folder = Path(directory) / key
            if not (folder / "tokens.json").exists():
                cls._build_on_disk(folder, texts, tokenizer, limit, key, progress)
            made = cls.read(folder, expect=key)
        return dataclasses.replace(made, tokenizer=tokenizer.digest)

    @classmethod
    def _build_in_memory(
        cls,
        texts: Sequence[str],
        tokenizer: Tokenizer | InContext,
        limit: int | None,
        key: str,
        progress: Callable[[int, int], None] | None,
    ) -> TokenStore:
        parts, lengths, truncated = [], [], 0
        for ids, counts, cut in _chunks(texts, tokenizer, limit, progress):
            parts.append(ids)
            lengths.append(counts)
            truncated += cut
        flat = np.concatenate(parts) if parts else np.zeros(0, _dtype(tokenizer))
        return cls(flat, _offsets(lengths), key, truncated)

    @classmethod
    def _build_on_disk(
        cls,
        folder: Path,
        texts: Sequence[str],
        tokenizer: Tokenizer | InContext,
        limit: int | None,
        key: str,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        aside = staging(folder.parent, folder.name)
        try:
            lengths, truncated = [], 0
            with room_for(folder), open(aside / "ids.bin", "wb") as out:
                for ids, counts, cut in _chunks(texts, tokenizer, limit, progress):
                    ids.tofile(out)
                    lengths.append(counts)
                    truncated += cut
            offsets = _offsets(lengths)
            with room_for(folder):
                np.save(aside / "offsets.npy", offsets)
            write_record(
                aside / "tokens.json",
                {
                    "format": _FORMAT,
                    "digest": key,
                    "dtype": np.dtype(_dtype(tokenizer)).name,
                    "texts": len(offsets) - 1,
                    "tokens": int(offsets[-1]),
                    "truncated": truncated,
                    "vocab_size": tokenizer.vocab_size,
                    "files": sums.take(aside, ["ids.bin", "offsets.npy"]),
                },
            )
            flush_tree(aside)
            try:
                aside.rename(folder)
            except OSError:
                # Another process was faster, or left a folder without its record.
                if not (folder / "tokens.json").exists():
                    shutil.rmtree(folder, ignore_errors=True)
                    aside.rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    @classmethod
    def read(cls, folder: str | Path, expect: str | None = None) -> TokenStore:
        """Maps a store's files after checking sizes against its record.

        Raises:
            UserError: the record and the files do not fit together, or the digest is
                not ``expect``.
        """
        folder = Path(folder)
        todo = f"delete {folder}: it is made again"
        record = read_record(folder / "tokens.json", todo)
        sums.check(folder, record.get("files", {}), todo)
        try:
            dtype = {"uint16": np.uint16, "int32": np.int32}[record["dtype"]]
            texts, tokens = int(record["texts"]), int(record["tokens"])
            size = (folder / "ids.bin").stat().st_size
            offsets = np.load(folder / "offsets.npy", mmap_mode="r", allow_pickle=False)
            ok = (
                record["format"] == _FORMAT
                and expect in (None, record["digest"])
                and offsets.shape == (texts + 1,)
                and offsets.dtype == np.int64
                and size == tokens * np.dtype(dtype).itemsize
                and offsets[0] == 0
                and offsets[-1] == tokens
                and bool((np.diff(offsets) >= 0).all())
            )
        except (KeyError, TypeError, ValueError, OSError):
            ok = False
        if not ok:
            raise UserError(
                f"{folder}: the token store is damaged or of another version",
                "delete this folder; it is rebuilt by the next run",
            )
        # An empty file cannot be mapped.
        ids = (
            np.memmap(folder / "ids.bin", dtype, "r") if tokens else np.zeros(0, dtype)
        )
        # XLA reads past the end of a table without a word: it takes the last row.
        largest = int(ids.max(initial=0)) if dtype == np.uint16 else _range(ids)
        if not largest < int(record.get("vocab_size", 1 << 31)):
            raise UserError(
                f"{folder}/ids.bin: damaged, it holds the id {largest} of a vocabulary "
                f"of {record['vocab_size']}",
                todo,
            )
        return cls(ids, offsets, record["digest"], int(record["truncated"]))


def _range(ids: np.ndarray) -> int:
    """The largest id; one that is negative counts as too large."""
    return (1 << 32) if int(ids.min(initial=0)) < 0 else int(ids.max(initial=0))


def _dtype(tokenizer: Tokenizer | InContext) -> type:
    return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32


def _offsets(lengths: list[np.ndarray]) -> np.ndarray:
    counts = np.concatenate([np.zeros(1, np.int64), *lengths])
    return np.cumsum(counts, dtype=np.int64)


def _chunks(
    texts: Sequence[str],
    tokenizer: Tokenizer | InContext,
    limit: int | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yields (flat ids, lengths, texts cut) of ``_CHUNK_TEXTS`` texts at a time."""
    work = functools.partial(_chunk, tokenizer, limit)
    done = 0
    for found in engine.over_shards(work, engine.shards_of(texts, _CHUNK_TEXTS)):
        yield found
        done += len(found[1])
        if progress is not None:
            progress(done, len(texts))


def _chunk(
    tokenizer: Tokenizer | InContext, limit: int | None, texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Flat ids, lengths and the number of texts cut."""
    lists = tokenizer.encode_batch(texts)
    counts = np.fromiter(map(len, lists), np.int64, len(lists))
    cut = 0
    if limit is not None:
        cut = int((counts > limit).sum())
        lists = [ids[:limit] for ids in lists]
        counts = np.minimum(counts, limit)
    chained = itertools.chain.from_iterable(lists)
    flat = np.fromiter(chained, _dtype(tokenizer), int(counts.sum()))
    return flat, counts, cut
