"""What the lab promises of itself: it boots quickly, and says how its commands ended."""

from __future__ import annotations

import re

import pytest

from tests.lab.labctl import LabCtl

pytestmark = pytest.mark.lab
BOOT_LIMIT_S = 90  # three hosts on two processors


def test_all_hosts_are_ready_in_time(lab_session: LabCtl) -> None:
    """From `up`'s own report, since the session's lab is booted but once."""
    took = dict(re.findall(r"^(\w+) ready after (\d+) s$", lab_session.up_said, re.MULTILINE))
    assert set(took) == {"s1", "h1", "h2", "h3"}, lab_session.up_said
    assert max(map(int, took.values())) <= BOOT_LIMIT_S


@pytest.mark.parametrize(
    ("script", "rc"), [("exit 7", 7), ("kill -9 $$", 128 + 9), ("kill -15 $$", 128 + 15), ("exit 255", 255)]
)
def test_exec_passes_on_how_a_command_ended(lab_session: LabCtl, script: str, rc: int) -> None:
    assert lab_session.sh("h1", "sh", "-c", script).rc == rc
