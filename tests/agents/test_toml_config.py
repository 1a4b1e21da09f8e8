"""Bad configuration: every mistake at once, each with its path, and never the value itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from agents.toml_config import MAX_CONFIG_BYTES, ConfigError, load, parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    port: int
    key: Path
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.port < 0:
            raise ValueError("a port is not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    door: Door
    doors: tuple[Door, ...] = ()
    height_m: float = 3.0


def test_a_good_document_becomes_the_dataclass() -> None:
    house = parse({"door": {"port": 1, "key": "/k", "names": ["a"]}, "height_m": 4}, House)
    assert house == House(door=Door(port=1, key=Path("/k"), names=("a",)), height_m=4.0)


def test_every_mistake_is_reported_with_its_path() -> None:
    bad = {
        "door": {"port": "7443", "key": 3, "colour": "red"},
        "doors": [{"port": -1, "key": "/k"}, {}],
        "widht": 1,
    }
    with pytest.raises(ConfigError) as caught:
        parse(bad, House)
    assert caught.value.errors == [
        "door.port: Input should be a valid integer",
        "door.key: Input should be a valid string",
        "door.colour: unknown key",
        "doors.0: a port is not negative",
        "doors.1.port: required, but missing",
        "doors.1.key: required, but missing",
        "widht: unknown key",
    ]


def test_the_wrong_value_is_not_repeated() -> None:
    """I17: what was written in the wrong place may be a password."""
    with pytest.raises(ConfigError) as caught:
        parse({"door": {"port": "hunter2", "key": "/k"}}, House)
    assert "hunter2" not in str(caught.value)


def test_files_that_cannot_be_read_or_parsed(tmp_path: Path) -> None:
    broken, binary, huge = tmp_path / "broken", tmp_path / "binary", tmp_path / "huge"
    broken.write_text("door = [")
    binary.write_bytes(b"\xff\xfe\x00")
    huge.write_bytes(b"#" * (MAX_CONFIG_BYTES + 1))
    for path, word in (
        (tmp_path / "missing", "cannot be read"),
        (tmp_path, "cannot be read"),
        (broken, "not valid TOML"),
        (binary, "not valid TOML"),
        (huge, "larger than"),
    ):
        with pytest.raises(ConfigError, match=word) as caught:
            load(path, House)
        assert str(path) in str(caught.value)
