"""libvirt's two long acts on a guest that is shut off: moving its definition, and starting it.

Both go on when agents and daemon die; a restart of libvirtd or a loss of power ends them where they are. An
offline migration defines on the target first and undefines on the source last, so broken in between the
definition is on both hosts and never on none. A start is a paused QEMU for a moment; a libvirtd that comes
back and finds one of those kills it.
"""

from __future__ import annotations

from agents.hypervisor.verdicts import OPERATION_FAILED, move_verdict, start_verdict
from agents.protocol import DomainState
from storage.errors import OutcomeError
from tests.sim.world import Domain, Machine, World

INTERNAL_ERROR = 1
TALK_S = (0.02, 0.25)  # one question and its answer between two libvirtds
SLOW_TALK_S = (1.0, 25.0)  # ... over a network that loses most of it, or a libvirtd that has much to do
SLOW = 0.1  # share of these
STARTING = "starting up"


class Act:
    """What is alike: it runs until it has ended, once, with an error or without."""

    def __init__(self, world: World, uuid: str, host: str) -> None:
        self.world = world
        self.uuid = uuid
        self.host = host
        self.ended = False
        self.error: OutcomeError | None = None

    @property
    def name(self) -> str:
        return self.world.guests[self.uuid].name

    @property
    def _here(self) -> Machine:
        return self.world.machines[self.host]

    def _state(self) -> DomainState:
        domain = self._here.domains.get(self.uuid)
        return domain.state if domain is not None else DomainState.ABSENT

    def reconsider(self) -> None:
        """A link, a power supply or a libvirtd has changed."""
        raise NotImplementedError


class OfflineMove(Act):
    """prepare -> finish (defined on the target) -> confirm (the source heard of it) -> ended (undefined)."""

    def __init__(self, world: World, uuid: str, host: str, target: str) -> None:
        super().__init__(world, uuid, host)
        self.target = target
        self.phase = "prepare"

    @property
    def _there(self) -> Machine:
        return self.world.machines[self.target]

    def begin(self) -> None:
        self.world.changed(self.host, f"offline migration of {self.name} to {self.target} begins")
        self.world.later(self._talk_s(), self._prepared)

    def _talk_s(self) -> float:
        slow_s = self.world.slow_talk_s.get(self.uuid)
        if slow_s is not None:
            return slow_s
        return self.world.between(SLOW_TALK_S if self.world.rng.random() < SLOW else TALK_S)

    def _prepared(self) -> None:
        if self.ended:
            return
        there = self._there
        if not self._reaches():
            self._end(
                move_verdict(OPERATION_FAILED, "failed to connect to remote libvirt URI", self._state())
            )
            return
        found = there.domains.get(self.uuid)
        if found is not None and found.process:
            self._end(move_verdict(INTERNAL_ERROR, "domain is already active on the target", self._state()))
            return
        if found is None:
            there.domains[self.uuid] = Domain(DomainState.SHUTOFF, "unknown", process=False)
        self.phase = "finish"
        self.world.changed(self.target, f"{self.name} is defined", uuid=self.uuid)
        self.world.later(self._talk_s(), self._heard)

    def _heard(self) -> None:
        if not self.ended:
            self.phase = "confirm"
            self.world.later(self._talk_s(), self._confirmed)

    def _confirmed(self) -> None:
        if self.ended:
            return
        del self._here.domains[self.uuid]
        self.world.changed(self.host, f"{self.name} is undefined", uuid=self.uuid)
        self._end(None)

    def _reaches(self) -> bool:
        return self.world.linked(self.host, self.target) and self._there.libvirt_up

    def reconsider(self) -> None:
        if self.ended:
            return
        if not self._here.libvirt_up or (self.phase == "finish" and not self._reaches()):
            self._end(move_verdict(INTERNAL_ERROR, "End of file while reading data", self._state()))

    def _end(self, error: OutcomeError | None) -> None:
        self.ended, self.error = True, error
        word = "succeeded" if error is None else f"failed: {error}"
        self.world.changed(self.host, f"offline migration of {self.name} has {word}")


class Start(Act):
    """virDomainCreate: QEMU opens the disks, and a moment later the guest executes."""

    def begin(self) -> None:
        domain = self._here.domains[self.uuid]
        for volume in self.world.guests[self.uuid].volumes:
            if not self.world.holds(self.host, volume):
                domain.reason = "failed"
                self._fail(f"could not open {volume.name}: Wrong medium type")
                return
        domain.state, domain.reason, domain.process = DomainState.PAUSED, STARTING, True
        self.world.changed(self.host, f"QEMU of {self.name} comes up", uuid=self.uuid)
        self.world.later(self.world.between(self.world.boot_s), self._booted)

    def _booted(self) -> None:
        if self.ended or not self._here.libvirt_up:
            return
        if (self.host, self.uuid) in self.world.boots_not:
            self._kill("the CPU is incompatible with host CPU")
            return
        domain = self._here.domains[self.uuid]
        domain.state, domain.reason, domain.ran = DomainState.RUNNING, "booted", True
        self.world.runs_again(self.uuid)
        self.world.begins_to_execute(self.host, self.uuid)
        self.world.changed(self.host, f"{self.name} is started", uuid=self.uuid)
        self.ended = True

    def reconsider(self) -> None:
        if self.ended:
            return
        if not self._here.powered:
            self.ended = True
            self.error = start_verdict(INTERNAL_ERROR, "no power", DomainState.UNKNOWN)
        elif not self._here.libvirt_up:
            self.world.later(0.5, self._found_again)

    def _found_again(self) -> None:
        """libvirtd is back, and does not go on with a start that it finds."""
        if self.ended:
            return
        if self._here.libvirt_up:
            self._kill("the start was cut off by a restart of libvirtd")
        else:
            self.world.later(0.5, self._found_again)

    def _kill(self, message: str) -> None:
        self.world.end_process(self.host, self.uuid, keep=True, reason="failed")
        self._fail(message)

    def _fail(self, message: str) -> None:
        self.ended, self.error = True, start_verdict(INTERNAL_ERROR, message, self._state())
        self.world.changed(self.host, f"start of {self.name} has failed: {message}", uuid=self.uuid)


class ColdActs:
    """The latest act of each guest on each host. A second one waits for it, and is given up in the end."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._all: dict[tuple[str, str], Act] = {}

    def busy(self, host: str, uuid: str) -> bool:
        found = self._all.get((host, uuid))
        return found is not None and not found.ended

    def starting(self, uuid: str) -> bool:
        return any(
            act.uuid == uuid and isinstance(act, Start) and not act.ended for act in self._all.values()
        )

    def move(self, uuid: str, host: str, target: str) -> Act:
        act = OfflineMove(self._world, uuid, host, target)
        self._all[host, uuid] = act
        act.begin()
        return act

    def start(self, uuid: str, host: str) -> Act:
        act = Start(self._world, uuid, host)
        self._all[host, uuid] = act
        act.begin()
        return act

    def reconsider(self) -> None:
        for act in list(self._all.values()):
            act.reconsider()
