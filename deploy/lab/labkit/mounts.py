"""What is mounted on this machine, as the kernel lists it."""

from __future__ import annotations

from pathlib import Path


def mount_points() -> list[str]:
    """Every mount point that this process sees (mountinfo in proc(5)).

    `os.path.ismount` would not do: it does not see a directory that is mounted onto itself.
    """
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def below(directory: Path) -> list[str]:
    """Mount points below a directory, deepest first."""
    return sorted((path for path in mount_points() if path.startswith(f"{directory}/")), reverse=True)
