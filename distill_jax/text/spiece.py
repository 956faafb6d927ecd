"""SentencePiece model files, read and written without the sentencepiece library.

Only what a Unigram tokenizer needs of ``sentencepiece_model.proto``: the pieces with
their scores and kinds, the model type, and the normaliser's compiled character map.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill_jax.io.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
_UNIGRAM = 1


@dataclasses.dataclass(frozen=True)
class SentencePieceModel:
    """A Unigram vocabulary.

    Attributes:
        pieces: (piece, log-probability, kind) by id.
        charsmap: the normaliser's precompiled character map, b"" for none.
    """

    pieces: tuple[tuple[str, float, int], ...]
    charsmap: bytes


def read_model(path: str | Path) -> SentencePieceModel:
    """Reads ``spiece.model``.

    Raises:
        UserError: the file is missing, damaged, or not a Unigram model.
    """
    try:
        return parse_model(Path(path).read_bytes())
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}", "check the path"
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        if isinstance(error, UserError):
            raise UserError(f"{path}: {error.what}", error.todo) from None
        raise UserError(
            f"{path}: not a SentencePiece model ({error})",
            "fetch the file again; a Git LFS pointer is a common cause",
        ) from None


def parse_model(data: bytes) -> SentencePieceModel:
    """The model in the bytes of a ``spiece.model`` file."""
    pieces, charsmap, kind = [], b"", _UNIGRAM
    for field, value in _fields(data):
        if field == 1:
            pieces.append(_piece(value))
        elif field == 2:
            kind = dict(_fields(value)).get(3, _UNIGRAM)
        elif field == 3:
            charsmap = dict(_fields(value)).get(2, b"")
    if not pieces:
        raise ValueError("no pieces in it")
    if kind != _UNIGRAM:
        raise UserError(
            "a SentencePiece model that is not Unigram",
            "T5 models use Unigram; for others give their tokenizer.json",
        )
    return SentencePieceModel(tuple(pieces), charsmap)


def _piece(data: bytes) -> tuple[str, float, int]:
    values = dict(_fields(data))
    score = struct.unpack("<f", values[2])[0] if 2 in values else 0.0
    return values[1].decode("utf-8"), score, values.get(3, NORMAL)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of one protobuf message: (number, varint or bytes)."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
        elif wire in (1, 2, 5):
            size = {1: 8, 5: 4}.get(wire)
            if size is None:
                size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("cut short")
            value = data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {wire}")
        yield field, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def with_pieces(data: bytes, pieces: list[tuple[str, float]]) -> bytes:
    """The model file with more NORMAL pieces after the ones it has."""
    extra = b"".join(
        _message(
            1,
            _message(1, piece.encode())
            + b"\x15"
            + struct.pack("<f", score)
            + b"\x18\x01",
        )
        for piece, score in pieces
    )
    # Repeated fields may be anywhere in a message: appending keeps every byte.
    return data + extra


def _message(field: int, value: bytes) -> bytes:
    size, length = len(value), b""
    while size >= 0x80:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([field << 3 | 2]) + length + bytes([size]) + value
