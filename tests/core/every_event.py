"""One event of every kind, and the first row of every kind of operation."""

from __future__ import annotations

from agents.protocol import Outcome
from migrd.host_config import HostConfig
from migrd.operations import OperationState
from migrd.sagas.events import (
    Admitted,
    Answered,
    CancelRequested,
    ChildEnded,
    Chosen,
    ColdRequested,
    DrainRequested,
    Event,
    HandingOver,
    HostAdded,
    HostChecked,
    HostRemoved,
    Looked,
    MigrateRequested,
    PowerActed,
    PowerChecked,
    PowerRead,
    PowerRequested,
    Recovered,
    Request,
    Resumed,
    StopAnswered,
    Surveyed,
    SwitchOverSeen,
    UndrainRequested,
    Withdrawn,
)
from storage.words import Side

LIVE_MOVE = MigrateRequested(
    guest="u",
    name="db",
    source="h1",
    source_node="h1",
    target="h2",
    target_node="h2",
    target_uri="qemu+tls://h2/system",
    target_address="tcp://h2",
    volumes=(),
)
COLD_MOVE = ColdRequested(
    guest="u",
    name="db",
    source="h1",
    source_node="h1",
    source_uri="qemu+tls://h1/system",
    source_address="tcp://h1",
    target="h2",
    target_node="h2",
    target_uri="qemu+tls://h2/system",
    target_address="tcp://h2",
    volumes=(),
    may_stop=True,
)

REQUESTS: tuple[Request, ...] = (
    LIVE_MOVE,
    COLD_MOVE,
    DrainRequested(host="h1", power_off=True),
    UndrainRequested(host="h1", drain="op-1", power_on=True),
    PowerRequested(host="h1", action="off"),
    HostAdded(host="h9", config=HostConfig(agent="https://h9:8444")),
    HostRemoved(host="h9"),
)

EVERY_EVENT: tuple[Event, ...] = (
    *REQUESTS,
    Admitted(),
    Withdrawn(reason="h2 is drained by now"),
    Recovered(epoch=2),
    CancelRequested(),
    Resumed(),
    Answered(side=Side.SOURCE, step="prepare", attempt=1, outcome=Outcome.DONE),
    Looked(source=None, target=None),
    HandingOver(paused_s=2.0),
    SwitchOverSeen(attempt=1, source=None, target=None),
    ChildEnded(child="op-1.1", state=OperationState.DONE, target="h2"),
    Chosen(guest="u", target="h2"),
    Surveyed(guests=()),
    StopAnswered(guest="u", attempt=1, outcome=Outcome.DONE),
    PowerChecked(reasons=()),
    PowerActed(action="off"),
    PowerRead(status="off"),
    HostChecked(reasons=()),
)
