"""I16: the daemon dies at every journal write, an agent around every side effect; the end is the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sim.exhaust import Blow, End, Gap, Kill, Story, awaits, gaps, kills, play, wrong
from tests.sim.exhaust_stories import DRAIN_BOTH, MIGRATE_ISCSI_SMALL, MIGRATE_SMALL, STORIES
from tests.sim.sim import BrokenError

# Killed between the making of a coroutine and its first step: what a dead process leaves, not an oversight.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine '_call' was never awaited:RuntimeWarning")


def told(found: list[str]) -> str:
    return f"{len(found)} went wrong, the first: {found[0]}" if found else ""


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_every_kill_converges(story: Story) -> None:
    found = wrong(story, kills)
    assert not found, told(found)


@pytest.mark.parametrize("story", [MIGRATE_SMALL, MIGRATE_ISCSI_SMALL], ids=lambda story: story.name)
@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize("who", ["migrd", "h1", "h2"])
def test_a_kill_at_any_await_converges(who: str, part: int, story: Story) -> None:
    """Every callback of daemon, source and target, in two parts each."""

    def mine(end: End) -> Iterator[Blow]:
        return (kill for kill in awaits(end) if kill.who == who and kill.number % 2 == part)

    found = wrong(story, mine)
    assert not found, told(found)


def test_a_kill_at_every_fifth_await_of_a_drain_converges() -> None:
    """Of the daemon's: it has the most to take up again."""

    def mine(end: End) -> Iterator[Blow]:
        return (kill for kill in awaits(end) if kill.who == "migrd" and kill.number % 5 == 0)

    found = wrong(DRAIN_BOTH, mine)
    assert not found, told(found)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_a_gap_in_any_event_stream_converges(story: Story) -> None:
    found = wrong(story, gaps)
    assert not found, told(found)


@pytest.mark.parametrize(
    "blow", [Kill("migrd", 999, "after"), Kill("h1", 999, "before"), Kill("h2", 10**6, "at"), Gap("h2", 999)]
)
def test_a_blow_that_never_strikes_is_a_failure_and_it_ends_with_what_repeats_it(blow: Blow) -> None:
    with pytest.raises(BrokenError, match="it never struck") as broken:
        play(MIGRATE_SMALL, blow)
    assert str(broken.value).splitlines()[-1] == f"make sim BLOW='migrate-drbd-small: {blow}'"
