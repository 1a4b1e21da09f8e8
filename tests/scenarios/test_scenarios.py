"""Every file of this folder is one story: played, compared with what it expects, healed, ended."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.scenarios.parse import parse, rewritten
from tests.scenarios.play import play

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
FILES = sorted(str(path.relative_to(HERE)) for path in HERE.glob("*/*.txt"))


@pytest.mark.parametrize("name", FILES)
def test_scenario(name: str, request: pytest.FixtureRequest) -> None:
    path = HERE / name
    text = path.read_text()
    scenario = parse(name, text)
    told = play(scenario)
    if request.config.getoption("--rewrite", default=False):
        path.write_text(rewritten(text, told))
        return
    assert scenario.expected == told, f"{name}: something else happened; if that is right: pytest --rewrite"


def test_nothing_is_covered_that_is_not_built() -> None:
    built = set(re.findall(r"^\| (I\d+) \|", (DOCS / "INVARIANTS.md").read_text(), re.MULTILINE))
    for name in FILES:
        covered = parse(name, (HERE / name).read_text()).invariants
        assert covered <= built, f"{name}: {sorted(covered - built)} is not built"


def test_every_case_to_survive_is_played_where_the_table_says_so_or_is_not_built() -> None:
    """docs/SIMULATOR.md has a row for each; the scenarios that it names say the same."""
    table = (DOCS / "SIMULATOR.md").read_text().partition("### Cases to survive")[2]
    rows = re.findall(r"^\| (\d+) \| .* \| (.*) \|$", table, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 13))
    for number, where in rows:
        named = re.findall(r"`([\w/-]+)`", where)
        assert named or "not built" in where, number
        for name in named:
            scenario = parse(name, (HERE / f"{name}.txt").read_text())
            assert int(number) in scenario.cases, f"{name} does not cover case {number}"


def test_there_are_stories_of_every_kind() -> None:
    assert len(FILES) >= 60
    assert {Path(name).parent.name for name in FILES} == {
        "drain", "faults", "humans", "migrate", "power", "undrain",
    }  # fmt: skip
