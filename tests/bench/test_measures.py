"""The bench tells what it knows, and its exit code what it does not."""

from __future__ import annotations

import json

import pytest

from tests.bench.measures import Repeats, RoundSpoilt, Tally, p95


def test_a_missed_goal_is_a_figure_and_not_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    tally.say("a", 1.23456, "s", 1.0, 3)
    said = capsys.readouterr()
    assert json.loads(said.out) == {
        "name": "a", "value": 1.235, "unit": "s", "goal": 1.0, "ok": False, "runs": 3,
    }  # fmt: skip
    assert (tally.exit_code(strict=False), tally.exit_code(strict=True)) == (0, 1)


def test_what_breaks_takes_only_its_own_measures_along(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    with tally.taking("a", "b"):
        tally.say("a", 1.0, "s", 2.0, 1)
        raise RuntimeError("the host fell over")
    with tally.taking("c"):
        tally.say("c", 1.0, "s", 2.0, 1)
    said = capsys.readouterr()
    assert [json.loads(line)["name"] for line in said.out.splitlines()] == ["a", "c"]
    assert "the host fell over" in said.err
    assert tally.not_taken == ["b"]
    assert tally.exit_code(strict=False) == tally.exit_code(strict=True) == 2


def test_a_spoilt_round_is_done_again_but_not_for_ever() -> None:
    left = [RoundSpoilt("port taken"), RoundSpoilt("port taken")]

    def one() -> int:
        if left:
            raise left.pop()
        return 7

    repeats = Repeats(at_most=3)
    assert repeats.until_sound("round", one) == 7
    left += [RoundSpoilt("port taken")] * 3
    with pytest.raises(RoundSpoilt):
        repeats.until_sound("round", one)


def test_p95_is_the_nearest_rank() -> None:
    assert p95([3.0, 1.0, 2.0]) == 3.0
    assert p95([float(n) for n in range(1, 21)]) == 19.0
