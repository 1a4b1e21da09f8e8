"""libvirt's peer-to-peer migration between two machines of the world: it needs no agent and no daemon.

prepare -> copy -> switch -> confirm -> ended. Broken before the switch-over it leaves the guest where it was,
and an incoming QEMU that the target's libvirtd kills when it notices.

The answer that the guest runs on the target can be lost with the link: unheard. It comes when the link heals;
before that the source's keepalive gives up, and the guest runs there too, unless somebody has ended it. A
libvirtd of the target that dies between the two (`dies`) is silent as well while its agent holds the
connection; else its kernel closes it, and both run at once. Where no agent could have held it, that cannot be
helped (`World.twice`): whoever sees it has to say so, and touch nothing.

A target that loses its power in the switch-over: QEMU had sent all, and libvirt lets the guest run again, or
it had not, and is stuck in the kernel with the guest paused, until TCP gives up or somebody cuts the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agents.hypervisor.verdicts import OPERATION_FAILED, verdict
from agents.protocol import DomainState, MigrationProgress
from storage.errors import OutcomeError
from storage.words import DrbdVolume
from tests.core.vloop import Life
from tests.sim.cold import ColdActs
from tests.sim.world import Domain, Machine, World

OPERATION_ABORTED = 78
INTERNAL_ERROR = 1
PREPARE_S = (0.05, 0.3)
COPY_S = (0.5, 6.0)
LONG_COPY_S = (6.0, 40.0)
SWITCH_S = (0.02, 0.3)
CONFIRM_S = (0.02, 0.5)
HELD_WITHIN_S = 1.0  # of an arrival's beginning, by an agent that is there
NOTICED_S = (0.1, 1.5)  # libvirtd sees a closed connection
NOTICED_LATE_S = (5.0, 25.0)  # ... or has to wait for its keepalive
UNKNOWABLE_S = 1.5  # replication lost right before the switch-over: libvirt has no way to hold it back
FORGOTTEN = 0.2  # share of left-overs that libvirtd does not clear away in any useful time
FORGOTTEN_S = 3600.0
KEEPALIVE_S = 30.0  # keepalive_interval * (keepalive_count + 1) of qemu.conf
TCP_GIVES_UP_S = 924.0  # tcp(7), tcp_retries2
STUCK_AT_MOST_S = 30.0  # longer than a slow agent needs to see it and to cut the stream
MIB = 1 << 20


@dataclass(eq=False)
class Hold:
    """A duplicate of the connection of the target's libvirtd, see agents.arrivals."""

    life: Life
    on_let_go: Callable[[], None]
    let_go: bool = False

    @property
    def open(self) -> bool:
        return not (self.let_go or self.life.dead)


