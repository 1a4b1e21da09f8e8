"""Every file of this folder is one story: played, compared with what it expects, healed, ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios.parse import parse, rewritten
from tests.scenarios.play import play

HERE = Path(__file__).parent
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


def test_there_are_stories_of_every_kind() -> None:
    assert len(FILES) >= 60
    assert {Path(name).parent.name for name in FILES} == {
        "drain", "faults", "humans", "migrate", "power", "undrain",
    }  # fmt: skip
