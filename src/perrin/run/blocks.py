"""Compressed text whose bytes depend on the text alone, not on who wrote which part of it.

A file is a row of gzip members, each of at most 65,280 bytes of text, compressed apart: the BGZF format of SAM/BAM
(Li et al., Bioinformatics 25, 2078 (2009)), which `gunzip`, Python's `gzip` and `bgzip` all read. The text is cut at fixed
places, so a file that one process wrote in one go and one that was merged from many parts have the same bytes. An empty
member ends the file: one that was cut off is known by its absence.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

BLOCK = 0xFF00
"""Bytes of text in a member, as in htslib: whatever they are, they fit into 64 KiB when compressed."""

_LEVEL = 6
_HEAD = struct.Struct("<4BI2BH2BHH")


def _member(data: bytes) -> bytes:
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -15)
    body = packer.compress(data) + packer.flush()
    if len(body) > 0xFFFF - 25:  # cannot be compressed
        packer = zlib.compressobj(0, zlib.DEFLATED, -15)
        body = packer.compress(data) + packer.flush()
    head = _HEAD.pack(31, 139, 8, 4, 0, 0, 255, 6, 66, 67, 2, len(body) + 25)
    return head + body + struct.pack("<2I", zlib.crc32(data), len(data))


END = _member(b"")
"""The empty member at the end."""


class BlockWriter:
    """Writes text into a new file; the end mark comes when it is closed without an error."""

    def __init__(self, path: str | Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 (closed with the writer)
        self._buffer = bytearray()

    def write(self, text: str | bytes) -> None:
        """Append text."""
        self._buffer += text.encode() if isinstance(text, str) else text
        whole = len(self._buffer) // BLOCK * BLOCK
        for start in range(0, whole, BLOCK):
            self._file.write(_member(bytes(self._buffer[start : start + BLOCK])))
        del self._buffer[:whole]

    def close(self) -> None:
        """Write what is left and the end mark."""
        if self._buffer:
            self._file.write(_member(bytes(self._buffer)))
        self._file.write(END)
        self._file.close()

    def __enter__(self) -> BlockWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._file.close()


def read_blocks(path: str | Path, size: int = 1 << 20) -> Iterator[bytes]:
    """The text of such a file, piece by piece.

    Raises:
        OSError: it is damaged or cut off; the message says which.
    """
    try:
        with open(path, "rb") as raw:
            raw.seek(0, os.SEEK_END)
            raw.seek(max(0, raw.tell() - len(END)))
            if raw.read() != END:
                raise OSError(f"{path} is cut off")
        with gzip.open(path, "rb") as file:
            while piece := file.read(size):
                yield piece
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise OSError(f"{path} is damaged ({error})") from error
