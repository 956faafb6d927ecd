"""When two texts are the same: one rule for leaks, duplicates and copies."""

from __future__ import annotations

import unicodedata


class _Blanks(dict[int, int]):
    """Code points of punctuation and symbols to blanks, the others to themselves."""

    def __missing__(self, code: int) -> int:
        mark = unicodedata.category(chr(code))[0] in "PS"
        self[code] = ord(" ") if mark else code
        return self[code]


_BLANKS = _Blanks()


def text_key(text: str) -> str:
    """What two texts share that count as the same.

    NFKC, case folded, without punctuation and symbols, single blanks. Numbers and
    accents stay: they tell questions apart. A text of punctuation alone is its own key.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_BLANKS).split()) or " ".join(folded.split())
