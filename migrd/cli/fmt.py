"""Pure: numbers and words for people. Nothing a server sends can move the cursor."""

from __future__ import annotations

import time

from rich.text import Text

_STYLES = {
    "online": "green",
    "ok": "green",
    "running": "green",
    "done": "green",
    "suspect": "yellow",
    "degraded": "yellow",
    "syncing": "yellow",
    "draining": "cyan",
    "drained": "cyan",
    "pending": "cyan",
    "cancelling": "yellow",
    "undone": "yellow",
    "failed": "bold red",
    "parked": "bold red",
    "unreachable": "bold red",
    "unknown": "bold red",
    "crashed": "bold red",
    "suspended": "bold red",
}


def plain(text: str) -> str:
    """Without control characters: a guest's name must not be able to write on the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "�" for char in text)


def word(text: str) -> Text:
    """A state, in its colour."""
    return Text(plain(text), style=_STYLES.get(text, ""))


def cell(text: object) -> Text:
    return Text(plain(str(text)))


def size(amount_bytes: float) -> str:
    """512 B, 1.5 KiB, 12 MiB, 3.2 GiB."""
    value = float(amount_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def seconds(duration_s: float | None) -> str:
    """0.4 s, 41 s, 3 min 05 s, 2 h 10 min."""
    if duration_s is None:
        return "-"
    if duration_s < 10:
        return f"{duration_s:.1f} s"
    whole = round(duration_s)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def clock(at_s: float | None) -> str:
    """Local time of day and date of a wall-clock time."""
    if not at_s:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))


def count(number: int, noun: str) -> str:
    """1 guest, 2 guests."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