class Migration:
    """`error` None and `phase` "ended": libvirt says success. `on_end` is called once."""

    def __init__(self, world: World, uuid: str, source: str, target: str) -> None:
        self.world = world
        self.uuid = uuid
        self.source = source
        self.target = target
        self.phase = "prepare"
        self.error: OutcomeError | None = None
        self.downtime_ms = 0
        self.lie = False  # the call reports an error although the guest moves
        self.loses_answer_s = 0.0  # how long the link is down, from when the target runs the guest on
        self.switch_s = 0.0  # if it is not to be by chance
        self.deaf_s = 0.0  # so long libvirt accepts an abort and does not follow it
        self.forks = False  # replication breaks in the instant before the guest is paused
        self.dies = False  # the target's libvirtd does, as soon as the guest runs there
        self._no_answer = False  # ... and did
        self._libvirtd = world.machines[target].libvirt_lives
        self._holds: list[Hold] = []
        self._arrives_s = 0.0  # since when it is to be seen there
        self.cuts = ""  # "source switch", "target confirm", ...: who loses its power in which phase
        self.copy_s = world.between(COPY_S if world.rng.random() < 0.7 else LONG_COPY_S)
        self._began_s = world.loop.time()
        self._incoming: Domain | None = None  # this migration's own, not a later one's
        self.stuck_s = 0.0  # since then
        self._unheard_s = 0.0  # since then
        self._paused_s = 0.0  # when the guest was paused for its switch-over

    @property
    def name(self) -> str:
        return self.world.guests[self.uuid].name

    @property
    def is_connected(self) -> bool:
        """Does the libvirtd of the target still live that it was begun with?"""
        there = self._there
        return self.phase != "ended" and there.libvirt_up and there.libvirt_lives == self._libvirtd

    @property
    def _here(self) -> Machine:
        return self.world.machines[self.source]

    @property
    def _there(self) -> Machine:
        return self.world.machines[self.target]

    def progress(self) -> MigrationProgress:
        total = self.world.guests[self.uuid].memory_bytes
        elapsed_s = self.world.loop.time() - self._began_s
        done = min(total, int(total * elapsed_s / self.copy_s))
        return MigrationProgress(
            elapsed_s=round(elapsed_s, 3),
            memory_total_bytes=total,
            memory_processed_bytes=done,
            memory_remaining_bytes=total - done,
            bandwidth_bps=100 * MIB,
        )

    def begin(self) -> None:
        self._here.domains[self.uuid].job = "out"
        self.world.changed(self.source, f"migration of {self.name} to {self.target} begins", uuid=self.uuid)
        self.world.later(self.world.between(PREPARE_S), self._prepared)

    # -- the good way ----------------------------------------------------------------------------

    def _prepared(self) -> None:
        if self.phase != "prepare":
            return
        world, there = self.world, self._there
        if not world.linked(self.source, self.target) or not there.libvirt_up:
            self._fail(OPERATION_FAILED, "failed to connect to remote libvirt URI")
            return
        if there.domains.get(self.uuid) is not None and there.domains[self.uuid].state.has_process:
            self._fail(INTERNAL_ERROR, "domain is already active on the target")
            return
        for volume in world.guests[self.uuid].volumes:
            if not world.holds(self.target, volume):
                self._fail(INTERNAL_ERROR, f"could not open {volume.name}")
                return
            if world.identity(self.source, volume) != world.identity(self.target, volume):
                world.trace.violate("I9", f"{self.name} opens another disk on {self.target}")
        self._incoming = there.domains[self.uuid] = Domain(
            DomainState.PAUSED_INCOMING, "migration", process=True, persistent=False, job="in"
        )
        self.phase = "copy"
        self._arrives_s = world.loop.time()
        world.changed(self.target, f"incoming QEMU of {self.name}", uuid=self.uuid)
        world.later(self.copy_s, self._copied)

    def _copied(self) -> None:
        if self.phase != "copy":
            return
        domain = self._here.domains[self.uuid]
        if domain.state is DomainState.SHUTDOWN:
            self.broken("the guest shut down", late=False)
            return
        if self.forks:
            self._break_replication()
        self.phase = "switch"
        domain.state, domain.reason = DomainState.PAUSED, "migration"
        self._paused_s = self.world.loop.time()
        self.world.changed(self.source, f"{self.name} pauses for the switch-over", uuid=self.uuid)
        pause_s = self.switch_s or self.world.between(SWITCH_S)
        self.downtime_ms = int(pause_s * 1000)
        self.world.later(pause_s, self._switched)
        self._power_goes(pause_s)

    def _switched(self) -> None:
        if self.phase != "switch":
            return
        self._lost_writes()
        domain = self._there.domains[self.uuid]
        domain.state, domain.reason, domain.ran = DomainState.RUNNING, "migrated", True
        domain.job, domain.persistent = "", True
        self.phase = "confirm"
        self.world.begins_to_execute(self.target, self.uuid, paused_s=self._paused_s)
        held = any(hold.open for hold in self._holds)
        if self.dies and not held and not self._could_be_held():
            self.world.twice.add(self.uuid)
        self.world.changed(self.target, f"{self.name} runs here now", uuid=self.uuid)
        if self.dies:
            self._no_answer = True
            self.world.libvirtd_dies(self.target)
            self._silent() if held else self._closed()
            return
        confirm_s = self.world.between(CONFIRM_S)
        self.world.later(confirm_s, self._confirmed)
        self._power_goes(confirm_s)
        if self.loses_answer_s:
            self.world.cut_link(self.source, self.target)
            self.world.later(self.loses_answer_s, self.world.heal_link, self.source, self.target)
        self._answer_on_its_way()  # the link may be down already

    def _break_replication(self) -> None:
        """DRBD alone gives the connection up: the last writes are on the source only."""
        for volume in self.world.guests[self.uuid].volumes:
            if isinstance(volume, DrbdVolume):
                self.world.drop_link(self.world.resources[volume.name], "in the instant of the switch-over")

    def _power_goes(self, within_s: float) -> None:
        """In the middle of a phase that takes so long."""
        whose, _, phase = self.cuts.partition(" ")
        if phase == self.phase:
            host = self.source if whose == "source" else self.target
            self.world.later(within_s / 2, self.world.power_off, host, f"in the phase {phase}")

    def _lost_writes(self) -> None:
        """Everything the guest wrote on the source must be on the disk that it finds.

        As far as anyone could know: the source's agent was there, had a moment to abort the copying, and its
        libvirt heard that. Otherwise both copies go their own ways from here on, and migrd has to say so.
        """
        here = self._here
        deaf_until_s = self._began_s + self.deaf_s if self.deaf_s else 0.0
        heard_s = float("inf") if here.unheard_aborts else max(here.heard_abort_s, deaf_until_s)
        watched_s = max(self.world.watched_since(self.source), here.libvirt_since_s, heard_s)
        for volume in self.world.guests[self.uuid].volumes:
            if isinstance(volume, DrbdVolume):
                resource = self.world.resources[volume.name]
                if resource.mine(self.source).generation == resource.mine(self.target).generation:
                    continue
                known_s = self._paused_s - max(resource.lost_s, watched_s)  # no abort helps from then on
                if known_s > UNKNOWABLE_S:
                    self.world.trace.violate("I7", f"{self.name} lost writes on its way to {self.target}")
                resource.forked = True

    def _confirmed(self) -> None:
        if self.phase != "confirm":
            return
        killed = not self._here.domains[self.uuid].process
        if not killed:
            self.world.end_process(self.source, self.uuid, keep=False, reason="migrated")
        if killed:
            self._end(self._verdict(INTERNAL_ERROR, "domain is not running"))
        elif self.lie:
            self._end(self._verdict(INTERNAL_ERROR, "End of file while reading data"))
        else:
            self._end(None)

    # -- the other ways --------------------------------------------------------------------------

    def abort(self) -> str:
        """virDomainAbortJob. Too late from the switch-over on. Has nothing to say: ''."""
        if self.world.loop.time() - self._began_s < self.deaf_s:
            return ""
        if self.phase in ("prepare", "copy"):
            self.broken("migration out job: canceled by client", late=False, code=OPERATION_ABORTED)
        return ""

    def reconsider(self) -> None:
        """A link, a power supply, a libvirtd or a QEMU has changed: does the stream still stand?"""
        if self.phase == "ended":
            return
        if not self._here.powered:
            self._source_lost()
        elif self.phase == "stuck":
            if self._there.powered and self.world.linked(self.source, self.target):
                self.cut()  # a kernel that does not know the stream resets it
        elif not self._there.powered:
            self._target_lost()
        elif self.phase in ("confirm", "unheard"):
            self._answer_on_its_way()
        elif self.phase in ("prepare", "copy") and not self._here.domains[self.uuid].process:
            self.broken("operation failed: domain is not running", late=False)
        elif self.phase == "copy" and not self.world.linked(self.source, self.target):
            self.broken("unable to connect: Connection timed out", late=True)
        elif self.phase in ("prepare", "copy") and not (self._here.libvirt_up and self._there.libvirt_up):
            self.broken("End of file while reading data: Input/output error", late=False)

    def hold(self, life: Life) -> Hold:
        """By the target's agent. What a dead process holds is closed."""
        hold = Hold(life, self._let_go)
        self._holds.append(hold)
        life.at_death.append(lambda: self._let_go(died=True))
        return hold

    def _could_be_held(self) -> bool:
        """Was the target's agent there in time, with a libvirt that told it of the arrival?"""
        since_s = max(self.world.watched_since(self.target), self._there.libvirt_since_s, self._arrives_s)
        return self.world.loop.time() - since_s > HELD_WITHIN_S

    def _let_go(self, *, died: bool = False) -> None:
        if self.phase == "unheard" and self._no_answer and not any(hold.open for hold in self._holds):
            if died:
                self.world.twice.add(self.uuid)
            self._closed()

    def _closed(self) -> None:
        """libvirt on the source takes that for an answer."""
        if self._here.domains[self.uuid].process:
            self._resume_source()
            self.world.changed(self.source, f"{self.name} runs here again", uuid=self.uuid)
        self._fail(INTERNAL_ERROR, "End of file while reading data: Input/output error")

    def _silent(self) -> None:
        self.phase, self._unheard_s = "unheard", self.world.loop.time()
        self.world.later(KEEPALIVE_S, self._given_up, self._unheard_s)

    def _answer_on_its_way(self) -> None:
        linked = self.world.linked(self.source, self.target)
        if self.phase == "confirm" and not linked:
            self._silent()
        elif self.phase == "unheard" and linked and not self._no_answer:
            self.phase = "confirm"
            self.world.later(self.world.between(CONFIRM_S), self._confirmed)

    def _given_up(self, unheard_s: float) -> None:
        """libvirt on the source has waited long enough: the guest runs here too, if its QEMU still lives."""
        if self.phase != "unheard" or self._unheard_s != unheard_s:
            return
        if not self._here.domains[self.uuid].process:
            self._fail(INTERNAL_ERROR, "domain is not running")
        elif self.world.led_since(self.source, self.target) <= unheard_s:
            self._resume_source()
            self._fail(OPERATION_FAILED, "migration successfully aborted")
        else:  # kinder than libvirt: nobody was there who could have helped, and no run could end well
            self.phase = "confirm"
            self._confirmed()

    def source_killed(self) -> None:
        """Somebody destroyed the source's QEMU. Only that of a guest that runs on the target is to go."""
        if self.phase in ("switch", "stuck"):
            self._fail(INTERNAL_ERROR, "domain is not running")
            self._sweep()

    def target_killed(self) -> None:
        """Somebody destroyed the incoming QEMU."""
        if self.phase == "copy":
            self.broken("unable to write to migration stream: Broken pipe", late=False)
        elif self.phase == "switch":
            self._resume_source()
            self._fail(INTERNAL_ERROR, "the target's QEMU has gone")

    def broken(self, message: str, *, late: bool, code: int = INTERNAL_ERROR) -> None:
        """Before the switch-over: the guest stays, the incoming QEMU goes once libvirtd there notices."""
        if self.phase in ("switch", "stuck", "confirm", "unheard", "ended"):
            return
        arrived = self.phase == "copy"
        self._fail(code, message)
        if arrived:
            noticed_s = self.world.between(NOTICED_LATE_S if late else NOTICED_S)
            if self.world.rng.random() < FORGOTTEN:
                noticed_s = FORGOTTEN_S
            self.world.later(noticed_s, self._sweep)

    def _source_lost(self) -> None:
        phase = self.phase
        self._end(self._verdict(INTERNAL_ERROR, "the source has no power"))
        if phase in ("copy", "switch"):
            self.world.later(self.world.between(NOTICED_LATE_S), self._sweep)

    def _target_lost(self) -> None:
        if self.phase in ("confirm", "unheard"):  # its QEMU was to go in any case: what counts has moved
            self.phase = "confirm"
            self._confirmed()
            return
        if self.phase == "switch" and int(self.copy_s * 1000) % 2:  # no dice: plans of old seeds stay
            self.phase, self.stuck_s = "stuck", self.world.loop.time()
            self.world.later(TCP_GIVES_UP_S, self.cut)
            self.world.later(STUCK_AT_MOST_S, self._still_stuck)
            return
        if self.phase == "switch":
            self._resume_source()
        self._fail(INTERNAL_ERROR, "unable to write to migration stream: Connection timed out")

    def _still_stuck(self) -> None:
        """Whoever was there all the time should have let the guest run again."""
        if self.phase == "stuck" and self.world.watched_since(self.source) <= self.stuck_s:
            self.world.trace.violate("I5", f"{self.name} stays paused for a target that is dead")

    def cut(self) -> None:
        """The stream is broken off: QEMU wakes up, and the guest runs where it was."""
        if self.phase in ("copy", "switch"):
            self.world.trace.violate("I5", f"the stream of {self.name} is cut while its target answers")
        if self.phase == "stuck":
            self._resume_source()
            self._fail(INTERNAL_ERROR, "unable to write to migration stream: Broken pipe")

    def _resume_source(self) -> None:
        domain = self._here.domains[self.uuid]
        domain.state, domain.reason = DomainState.RUNNING, "migration canceled"

    def _sweep(self) -> None:
        """The target's libvirtd kills what it was sent and will never be completed."""
        domain = self._there.domains.get(self.uuid)
        if domain is not self._incoming or domain is None or domain.state is not DomainState.PAUSED_INCOMING:
            return
        if not self._there.libvirt_up:
            self.world.later(1.0, self._sweep)
            return
        self.world.end_process(self.target, self.uuid, keep=False, reason="failed")

    def _fail(self, code: int, message: str) -> None:
        domain = self._here.domains.get(self.uuid)
        if domain is not None:
            domain.job = ""
        self._end(self._verdict(code, message))

    def _verdict(self, code: int, message: str) -> OutcomeError:
        """As LibvirtHypervisor.migrate tells it."""
        domain = self._here.domains.get(self.uuid)
        state = domain.state if domain is not None else DomainState.ABSENT
        return verdict(code, message, state, domain is not None and bool(domain.job))

    def _end(self, error: OutcomeError | None) -> None:
        domain = self._here.domains.get(self.uuid)
        if domain is not None:
            domain.job = ""
        self.phase, self.error = "ended", error
        word = "succeeded" if error is None else f"failed: {error}"
        self.world.changed(self.source, f"migration of {self.name} has {word}", uuid=self.uuid)


