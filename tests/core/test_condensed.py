"""What an earlier version kept of operations that have ended: an end stays an end (I15, I16)."""

from __future__ import annotations

import json
import sqlite3
import zlib
from pathlib import Path

import pytest

from migrd import condensed
from migrd.journal import Journal
from migrd.ports import JournalError
from migrd.projection import Record
from migrd.sagas.events import PowerRead
from migrd.sagas.migrate_state import MigrateState, Stage
from tests.core.test_saga_table import REQUEST

DONE = Record(
    id="op-000001",
    state=MigrateState(operation="op-000001", request=REQUEST, stage=Stage.DONE, adrift=3),
    requested_at_s=1.0,
    seq=1,
    ended_at_s=2.0,
)


def altered(body: str, **changes: object) -> str:
    """The state's text with some fields changed; None: not there."""
    head, _, text = body.partition("\n")
    state = {**json.loads(text), **changes}
    return f"{head}\n{json.dumps({name: value for name, value in state.items() if value is not None})}"


def test_a_field_that_is_new_has_its_default_and_one_that_is_gone_is_passed_over() -> None:
    older = altered(condensed.dump(DONE), adrift=None, formerly="known")
    record = condensed.read(older)
    assert isinstance(record.state, MigrateState)
    assert (record.id, record.state.stage, record.state.adrift) == ("op-000001", Stage.DONE, 0)


async def kept(path: Path, *, form: int, **changes: object) -> list[str]:
    """Ids of what a journal tells as ended after its one condensed operation was altered on disk."""
    journal = await Journal.open(path)
    await journal.append("op-000001", PowerRead(status="on"), 1.0)
    await journal.condense([DONE])
    await journal.close()
    body = altered(condensed.dump(DONE), **changes)
    database = sqlite3.connect(path)
    database.execute(
        "UPDATE ended SET format = ?, body = ?, crc = ?", (form, body, zlib.crc32(body.encode()))
    )
    database.commit()
    database.close()
    journal = await Journal.open(path)
    try:
        return [record.id for record in await journal.ended()]
    finally:
        await journal.close()


async def test_another_versions_end_is_believed_without_its_rows(tmp_path: Path) -> None:
    assert await kept(tmp_path / "journal", form=1, adrift=None) == ["op-000001"]


async def test_what_this_version_cannot_read_is_left_to_the_rows(tmp_path: Path) -> None:
    assert await kept(tmp_path / "journal", form=1, stage="of-tomorrow") == []


async def test_what_this_very_version_wrote_and_cannot_read_is_damage(tmp_path: Path) -> None:
    with pytest.raises(JournalError):
        await kept(tmp_path / "journal", form=condensed.form(), stage="of-tomorrow")
