"""I16: the daemon dies at every journal write, an agent around every side effect; the end is the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sim.exhaust import Blow, End, Kill, Story, awaits, gaps, kills, play, wrong
from tests.sim.exhaust_stories import MIGRATE_SMALL, STORIES
from tests.sim.sim import BrokenError

# Killed between the making of a coroutine and its first step: what a dead process leaves, not an oversight.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine '_call' was never awaited:RuntimeWarning")


def told(found: list[str]) -> str:
    return f"{len(found)} went wrong, the first: {found[0]}" if found else ""


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_every_kill_converges(story: Story) -> None:
    found = wrong(story, kills)
    assert not found, told(found)


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("who", ["migrd", "h1", "h2"])
def test_a_kill_at_any_await_converges(who: str, part: int) -> None:
    """Every callback of daemon, source and target, in four parts each."""

    def mine(end: End) -> Iterator[Blow]:
        return (kill for kill in awaits(end) if kill.who == who and kill.number % 4 == part)

    found = wrong(MIGRATE_SMALL, mine)
    assert not found, told(found)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_a_gap_in_any_event_stream_converges(story: Story) -> None:
    found = wrong(story, gaps)
    assert not found, told(found)


@pytest.mark.parametrize(
    "kill", [Kill("migrd", 999, "after"), Kill("h1", 999, "before"), Kill("h2", 10**6, "at")]
)
def test_a_kill_that_never_strikes_is_an_error_and_a_failure_ends_with_what_repeats_it(kill: Kill) -> None:
    with pytest.raises(BrokenError, match="it never struck") as broken:
        play(MIGRATE_SMALL, kill)
    assert str(broken.value).splitlines()[-1] == f"make sim BLOW='migrate-drbd-small: {kill}'"
