"""The dual-primary window on a pair that behaves as the real one: opened, used, always closed (I6)."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from storage.drbd.driver import DrbdDriver
from storage.errors import Failed, OutcomeError, Refused, Retryable, Unknown
from storage.words import DrbdVolume, Handover, Health, Role, Side
from tests.storage.fake_drbd import Pair, proc_drbd

VOLUME = DrbdVolume(resource="r0", volume_nr=0, minor=0, nodes=("u1", "u2"))
UUID = "11111111-2222-3333-4444-555555555555"


class Cluster:
    """u1 runs the guest and is the source; u2 is the target."""

    def __init__(self, tmp_path):
        self.pair = Pair()
        self.qemu = {"u1": True, "u2": False}
        self.source = self._driver("u1", tmp_path)
        self.target = self._driver("u2", tmp_path)
        self.source_side = Handover(operation="o", domain_uuid=UUID, side=Side.SOURCE, peer_node="u2")
        self.target_side = Handover(operation="o", domain_uuid=UUID, side=Side.TARGET, peer_node="u1")
        self.before = {}

    def _driver(self, node, tmp_path):
        async def in_use(domain_uuid):
            assert domain_uuid == UUID
            return self.qemu[node]

        return DrbdDriver(
            in_use=in_use,
            node=node,
            run=self.pair.tool(node),
            proc_drbd=proc_drbd(tmp_path),
            demote_deadline_s=0,
        )

    async def open(self, node):
        driver, side = self._of(node)
        self.before[node] = await driver.open_window(VOLUME, side)

    async def close(self, node):
        driver, side = self._of(node)
        await driver.close_window(VOLUME, side, self.before.get(node))

    async def acquire(self):
        await self.target.acquire(VOLUME, self.target_side)

    async def move(self):
        """What libvirt does: QEMU ends here and runs there."""
        self.qemu = {"u1": False, "u2": True}
        self.pair.held_open = {"u2"}

    async def release(self, node):
        driver, side = self._of(node)
        await driver.release(VOLUME, side)

    def _of(self, node):
        return (self.source, self.source_side) if node == "u1" else (self.target, self.target_side)


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def handover(c: Cluster) -> list[Callable[[], Awaitable[None]]]:
    return [
        lambda: c.source.prepare(VOLUME, c.source_side),
        lambda: c.target.prepare(VOLUME, c.target_side),
        lambda: c.open("u1"),
        lambda: c.open("u2"),
        c.acquire,
        c.move,
        lambda: c.release("u1"),
        lambda: c.close("u1"),
        lambda: c.close("u2"),
    ]


async def test_a_whole_handover_leaves_the_target_primary_and_the_flag_off(cluster):
    for call in handover(cluster):
        await call()
    assert cluster.pair.role == {"u1": "Secondary", "u2": "Primary"}
    assert cluster.pair.flag == {"u1": False, "u2": False}
    assert not cluster.pair.dual_primary_without_flag
    assert not any("--force" in word for call in cluster.pair.calls for word in call)  # I8


async def test_every_call_may_be_repeated(cluster):
    for call in handover(cluster)[2:]:
        await call()
        await call()
    assert cluster.pair.role == {"u1": "Secondary", "u2": "Primary"}
    assert cluster.pair.flag == {"u1": False, "u2": False}


@pytest.mark.parametrize("done", range(6))
async def test_undo_after_every_prefix_leaves_the_flag_cleared(cluster, done):
    for call in handover(cluster)[:done]:
        await call()
    cluster.before.clear()  # the crash lost the answers, too
    await cluster.release("u2")
    await cluster.close("u1")
    await cluster.close("u2")
    assert cluster.pair.role == {"u1": "Primary", "u2": "Secondary"}  # the guest never noticed
    assert cluster.pair.flag == {"u1": False, "u2": False}


@pytest.mark.parametrize("done", range(6, 10))
async def test_forward_after_every_prefix_past_the_move_leaves_the_flag_cleared(cluster, done):
    for call in handover(cluster)[:done]:
        await call()
    await cluster.release("u1")
    await cluster.close("u2")
    await cluster.close("u1")
    assert cluster.pair.role == {"u1": "Secondary", "u2": "Primary"}
    assert cluster.pair.flag == {"u1": False, "u2": False}


async def test_open_again_after_a_crash_does_not_take_the_open_window_for_the_state_before(cluster):
    await cluster.open("u1")
    await cluster.open("u1")
    assert cluster.before["u1"].allow_two_primaries is False


@pytest.mark.parametrize(
    ("sick", "word"),
    [
        (lambda p: setattr(p, "linked", False), "not connected"),
        (lambda p: p.disk.update(u2="Inconsistent"), "Inconsistent"),
        (lambda p: p.disk.update(u1="Outdated"), "Outdated"),
        (lambda p: setattr(p, "out_of_sync", 4), "4 KiB are out of sync"),
        (lambda p: setattr(p, "protocol", "A"), "protocol A"),
    ],
)
async def test_no_window_on_a_sick_resource(cluster, sick, word):
    sick(cluster.pair)
    for call in (
        lambda: cluster.open("u1"),
        lambda: cluster.open("u2"),
        lambda: cluster.source.prepare(VOLUME, cluster.source_side),
    ):
        with pytest.raises(Refused, match=word):
            await call()
    assert cluster.pair.flag == {"u1": False, "u2": False}


async def test_target_that_lost_the_link_is_not_promoted(cluster):
    await cluster.open("u1")
    await cluster.open("u2")
    cluster.pair.linked = False
    with pytest.raises(Refused, match="not connected"):
        await cluster.acquire()
    assert cluster.pair.role["u2"] == "Secondary"


async def test_i7_a_link_that_breaks_at_the_promotion_is_seen_and_the_target_demoted(cluster):
    await cluster.open("u1")
    await cluster.open("u2")
    cluster.pair.unlink_at_promotion = True
    with pytest.raises(Refused, match="not connected"):
        await cluster.acquire()
    assert cluster.pair.role == {"u1": "Primary", "u2": "Secondary"}


async def test_i7_a_repeated_acquire_does_not_take_an_ill_primary_for_done(cluster):
    for call in handover(cluster)[:5]:
        await call()
    cluster.pair.linked = False
    with pytest.raises(Refused, match="not connected"):
        await cluster.acquire()
    assert cluster.pair.role["u2"] == "Secondary"


async def test_i7_a_guest_that_has_the_ill_volume_open_keeps_it(cluster):
    for call in handover(cluster)[:6]:
        await call()
    cluster.pair.linked = False
    with pytest.raises(Unknown, match="could not be demoted"):
        await cluster.acquire()
    assert cluster.pair.role["u2"] == "Primary"


@pytest.mark.parametrize(
    ("sick", "word"),
    [
        (lambda p: setattr(p, "linked", False), "not connected"),
        (lambda p: p.disk.update(u2="Inconsistent"), "Inconsistent"),
        (lambda p: setattr(p, "out_of_sync", 4), "4 KiB are out of sync"),
    ],
)
async def test_i7_a_break_during_the_copy_is_seen_from_the_source(cluster, sick, word):
    for call in handover(cluster)[:5]:
        await call()
    assert await cluster.source.reasons_apart(VOLUME, cluster.source_side) == ()
    sick(cluster.pair)
    assert any(word in why for why in await cluster.source.reasons_apart(VOLUME, cluster.source_side))


async def test_a_look_that_cannot_tell_raises_and_is_no_break(cluster):
    cluster.pair.cut = {"events2"}
    with pytest.raises(Retryable):
        await cluster.source.reasons_apart(VOLUME, cluster.source_side)
    cluster.pair.hang = {"events2"}
    with pytest.raises(Unknown):
        await cluster.source.reasons_apart(VOLUME, cluster.source_side)


async def test_no_promotion_without_the_window(cluster):
    with pytest.raises(Refused, match="two primaries are not allowed"):
        await cluster.acquire()
    await cluster.open("u2")  # here allowed, but not on the peer: the kernel refuses and is believed
    with pytest.raises(Failed, match="Multiple primaries not allowed"):
        await cluster.acquire()
    assert cluster.pair.role["u2"] == "Secondary"


async def test_source_is_not_demoted_while_its_qemu_lives(cluster):
    with pytest.raises(Refused, match="still exists"):
        await cluster.release("u1")
    assert cluster.pair.role["u1"] == "Primary"


async def test_demotion_waits_for_the_last_close_and_then_says_who(cluster):
    cluster.qemu["u1"] = False
    with pytest.raises(Retryable, match="held open"):
        await cluster.release("u1")
    cluster.pair.held_open.clear()
    await cluster.release("u1")
    assert cluster.pair.role["u1"] == "Secondary"


async def test_flag_is_not_cleared_while_both_are_primary(cluster):
    for call in handover(cluster)[:5]:
        await call()
    for node in ("u1", "u2"):
        with pytest.raises(Refused, match="primary on both hosts"):
            await cluster.close(node)
    assert cluster.pair.flag == {"u1": True, "u2": True}


async def test_hanging_tools_are_unknown_and_reported_from_proc(cluster):
    cluster.pair.hang = {"events2"}
    for call in (lambda: cluster.open("u1"), cluster.acquire, lambda: cluster.close("u1")):
        with pytest.raises(Unknown):
            await call()
    report = await cluster.source.inspect(VOLUME)
    assert (report.role, report.health, report.identity) == (Role.PRIMARY, Health.UNKNOWN, None)
    assert report.dual_primary_allowed  # not known, so it may be
    assert report.sole_current_copy


@pytest.mark.parametrize("tool", ["events2", "show"])
async def test_i19_a_garbled_answer_is_asked_for_again_and_undoes_nothing(cluster, tool):
    """REFUSED would turn the whole move round for one read that was cut short."""
    for call in handover(cluster)[:4]:
        cluster.pair.cut = {tool}
        with pytest.raises(Retryable, match="could not be read completely"):
            await call()
        cluster.pair.cut = set()
        await call()
    cluster.pair.cut = {tool}
    with pytest.raises(Retryable, match="could not be read completely"):
        await cluster.acquire()
    with pytest.raises((Retryable, Unknown), match="could not be read completely"):
        await cluster.close("u2")
    assert cluster.pair.role["u2"] == "Secondary"


async def test_a_hung_promotion_is_unknown_and_undo_still_closes(cluster):
    await cluster.open("u1")
    await cluster.open("u2")
    cluster.pair.hang = {"primary"}
    with pytest.raises(Unknown):
        await cluster.acquire()
    await cluster.release("u2")
    await cluster.close("u1")
    await cluster.close("u2")
    assert cluster.pair.flag == {"u1": False, "u2": False}


async def test_both_hosts_report_one_identity(cluster):
    reports = [await driver.inspect(VOLUME) for driver in (cluster.source, cluster.target)]
    assert reports[0].identity == reports[1].identity
    assert reports[0].identity is not None
    assert reports[0].identity.startswith("drbd:r0/0:65496KiB:F7268911AEA8B24C:")
    assert {report.size_bytes for report in reports} == {65496 * 1024}
    assert [report.health for report in reports] == [Health.OK, Health.OK]


async def test_other_minor_on_this_host_is_refused(cluster):
    other = DrbdVolume(resource="r0", volume_nr=0, minor=7, nodes=("u1", "u2"))
    with pytest.raises(Refused, match="is minor 0 on this host and 7 on the other"):
        await cluster.target.prepare(other, cluster.target_side)
    assert await cluster.target.reach(other)
    assert await cluster.target.reach(VOLUME) == ()


async def test_identical_calls_at_once_act_once(cluster):
    await asyncio.gather(*(cluster.open("u1") for _ in range(5)))
    acted = [call for call in cluster.pair.calls if "net-options" in call]
    assert len(acted) == 1


async def test_module_not_loaded(cluster, tmp_path):
    async def in_use(domain_uuid):
        return False

    driver = DrbdDriver(in_use=in_use, node="u1", run=cluster.pair.tool("u1"), proc_drbd=tmp_path / "none")
    report = await driver.inspect(VOLUME)
    assert (report.role, report.health) == (Role.DETACHED, Health.UNREACHABLE)
    assert report.sole_current_copy, "its disk may be the newest there is"
    with pytest.raises(OutcomeError, match="modprobe drbd"):
        await driver.open_window(VOLUME, cluster.source_side)
    assert [v.name for v in await driver.volumes()] == ["drbd:r0/0", "drbd:r1/0"]
    # After a reboot without DRBD: no module, so no role to give up and no flag to clear.
    await driver.release(VOLUME, cluster.source_side)
    await driver.close_window(VOLUME, cluster.source_side, None)
    assert all("dump-xml" in call for call in cluster.pair.calls)


@pytest.mark.parametrize("content", ["", "version: tomorrow\n", None])
async def test_i19_a_module_that_cannot_be_recognised_is_unknown_never_absent(cluster, tmp_path, content):
    async def in_use(domain_uuid):
        return False

    proc = tmp_path / "strange"
    if content is None:
        proc.mkdir()  # reading it fails with another error than "no such file"
    else:
        proc.write_text(content)
    driver = DrbdDriver(in_use=in_use, node="u1", run=cluster.pair.tool("u1"), proc_drbd=proc)
    report = await driver.inspect(VOLUME)
    assert (report.role, report.health) == (Role.UNKNOWN, Health.UNKNOWN)
    assert report.dual_primary_allowed
    assert report.sole_current_copy
    for call in (
        driver.release(VOLUME, cluster.source_side),
        driver.close_window(VOLUME, cluster.source_side, None),
    ):
        with pytest.raises(Unknown):
            await call


async def test_i5_a_replica_leaves_in_good_order_and_comes_back(cluster: Cluster) -> None:
    await cluster.target.disconnect(VOLUME)
    assert not cluster.pair.linked
    await cluster.target.disconnect(VOLUME)  # safe to repeat: it has left already
    assert [call[1:] for call in cluster.pair.calls].count(("drbdadm", "disconnect", "r0")) == 1
    await cluster.target.connect(VOLUME)
    assert cluster.pair.linked


async def test_i5_a_primary_never_leaves(cluster: Cluster) -> None:
    with pytest.raises(Refused, match="not secondary"):
        await cluster.source.disconnect(VOLUME)
    assert cluster.pair.linked


async def test_a_connection_given_up_over_the_flag_is_taken_up_again(
    cluster: Cluster,
) -> None:
    """DRBD 8.4 compares the option when it connects; a target that rebooted in mid-copy has it off."""
    cluster.pair.linked, cluster.pair.given_up = False, True
    await cluster.close("u2")
    assert cluster.pair.linked
    assert ("u2", "drbdadm", "adjust", "r0") in cluster.pair.calls
