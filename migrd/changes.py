"""What is new in the cluster, as data: the view emits it, events and metrics are made of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from agents.protocol import AttemptReport, DomainReport, DomainState, HostReport

GuestKind = Literal["guest-appeared", "guest-state", "guest-moved", "guest-gone"]

ACTIVE = (DomainState.RUNNING, DomainState.BLOCKED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """`message` is for people; code looks at `kind`, `before` and `after` (state words, or host names).

    host: a host's state. guest-*: one guest. attempt: an agent's attempt ended. alert: needs a human.
    """

    kind: GuestKind | Literal["host", "attempt", "alert"]
    message: str
    host: str
    guest: str = ""  # uuid
    name: str = ""  # the guest's name
    before: str = ""
    after: str = ""
    attempt: AttemptReport | None = None


def report_changes(host: str, before: HostReport | None, after: HostReport) -> list[Change]:
    """A host that came back as another boot, or as another machine."""
    if before is None:
        return []
    found = []
    if before.node != after.node:
        text = f"{host}: its node name was {before.node} and is {after.node} now: is it the same machine?"
        found.append(Change(kind="alert", message=text, host=host, before=before.node, after=after.node))
    if before.boot_id != after.boot_id:
        text = f"{host} has restarted: boot {after.boot_id}, before {before.boot_id}"
        found.append(Change(kind="host", message=text, host=host, before=before.boot_id, after=after.boot_id))
    return found


class Census:
    """Where each guest was last seen to run. Fed with one host's domains at a time.

    A migration is seen as three facts at different times (incoming there, running there, gone here);
    the census makes one "moved" of them.
    """

    def __init__(self) -> None:
        self._hosts: dict[str, dict[str, DomainReport]] = {}
        self._present: dict[str, set[str]] = {}  # uuid -> hosts that report it, in whatever state
        self._shared: set[str] = set()  # uuids that more than one host has
        self._ran_on: dict[str, str] = {}

    def update(self, host: str, report: HostReport) -> list[Change]:
        """The changes that this newest report of `host` brings."""
        before = self._hosts.get(host, {})
        after = {domain.uuid: domain for domain in report.domains if domain.state is not DomainState.ABSENT}
        self._hosts[host] = after
        for uuid in before.keys() - after.keys():
            self._present[uuid].discard(host)
            if len(self._present[uuid]) < 2:
                self._shared.discard(uuid)
        for uuid in after.keys() - before.keys():
            self._present.setdefault(uuid, set()).add(host)
            if len(self._present[uuid]) > 1:
                self._shared.add(uuid)
        changes = [
            change
            for uuid, domain in after.items()
            if (change := self._seen(host, before.get(uuid), domain)) is not None
        ]
        for uuid in sorted(before.keys() - after.keys()):
            if not self._present[uuid]:
                changes.append(self._gone(host, before[uuid]))
                del self._present[uuid]
                self._ran_on.pop(uuid, None)
        return changes

    def forget(self, host: str) -> None:
        """It is followed no longer: what it had is not gone, only not seen."""
        for uuid in self._hosts.pop(host, {}):
            self._present[uuid].discard(host)
            if not self._present[uuid]:
                del self._present[uuid]
                self._ran_on.pop(uuid, None)

    def doubles(self) -> dict[str, tuple[str, ...]]:
        """Guests that more than one host reports as running now (I1): uuid -> hosts."""
        found = {}
        for uuid in self._shared:
            running = tuple(sorted(h for h in self._present[uuid] if self._hosts[h][uuid].state in ACTIVE))
            if len(running) > 1:
                found[uuid] = running
        return found

    def _seen(self, host: str, before: DomainReport | None, now: DomainReport) -> Change | None:
        was_on = self._ran_on.get(now.uuid)
        if now.state in ACTIVE and was_on != host:
            self._ran_on[now.uuid] = host
            if was_on is not None:
                text = f"{now.name} moved from {was_on} to {host}"
                return _change("guest-moved", text, host=host, domain=now, at=(was_on, host))
        if before is None:
            if len(self._present[now.uuid]) > 1:
                return None  # known elsewhere: an incoming migration, or a definition left behind
            text = f"{now.name} appeared on {host}, {now.state}"
            return _change("guest-appeared", text, host=host, domain=now, at=("", now.state))
        if before.state is now.state or {before.state, now.state} <= set(ACTIVE):
            return None  # between running and blocked a guest goes many times a second
        text = f"{now.name} on {host} is {now.state}, was {before.state}"
        return _change("guest-state", text, host=host, domain=now, at=(before.state, now.state))

    def _gone(self, host: str, domain: DomainReport) -> Change:
        text = f"{domain.name} is gone from {host}, and on no other host"
        return _change("guest-gone", text, host=host, domain=domain, at=(domain.state, ""))


def _change(kind: GuestKind, message: str, *, host: str, domain: DomainReport, at: tuple[str, str]) -> Change:
    before, after = at
    return Change(
        kind=kind,
        message=message,
        host=host,
        guest=domain.uuid,
        name=domain.name,
        before=before,
        after=after,
    )


def host_change(host: str, before: str, after: str, problems: Mapping[str, tuple[str, ...]]) -> Change:
    why = "; ".join(problems.get(host, ()))
    text = f"{host} is {after}, was {before}" + (f" ({why})" if why else "")
    return Change(kind="host", message=text, host=host, before=before, after=after)
