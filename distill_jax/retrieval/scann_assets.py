"""Whether a folder of ScaNN's files is as it was written.

ScaNN unpickles ids and follows paths that it finds: neither may be there.
"""

from __future__ import annotations

import re
from pathlib import Path

from distill_jax.io.errors import UserError, clip

_LISTING = "scann_assets.pbtxt"
# The lines that ScaNN writes there. Its reader takes any text-proto, where a path may
# be quoted, escaped and put together in many ways; none of them is needed.
_LINE = re.compile(
    r"""\s*(?:assets\s*\{|asset_type:\s*\w+|asset_path:\s*"([^"\\]*)"|\})\s*""",
    re.ASCII,
)
_DISTRUST = "build the index again; do not load it from a source you do not trust"


def check(assets: Path, sizes: dict[str, int]) -> None:
    """Compares ScaNN's files with those that the index wrote.

    Args:
        assets: the folder.
        sizes: bytes of each file that the index wrote, by name.

    Raises:
        UserError: a file is missing, of another size or of no known use, or the listing
            has content that ScaNN would not write.
    """
    for name, size in sizes.items():
        path = assets / name
        if Path(name).name != name or not path.is_file() or path.stat().st_size != size:
            raise UserError(f"{path} is missing or damaged", "build the index again")
    if _LISTING not in sizes:
        raise UserError(f"{assets / _LISTING} is missing", "build the index again")
    strange = sorted(p.name for p in assets.iterdir() if p.name not in sizes)
    strange += [name for name in sizes if name.endswith(".pkl")]
    if strange:
        raise UserError(
            f"{assets} holds files that this index did not write: {strange}", _DISTRUST
        )
    _check_listing(assets / _LISTING, sizes)


def _check_listing(listing: Path, sizes: dict[str, int]) -> None:
    """Every line is one that ScaNN writes, and every path a file of the index."""
    text = listing.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line)
        if found is None or found[1] not in (None, *sizes):
            raise UserError(
                f"{listing}:{number}: not a file of this index: {clip(line.strip())}",
                _DISTRUST,
            )
