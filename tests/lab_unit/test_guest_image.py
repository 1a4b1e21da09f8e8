"""Where the guests' kernel comes from, and what happens when the package lists are old."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from labkit import guest_image
from labkit.sh import Completed, LabError


class Apt:
    """A mirror that has one version; the lists name another one until they are updated."""

    def __init__(self, listed: str, there: str) -> None:
        self.listed, self.there = listed, there
        self.updates = 0

    def run(self, argv: Sequence[str], **_: Any) -> Completed:
        return Completed(
            0, f"linux-image-cloud-amd64\n  Depends: linux-image-{self.listed}-cloud-amd64\n", ""
        )

    def must(self, argv: Sequence[str], **_: Any) -> str:
        if argv[:2] == ["apt-get", "update"]:
            self.updates += 1
            self.listed = self.there
        elif "download" in argv:
            if self.listed != self.there:
                raise LabError("404 Not Found")
            Path(argv[2], "kernel.deb").touch()
        elif argv[0] == "dpkg":
            Path(argv[3]).mkdir()
        return self.run(argv).stdout


@pytest.fixture
def apt(monkeypatch: pytest.MonkeyPatch) -> Apt:
    made = Apt("6.1.0-1", "6.1.0-2")
    monkeypatch.setattr(guest_image, "run", made.run)
    monkeypatch.setattr(guest_image, "must", made.must)
    return made


def test_old_package_lists_are_renewed_once_and_the_new_version_is_taken(apt: Apt, tmp_path: Path) -> None:
    assert guest_image._kernel_root(tmp_path) == tmp_path / "linux-image-6.1.0-2-cloud-amd64"
    assert apt.updates == 1


def test_what_the_lists_name_is_taken_if_it_is_there(apt: Apt, tmp_path: Path) -> None:
    apt.there = apt.listed
    guest_image._kernel_root(tmp_path)
    assert apt.updates == 0
    assert [path.name for path in tmp_path.iterdir()] == ["linux-image-6.1.0-1-cloud-amd64"]
