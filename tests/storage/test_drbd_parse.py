"""DRBD's tools as they really spoke, whole, cut at every byte, and in words nobody knows (I19)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.drbd import decide, parse, show
from storage.drbd.model import Disk, Link, Options, Replication, Status
from storage.words import Health, Role
from tests.storage.samples import DATA, STATES_84, one_resource, state_84

EVENTS = {name: one_resource(state_84(name, "events2.txt")) for name in STATES_84}
JSON = (DATA / "drbd9" / "status.json").read_text()
SHOW_9 = (DATA / "drbd9" / "show.txt").read_text()


@pytest.mark.parametrize(
    ("state", "resource", "health", "role", "peer", "sole"),
    [
        ("connected", "r0", Health.OK, Role.PRIMARY, Role.SECONDARY, False),
        ("connected_secondary", "r0", Health.OK, Role.SECONDARY, Role.PRIMARY, False),
        ("dual_primary", "r0", Health.OK, Role.PRIMARY, Role.PRIMARY, False),
        ("after_migration", "r0", Health.OK, Role.PRIMARY, Role.SECONDARY, False),
        ("syncing_r1_source", "r1", Health.SYNCING, Role.SECONDARY, Role.SECONDARY, True),
        ("verify", "r0", Health.SYNCING, Role.PRIMARY, Role.SECONDARY, False),
        ("paused_sync_r1", "r1", Health.DEGRADED, Role.SECONDARY, Role.SECONDARY, False),
        ("suspended", "r0", Health.SUSPENDED, Role.PRIMARY, Role.SECONDARY, False),
        ("disconnected_primary", "r0", Health.DEGRADED, Role.PRIMARY, Role.UNKNOWN, True),
        ("standalone_primary", "r0", Health.DEGRADED, Role.PRIMARY, Role.UNKNOWN, True),
    ],
)
def test_what_a_real_84_said_is_understood(state, resource, health, role, peer, sole):
    status = parse.events2(one_resource(state_84(state, "events2.txt"), resource), resource)
    assert decide.health(status) is health
    assert (status.role, decide.peer_role(status)) == (role, peer)
    assert decide.sole_current_copy(status, 0) is sole
    assert status.devices[0].size_kib == 65496
    assert bool(decide.all_reasons(status)) is (health is not Health.OK)


@pytest.mark.parametrize("state", STATES_84)
def test_output_cut_at_any_byte_is_never_healthy(state):
    text, options = EVENTS[state], show.parse(state_84("connected", "show_r0.txt"), "r0")
    # Every byte of the healthiest one; of the others every third, which still meets every line and word.
    for end in range(0, len(text), 1 if state == "connected" else 3):
        status = parse.events2(text[:end], "r0")
        assert not status.complete
        assert decide.health(status) is Health.UNKNOWN
        assert decide.reasons_not_to_open(status, options, peer_node="u2", major=8)
        assert decide.reasons_not_to_promote(status, options, peer_node="u2", major=8)
        assert decide.reasons_not_to_close(status, resource="r0")
        assert decide.identity(status, options, 0, "F7268911AEA8B24C") is None


def test_options_cut_at_any_byte_never_say_that_the_flag_is_off():
    for text, name, major, peer in (
        (state_84("dual_primary", "show_r0.txt"), "r0", 8, "u1"),
        (SHOW_9, "web", 9, "h2"),
    ):
        assert decide.is_open(show.parse(text, name), peer, major) is True
        for end in range(len(text.rstrip())):
            options = show.parse(text[:end], name)
            assert decide.is_open(options, peer, major) is None, text[:end][-40:]
            assert options.dual_primary_allowed
            assert decide.reasons_against_window(decide.path_of(options, peer, major), options, peer)


def test_json_cut_at_any_byte_is_unknown():
    for end in range(len(JSON.rstrip())):
        assert decide.health(parse.status_json(JSON[:end], "web")) is Health.UNKNOWN


@pytest.mark.parametrize("word", ["Connected", "Established", "UpToDate", "Primary", "suspended:no"])
def test_a_word_of_tomorrow_is_never_safe(word):
    text = EVENTS["connected"].replace(word, "suspended:maybe" if ":" in word else "Quantum")
    status = parse.events2(text, "r0")
    assert decide.health(status) is not Health.OK
    options = show.parse(state_84("connected", "show_r0.txt"), "r0")
    if word != "Primary":  # who is primary does not matter for opening, only for promoting
        assert decide.reasons_not_to_open(status, options, peer_node="u2", major=8)


def test_unknown_lines_and_keywords_are_passed_over():
    extra = (
        "exists path name:r0 peer-node-id:0 local:x peer:y established:yes\nexists comet name:r0 tail:long\n"
    )
    text = EVENTS["connected"].replace("congested:no", "congested:no colour:blue")
    status = parse.events2(extra + text, "r0")
    assert decide.health(status) is Health.OK


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_garbage_never_raises_and_never_looks_healthy(text):
    assert decide.health(parse.events2(text, "r0")) in (Health.UNKNOWN, Health.UNREACHABLE)
    assert decide.health(parse.status_json(text, "r0")) in (Health.UNKNOWN, Health.UNREACHABLE)
    assert decide.is_open(show.parse(text, "r0"), "u2", 8) is not True
    assert parse.current_uuid(text) is None
    parse.proc_drbd(text, 0)
    parse.dump_xml(text, "u1")


def test_resource_that_is_down_is_unreachable_not_unknown():
    assert decide.health(parse.events2("exists -\n", "r0")) is Health.UNREACHABLE


def test_proc_drbd_shows_roles_while_the_tools_hang():
    primary = parse.proc_drbd(state_84("disconnected_primary", "proc_drbd.txt"), 0)
    assert primary is not None
    assert (primary.role, primary.connections[0].role) == (Role.PRIMARY, Role.UNKNOWN)
    assert primary.connections[0].link is Link.CONNECTING
    assert primary.connections[0].disks[0].out_of_sync_kib == 40
    syncing = parse.proc_drbd(state_84("syncing_r1_source", "proc_drbd.txt"), 1)
    assert syncing is not None
    assert syncing.connections[0].disks[0].replication is Replication.SYNC_SOURCE
    assert not syncing.complete  # so nothing is ever decided from it
    assert parse.proc_drbd("version: 8.4.11\n", 0) is None
    assert parse.version(state_84("connected", "proc_drbd.txt")) == (8, "8.4.11")


def test_primary_and_secondary_have_the_same_generation_but_fresh_metadata_has_none():
    primary = parse.current_uuid(state_84("connected", "get_gi_0.txt"))
    secondary = parse.current_uuid(state_84("connected_secondary", "get_gi_0.txt"))
    assert primary == secondary == "F7268911AEA8B24C"
    # A primary that wrote alone has started another generation: no longer the same disk.
    behind = parse.ancestor_uuids(state_84("disconnected_primary", "get_gi_0.txt"))
    assert primary in behind, "a primary that wrote alone descends from what its peer still has"
    assert primary not in parse.ancestor_uuids(state_84("connected", "get_gi_0.txt"))
    assert parse.ancestor_uuids("garbage") == ()
    assert parse.current_uuid(state_84("disconnected_primary", "get_gi_0.txt")) != primary
    zero = ":0000000000000000:0000000000000000:0000000000000000:1:1:0:1:0:0:0\n"
    assert parse.current_uuid(f"0000000000000004{zero}") is None
    assert parse.current_uuid(f"0000000000000005{zero}") is None
    assert parse.current_uuid(f"0000000000000000{zero}") is None


def test_generation_cut_at_any_byte_is_no_proof():
    text = state_84("connected", "get_gi_0.txt")
    assert all(parse.current_uuid(text[:end]) is None for end in range(len(text)))


@pytest.mark.parametrize("complete", [True, False])
def test_i12_a_resource_that_is_not_up_may_hold_the_only_current_copy(complete):
    """Simulator, seed 302183369498: right after a boot. Its disk says nothing, and its peer cannot know."""
    down = Status(resource="r0", role=Role.UNKNOWN, suspended="no", complete=complete)
    assert decide.sole_current_copy(down, 0)


def test_drbd_9_json_and_options():
    status, options = parse.status_json(JSON, "web"), show.parse(SHOW_9, "web")
    assert (status.role, status.suspended, status.devices[0].disk) == (Role.PRIMARY, "no", Disk.UP_TO_DATE)
    assert decide.reasons_not_to_open(status, options, peer_node="h2", major=9) == ()
    reasons = decide.reasons_not_to_open(status, options, peer_node="h3", major=9)
    assert any("not connected" in reason for reason in reasons)
    assert any("protocol A" in reason for reason in reasons)
    assert any("after-sb-1pri is discard-secondary" in reason for reason in reasons)
    assert decide.reasons_not_to_open(status, options, peer_node="h4", major=9)
    assert decide.health(status) is Health.DEGRADED  # one peer of two is away
    assert decide.sole_current_copy(status, 0) is False  # h2 has it
    assert decide.peer_role(status) is Role.UNKNOWN
    assert decide.is_open(options, "h2", 9) is True
    assert decide.is_open(options, "h3", 9) is False


def test_secrets_in_the_options_are_not_kept():
    assert "do-not-log-me" in SHOW_9
    assert "do-not-log-me" not in repr(show.parse(SHOW_9, "web"))


def test_suspended_words_of_drbd_9():
    for key, word in (("suspended-quorum", "quorum"), ("suspended-fencing", "fencing")):
        text = JSON.replace('"suspended": false', '"suspended": true').replace(
            f'"{key}": false', f'"{key}": true'
        )
        status = parse.status_json(text, "web")
        assert status.suspended == word
        assert decide.health(status) is Health.SUSPENDED


def test_torn_down_connection_has_no_flag_left():
    options = show.parse(state_84("standalone_primary", "show_r0.txt"), "r0")
    assert options == Options("r0", (), complete=True)
    assert decide.is_open(options, "u2", 8) is False
    assert not options.dual_primary_allowed


def test_configuration_names_nodes_and_minors():
    found = parse.dump_xml((DATA / "drbd84" / "dump.xml").read_text(), "u2")
    assert found is not None
    assert [(c.resource, c.volume, c.minor, c.nodes, c.two_primaries) for c in found] == [
        ("r0", 0, 0, ("u1", "u2"), False),
        ("r1", 0, 1, ("u1", "u2"), False),
    ]
    assert parse.dump_xml((DATA / "drbd84" / "dump.xml").read_text(), "u3") == ()
    assert parse.dump_xml("<config><resource", "u2") is None
    assert parse.dump_xml("<!DOCTYPE a><config/>", "u2") is None