class Migrations:
    """All that run, by guest. Tells each of them when the world around it changes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._all: dict[str, Migration] = {}
        self.cold = ColdActs(world)
        self.lies: set[str] = set()  # guests whose next migration succeeds and is reported as failed
        self.copy_s: dict[str, float] = {}  # guest -> how long its memory takes each time, if not by chance
        self.loses_answer_s: dict[str, float] = {}  # guest -> how long: see Migration
        self.switch_s: dict[str, float] = {}  # guest -> how long its next switch-over takes
        self.deaf_s: dict[str, float] = {}  # guest -> how long libvirt follows no abort of its next migration
        self.forks: set[str] = set()  # guests whose replication breaks right before their next switch-over
        self.dies: set[str] = set()  # guests in whose next switch-over the target's libvirtd dies
        self.cuts: dict[str, str] = {}  # guest -> whose power goes in its next switch-over: see Migration
        world.link_changed = self.reconsider

    def begin(self, uuid: str, source: str, target: str) -> Migration:
        migration = self._all[uuid] = Migration(self._world, uuid, source, target)
        migration.copy_s = self.copy_s.get(uuid, migration.copy_s)
        migration.lie = uuid in self.lies
        self.lies.discard(uuid)
        migration.loses_answer_s = self.loses_answer_s.pop(uuid, 0.0)
        migration.switch_s = self.switch_s.pop(uuid, 0.0)
        migration.deaf_s = self.deaf_s.pop(uuid, 0.0)
        migration.cuts = self.cuts.pop(uuid, "")
        migration.forks, migration.dies = uuid in self.forks, uuid in self.dies
        self.forks.discard(uuid)
        self.dies.discard(uuid)
        migration.begin()
        return migration

    def into(self, host: str) -> list[Migration]:
        """Those that are on their way to it, oldest first."""
        return [each for each in self._all.values() if each.target == host and each.is_connected]

    def of(self, uuid: str, host: str) -> Migration | None:
        """The running migration of a guest that leaves or reaches `host`."""
        found = self._all.get(uuid)
        if found is None or found.phase == "ended" or host not in (found.source, found.target):
            return None
        return found

    def switching(self, uuid: str) -> bool:
        """Does the guest change hosts at this moment?"""
        found = self._all.get(uuid)
        live = found is not None and found.phase in ("switch", "stuck", "confirm", "unheard")
        return live or self.cold.starting(uuid)

    def critical(self, host: str) -> bool:
        """Is one of them in its switch-over here?"""
        return any(
            host in (m.source, m.target) and m.phase in ("switch", "confirm", "unheard")
            for m in self._all.values()
        )

    def reconsider(self) -> None:
        for migration in list(self._all.values()):
            migration.reconsider()
        self.cold.reconsider()
