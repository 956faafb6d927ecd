"""TFRecord files of ``tf.train.Example``, without TensorFlow.

A record is: length (uint64), masked CRC-32C of the length, payload, masked CRC-32C of
the payload; all little-endian. ``tf.train.Example`` is small enough to be written by
hand.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

import numpy as np

_BLOCK = 1024  # records whose checksums are computed side by side


@functools.cache
def _crc_table() -> np.ndarray:
    """uint32[256] of CRC-32C (Castagnoli, reflected polynomial 0x82F63B78)."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table.astype(np.uint32)


def masked_crcs(payloads: Sequence[bytes]) -> np.ndarray:
    """uint32[R]: the masked CRC-32C of R payloads.

    The sum runs byte by byte in each payload, but over all payloads at once: numpy
    then does what would cost a C extension.
    """
    lengths = np.fromiter(map(len, payloads), np.int64, len(payloads))
    order = np.argsort(-lengths, kind="stable")
    lengths = lengths[order]
    table = _crc_table()
    state = np.full(len(payloads), 0xFFFFFFFF, np.uint32)
    width = int(lengths.max(initial=0))
    columns = np.zeros((width, len(payloads)), np.uint8)
    for place, i in enumerate(order):
        columns[: lengths[place], place] = np.frombuffer(payloads[i], np.uint8)
    # Sorted by length: those that go on at a position are a prefix.
    going = np.searchsorted(-lengths, -np.arange(width), side="left")
    for position in range(width):
        n = going[position]
        part = state[:n]
        state[:n] = table[(part ^ columns[position, :n]) & 0xFF] ^ (part >> 8)
    crc = ~state
    # Wrapping around is meant: the mask is a rotation plus a constant modulo 2^32.
    masked = ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)
    out = np.empty_like(masked)
    out[order] = masked
    return out


def write_records(file: IO[bytes], payloads: Iterable[bytes]) -> list[int]:
    """Frames payloads into an open file; returns their lengths in bytes."""
    lengths: list[int] = []
    block: list[bytes] = []

    def flush() -> None:
        heads = [struct.pack("<Q", len(payload)) for payload in block]
        for head, payload, of_head, of_payload in zip(
            heads, block, masked_crcs(heads), masked_crcs(block)
        ):
            file.write(head + struct.pack("<I", of_head))
            file.write(payload + struct.pack("<I", of_payload))
            lengths.append(len(payload))
        block.clear()

    size = 0
    for payload in payloads:
        block.append(payload)
        # Bounded by bytes too: the rectangle is as wide as the longest payload.
        size = max(size, len(payload))
        if len(block) == _BLOCK or size * len(block) > 1 << 26:
            flush()
            size = 0
    flush()
    return lengths


def varint(value: int) -> bytes:
    """A non-negative integer (below 2^64) in seven-bit groups, lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def delimited(field: int, payload: bytes) -> bytes:
    """A length-delimited field: bytes, a string, a message or packed numbers."""
    return varint(field << 3 | 2) + varint(len(payload)) + payload


def example(features: Mapping[str, Any]) -> bytes:
    """A serialised ``tf.train.Example``.

    A value is a str, bytes or a sequence of them (bytes_list), or an array of floats
    (float_list) or of integers (int64_list).
    """
    entries = b"".join(
        delimited(1, delimited(1, name.encode()) + delimited(2, _feature(value)))
        for name, value in sorted(features.items())
    )
    return delimited(1, entries)


def _feature(value: Any) -> bytes:
    if isinstance(value, (str, bytes)):
        value = [value]
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "f":
            packed = value.astype("<f4").tobytes()
            return delimited(2, delimited(1, packed) if packed else b"")
        packed = b"".join(varint(int(v) & 0xFFFFFFFFFFFFFFFF) for v in value)
        return delimited(3, delimited(1, packed) if packed else b"")
    texts = [v.encode() if isinstance(v, str) else v for v in value]
    return delimited(1, b"".join(delimited(1, text) for text in texts))
