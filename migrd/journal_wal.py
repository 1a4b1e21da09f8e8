"""Tells a torn tail of SQLite's -wal file, which a crash may leave, from damage in what was acknowledged.

SQLite reads a -wal file up to the first frame that does not fit its checksum and says nothing of the rest
(sqlite.org/fileformat2.html, 4.1 to 4.4). A crash may tear the transaction that was being written, and no
other: the journal syncs each transaction before it writes the next. So a transaction that another one
follows was acknowledged, and must be found. A header that does not fit its checksum says nothing (a crash
may tear it too, and what the file then holds has been brought into the main file before).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_HEADER = struct.Struct(">IIIIIIII")  # magic, version, page size, checkpoint, salt 1 and 2, checksum 1 and 2
_FRAME = struct.Struct(">IIIIII")  # page, pages after commit (0: none), salt 1 and 2, checksum 1 and 2
_LITTLE, _BIG = 0x377F0682, 0x377F0683
_CHECKED = 8  # bytes of a frame's header that its checksum covers; of the file's own: 24
_MASK = 0xFFFFFFFF


class _Frame(NamedTuple):
    start: int  # byte offset
    committed: bool
    ours: bool  # of the present round of the file


def good_bytes(wal: Path) -> int | None:
    """None: as a crash may leave it. Else it is damaged, and only so many bytes of it are good.

    To be asked before SQLite opens the file. Raises OSError. About 0.1 ms per page.
    """
    try:
        data = wal.read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < _HEADER.size:
        return None
    magic, _, page_bytes, _, *_, sum1, sum2 = _HEADER.unpack_from(data)
    if magic not in (_LITTLE, _BIG) or not page_bytes:
        return None
    order = ">" if magic == _BIG else "<"
    sums = _checksum(order, data[: _HEADER.size - 8], (0, 0))
    if sums != (sum1, sum2):
        return None
    frames = list(_frames(data, page_bytes))
    end = _acknowledged(frames)
    for frame in frames[:end]:
        _, _, _, _, sum1, sum2 = _FRAME.unpack_from(data, frame.start)
        sums = _checksum(order, data[frame.start : frame.start + _CHECKED], sums)
        page = frame.start + _FRAME.size
        sums = _checksum(order, data[page : page + page_bytes], sums)
        if not frame.ours or sums != (sum1, sum2):
            return frame.start
    return None


def _frames(data: bytes, page_bytes: int) -> Iterator[_Frame]:
    salts = data[16:24]
    step = _FRAME.size + page_bytes
    for start in range(_HEADER.size, len(data) - step + 1, step):
        _, commit, *_ = _FRAME.unpack_from(data, start)
        yield _Frame(start, commit != 0, data[start + 8 : start + 16] == salts)


def _acknowledged(frames: list[_Frame]) -> int:
    """How many frames come before the end of the last transaction that another one follows."""
    found = committed = 0
    for number, frame in enumerate(frames, start=1):
        if frame.ours:
            found = committed
            committed = number if frame.committed else committed
    return found


def _checksum(order: str, data: bytes, before: tuple[int, int]) -> tuple[int, int]:
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    one, two = before
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & _MASK
        two = (two + second + one) & _MASK
    return one, two
