"""What is forgotten changes no decision: drawn histories of hosts, and stories on the production core."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrd import roster
from migrd.control import DrainRequest, MigrateRequest, NotFound, UndrainRequest
from migrd.engine import Settings
from migrd.host_config import HostConfig
from migrd.model import HostState
from migrd.operations import OperationState
from migrd.projection import Record, administrative
from migrd.retention import DAY_S, Keep, last_drain, number, to_drop
from migrd.saga import SagaState, ended
from migrd.sagas.drain import DrainState
from migrd.sagas.drain import Phase as DrainPhase
from migrd.sagas.events import (
    DrainRequested,
    HostAdded,
    HostRemoved,
    MigrateRequested,
    PowerRequested,
    UndrainRequested,
)
from migrd.sagas.migrate_state import MigrateState, Stage
from migrd.sagas.power import Phase as PowerPhase
from migrd.sagas.power import PowerState
from migrd.sagas.roster import RosterState
from migrd.sagas.undrain import Phase as UndrainPhase
from migrd.sagas.undrain import UndrainState
from tests.core.fake_world import World
from tests.core.harness import Cluster3
from tests.core.vloop import run

HOSTS = ("h1", "h2")
NOW_S = 1_000 * DAY_S


def drain(phase: DrainPhase, *, off: bool = False, host: str = "h1") -> DrainState:
    return DrainState(operation="op", request=DrainRequested(host=host), phase=phase, off=off)


def undrain(phase: UndrainPhase, *, usable: bool, host: str = "h1") -> UndrainState:
    request = UndrainRequested(host=host, drain="", power_on=False)
    return UndrainState(operation="op", request=request, phase=phase, usable=usable)


def power(action: str, phase: PowerPhase, host: str = "h1") -> PowerState:
    return PowerState(operation="op", request=PowerRequested(host=host, action=action), phase=phase)  # type: ignore[arg-type]


def move(stage: Stage, parent: str = "") -> MigrateState:
    request = MigrateRequested(
        guest="g",
        name="g",
        source="h1",
        source_node="n1",
        target="h2",
        target_node="n2",
        target_uri="qemu+tls://h2/system",
        target_address="tcp://h2",
        volumes=(),
        parent=parent,
    )
    return MigrateState(operation="op", request=request, stage=stage)


def about(host: str) -> st.SearchStrategy[SagaState]:
    done = [
        drain(DrainPhase.DONE, host=host),
        drain(DrainPhase.DONE, off=True, host=host),
        drain(DrainPhase.UNDONE, host=host),
        undrain(UndrainPhase.DONE, usable=True, host=host),
        undrain(UndrainPhase.UNDONE, usable=False, host=host),
        undrain(UndrainPhase.UNDONE, usable=True, host=host),
    ]
    done += [
        power(action, phase, host)
        for action in ("on", "off")
        for phase in (PowerPhase.DONE, PowerPhase.FAILED)
    ]
    config = HostConfig(agent=f"https://{host}.example:7443")
    done += [
        RosterState(operation="op", request=HostAdded(host=host, config=config)),
        RosterState(operation="op", request=HostRemoved(host=host)),
    ]
    return st.sampled_from(done)


LAST = st.sampled_from([drain(DrainPhase.PARKED), undrain(UndrainPhase.RESTORE, usable=True), None])


@st.composite
def histories(draw: st.DrawFn) -> list[Record]:
    """Operations one after the other per host, the last one perhaps open; clocks that jump; moves between."""
    states: list[SagaState] = draw(
        st.lists(st.one_of(about("h1"), about("h2"), st.just(move(Stage.DONE)), st.just(move(Stage.PARKED))))
    )
    last = draw(LAST)
    if last is not None:
        states.append(last)
    records = []
    for n, state in enumerate(states, start=1):
        at_s = NOW_S - draw(st.floats(0, 200)) * DAY_S
        record = Record(id=f"op-{n:06d}", state=state, requested_at_s=at_s, seq=n * 10)
        record.ended_at_s = at_s if ended(state) else None
        records.append(record)
        if isinstance(state, DrainState):
            for child in range(draw(st.integers(0, 2))):
                stage = draw(st.sampled_from([Stage.DONE, Stage.PARKED])) if not ended(state) else Stage.DONE
                records.append(
                    Record(
                        id=f"{record.id}.{child + 1}",
                        state=move(stage, record.id),
                        requested_at_s=at_s,
                        seq=n * 10 + child + 1,
                        parent=record.id,
                        ended_at_s=at_s if stage is Stage.DONE else None,
                    )
                )
    return records


def decided(records: list[Record]) -> tuple[object, ...]:
    """All that the core asks the past."""
    drains = {host: last_drain(records, host) for host in HOSTS}
    open_ids = [r.id for r in records if not ended(r.state)]
    family = [r.id for r in records if r.parent in open_ids]
    newest = max((number(r.id) for r in records), default=0)
    return administrative(records), drains, open_ids, family, newest, hosts_added(records)


def hosts_added(records: list[Record]) -> dict[str, HostConfig]:
    added: dict[str, HostConfig] = {}
    for record in records:
        if isinstance(record.state, RosterState):
            added = roster.after(added, record.state.request)
    return added


@settings(max_examples=500, deadline=None)
@given(histories(), st.integers(1, 6), st.floats(0.1, 300), st.data())
def test_no_decision_depends_on_what_is_dropped_nor_on_where_dropping_stops(
    records: list[Record], operations: int, days: float, data: st.DataObject
) -> None:
    before = decided(records)
    names = to_drop(records, NOW_S, Keep(operations=operations, days=days))
    for count in range(len(names) + 1):
        gone = set(names[:count])
        left = [r for r in records if r.id not in gone]
        assert decided(left) == before
    assert all(ended(r.state) for r in records if r.id in names)
    # And nothing that happens later finds a difference either.
    later = [
        Record(id=f"op-9{n:05d}", state=state, requested_at_s=NOW_S, seq=10_000 + n, ended_at_s=NOW_S)
        for n, state in enumerate(data.draw(st.lists(about("h2"), max_size=4)))
    ]
    assert decided(left + later) == decided(records + later)


@settings(max_examples=200, deadline=None)
@given(st.lists(about("h1"), min_size=30, max_size=60))
def test_what_a_host_needs_kept_is_bounded(states: list[SagaState]) -> None:
    records = [
        Record(id=f"op-{n:06d}", state=state, requested_at_s=0.0, seq=n, ended_at_s=0.0)
        for n, state in enumerate(states, start=1)
    ]
    names = to_drop(records, NOW_S, Keep(operations=1, days=1.0))
    assert len(records) - len(names) <= 5  # three that decide, the address, and the newest number


def test_bounds_that_make_no_sense_are_refused() -> None:
    for wrong in ({"operations": 0}, {"days": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            Keep(**wrong)  # type: ignore[arg-type]


def world() -> World:
    made = World()
    made.add_drbd("db", "h1", "h2")
    made.add_iscsi("web", "h1")
    return made


def test_a_daemon_forgets_what_has_ended_and_still_knows_its_hosts() -> None:
    """Memory and journal stay bounded while it runs; a restart finds the same; numbers are not used again."""

    async def story() -> None:
        async with Cluster3(world(), settings=Settings(keep=Keep(operations=3))) as cluster:
            for target in ("h2", "h3", "h1") * 4:
                moved = (
                    await cluster.controller.migrate("web", MigrateRequest(to=target))
                    if (target not in places(cluster))
                    else None
                )
                if moved is not None:
                    await cluster.until(moved.id)
            drained = await cluster.controller.drain("h1", DrainRequest(power_off=True))
            assert (await cluster.until(drained.id)).state is OperationState.DONE
            for _ in range(5):
                moved = await cluster.controller.migrate(
                    "web", MigrateRequest(to="h3" if "h2" in places(cluster) else "h2")
                )
                await cluster.until(moved.id)
            newest = moved.id
            await asyncio.sleep(60.0)
            kept = cluster.controller.operations(limit=1000)
            assert len(kept) == 4  # three, and the drain that says that h1 is off
            with pytest.raises(NotFound):
                cluster.controller.operation("op-000001")
            assert cluster.controller.administrative() == {"h1": HostState.OFF}
            await cluster.kill()
            await cluster.start()
            assert [op.id for op in cluster.controller.operations(limit=1000)] == [op.id for op in kept]
            assert [dataclasses.replace(op, progress=None) for op in kept] == list(
                cluster.controller.operations(limit=1000)
            )
            assert cluster.controller.administrative() == {"h1": HostState.OFF}
            back = await cluster.controller.undrain("h1", UndrainRequest(restore=True))
            assert number(back.id) == number(newest) + 1
            assert (await cluster.until(back.id)).state is OperationState.DONE
            assert cluster.controller.administrative() == {}
            cluster.assert_clean()

    run(story())


def places(cluster: Cluster3) -> list[str]:
    """Where "web" runs."""
    return [g.host for g in cluster.controller.cluster().guests if g.name == "web" and g.state.has_process]


def test_a_parked_operation_is_seen_however_old() -> None:
    """It stays in the journal, in memory, in `open_operations` and so in status and metrics."""

    async def story() -> None:
        async with Cluster3(world(), settings=Settings(keep=Keep(operations=1))) as cluster:
            parked = await cluster.controller.migrate("db", MigrateRequest())
            await asyncio.sleep(0.05)
            cluster.world.machines["h2"].agent = False
            for n in range(6):
                moved = await cluster.controller.migrate("web", MigrateRequest(to=("h3", "h1")[n % 2]))
                await cluster.until(moved.id)
            await asyncio.sleep(60.0)
            assert len(cluster.controller.operations(limit=1000)) <= 3
            assert parked.id in [op.id for op in cluster.controller.open_operations()]
            await cluster.kill()
            await cluster.start()
            assert parked.id in [op.id for op in cluster.controller.open_operations()]

    run(story())
