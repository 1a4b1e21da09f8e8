"""Plans: empty a host, move one guest, or find one guest another target. Pure; from one snapshot."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from agents.protocol import DomainState
from migrd.model import Blocker, Choice, Cluster, Facts, Guest, Host, HostState, Move, Plan, Promise
from migrd.planner import estimate, verdicts
from migrd.planner.checks import Asked, Case, Reason, guest_reasons, may_be_stopped
from migrd.planner.place import Options, options, place, verdicts_of
from migrd.planner.policy import Policy
from migrd.planner.room import Room

_GONE = (DomainState.ABSENT,)
_STAYS = (DomainState.SHUTOFF,)


def plan_drain(
    cluster: Cluster,
    host: str,
    facts: Facts,
    policy: Policy,
    *,
    allow_stop: Collection[str] = (),
    busy: Mapping[str, str] | None = None,
    promises: Collection[Promise] = (),
    continuing: bool = False,
    among: Collection[str] | None = None,
) -> Plan:
    """Empty `host`. A plan with `refusals` or `blockers` is refused as a whole, and nothing is touched.

    `allow_stop`: guests, by name or uuid, that may be shut down if they cannot move (I5).
    `busy`: guest uuid -> what is being done to it, e.g. "op-000012". `promises`: moves in flight.
    `continuing`: a drain plans again for the host that it is draining itself.
    `among`: a shortlist; what is refused or stopped with it is not known of the hosts left out.
    """
    case = Case(cluster, facts, policy, busy or {}, Asked.DRAIN)
    here = sorted(cluster.guests_on(host), key=lambda guest: guest.uuid)
    refusals = _host_refusals(cluster, host, continuing)
    if host not in cluster.hosts:
        return Plan(host=host, moves=(), refusals=refusals)
    refusals += _unknown_names(here, host, allow_stop)
    here = [guest for guest in here if guest.state not in _GONE]
    stays = tuple(guest.uuid for guest in here if guest.state in _STAYS)
    candidates = _others(cluster, host, among)
    awake = [guest for guest in here if guest.state not in _STAYS]
    result = _spread(case, awake, candidates, policy, promises)
    stops, blockers = _consented(case, result, allow_stop)
    memory = {guest.uuid: guest.memory_bytes for guest in here}
    return Plan(
        host=host,
        moves=result.moves,
        stops=stops,
        stays=stays,
        names={guest.uuid: guest.name for guest in here if guest.uuid in {*stops, *stays}},
        blockers=blockers,
        refusals=refusals,
        estimate_s=estimate.moves_s(result.moves, memory, policy),
    )


def plan_migrate(
    cluster: Cluster,
    guest: str,
    to: str | None,
    facts: Facts,
    policy: Policy,
    *,
    busy: Mapping[str, str] | None = None,
    promises: Collection[Promise] = (),
    cold: bool = False,
    among: Collection[str] | None = None,
) -> Plan:
    """Move one guest (uuid), to `to` or to the best target (`among` a shortlist). Refused as a drain is.

    `cold`: without its memory. It is then shut down if it runs (`stops`), by the operator's word for it (I5).
    """
    found = cluster.instance(guest)
    if found is None:
        return Plan(host="", moves=(), refusals=(f"guest {guest} is on no host: see migrctl vms",))
    if to is not None and to not in cluster.hosts:
        refusal = f"host {to} is unknown: see migrctl hosts"
        return Plan(host=found.host, moves=(), refusals=(refusal,))
    if to == found.host:
        refusal = f"{found.name} is on {to} already"
        return Plan(host=found.host, moves=(), refusals=(refusal,))
    rests = cold and found.state in _STAYS
    if rests:
        found = replace(found, memory_bytes=0)  # it is not started, so it asks for none
    asked = Asked.MIGRATE if to is None else Asked.MIGRATE_TO
    case = Case(cluster, facts, policy, busy or {}, asked, cold)
    candidates = _others(cluster, found.host, among if to is None else (to,))
    choice = _choose(case, found, candidates, policy, promises)
    if choice.move is None:
        return Plan(host=found.host, moves=(), blockers=choice.blockers)
    if cold:
        move = replace(choice.move, estimate_s=estimate.cold_s(policy, rests=rests))
        stops = () if rests else (found.uuid,)
        return Plan(host=found.host, moves=(move,), stops=stops, estimate_s=move.estimate_s)
    return Plan(host=found.host, moves=(choice.move,), estimate_s=choice.move.estimate_s)


def choose_target(
    cluster: Cluster,
    guest: str,
    facts: Facts,
    policy: Policy,
    *,
    promises: Collection[Promise] = (),
    exclude: Collection[str] = (),
    busy: Mapping[str, str] | None = None,
    among: Collection[str] | None = None,
) -> Choice:
    """Where this guest (uuid) can go now, everything judged again.

    `exclude`: targets not to try; `among`: a shortlist of those to try.
    """
    found = cluster.instance(guest)
    if found is None:
        gone = Blocker(guest=guest, name="", target="", reason="it is on no host", remedy="see migrctl vms")
        return Choice(move=None, blockers=(gone,))
    case = Case(cluster, facts, policy, busy or {}, Asked.UNDER_WAY)
    left_out = set(exclude)
    candidates = [each for each in _others(cluster, found.host, among) if each.name not in left_out]
    return _choose(case, found, candidates, policy, promises)


def _choose(
    case: Case, guest: Guest, candidates: list[Host], policy: Policy, promises: Collection[Promise]
) -> Choice:
    own = [Reason(text, "see migrctl hosts") for text in _source_refusals(case.cluster, guest.host)]
    reasons = (*own, *guest_reasons(case, guest))
    # A promise to this very guest is the try before: it must not stand in its own way.
    room = Room(case.cluster, policy, [each for each in promises if each.guest != guest.uuid])
    want = options(case, guest, candidates)
    if not reasons:
        target = place([want], room).targets.get(guest.uuid)
        if target is not None:
            return Choice(move=_move(guest, target, policy))
    nowhere = _nowhere(case, want, room, candidates)
    return Choice(move=None, blockers=(*verdicts.of_guest(guest, reasons), *nowhere))


def _nowhere(case: Case, want: Options, room: Room, candidates: Collection[Host]) -> list[Blocker]:
    """Why no target takes the guest; nothing if some would, so that its own reasons stand alone."""
    if want.guest.uuid in case.busy:
        return []  # it may be on its way already, and then the promise to it would speak against it
    against = verdicts_of(case, want, candidates, room)
    return verdicts.of_targets(want.guest, against) if len(against) == len(candidates) else []


@dataclass(frozen=True, slots=True)
class _Spread:
    moves: tuple[Move, ...]
    stuck: tuple[tuple[Guest, tuple[Blocker, ...]], ...]  # in the order of uuids


def _spread(
    case: Case,
    guests: list[Guest],
    candidates: list[Host],
    policy: Policy,
    promises: Collection[Promise],
) -> _Spread:
    """A target for every guest that can have one; for each other guest, every reason."""
    room = Room(case.cluster, policy, promises)
    own = {guest.uuid: guest_reasons(case, guest) for guest in guests}
    wants = [options(case, guest, candidates) for guest in guests]
    placement = place([want for want in wants if want.possible and not own[want.guest.uuid]], room)
    stuck = []
    for want in wants:
        if want.guest.uuid in placement.targets:
            continue
        # Judged once all others have their place: what is left is what this guest would have met.
        why = (*verdicts.of_guest(want.guest, own[want.guest.uuid]), *_nowhere(case, want, room, candidates))
        stuck.append((want.guest, why))
    moving = [want.guest for want in wants if want.guest.uuid in placement.targets]
    # The largest first: started last, it alone would decide when the drain ends.
    moving.sort(key=lambda guest: (-guest.memory_bytes, guest.uuid))
    moves = tuple(_move(guest, placement.targets[guest.uuid], policy) for guest in moving)
    return _Spread(moves, tuple(stuck))


def _consented(
    case: Case, result: _Spread, allow_stop: Collection[str]
) -> tuple[tuple[str, ...], tuple[Blocker, ...]]:
    """Guests that cannot move are stopped only by name, and only if a shutdown would reach them (I5)."""
    stops: list[str] = []
    blockers: list[Blocker] = []
    allowed = set(allow_stop)
    for guest, why in result.stuck:
        if allowed & {guest.name, guest.uuid} and may_be_stopped(case, guest):
            stops.append(guest.uuid)
        else:
            blockers += why
    return tuple(stops), tuple(blockers)


def _host_refusals(cluster: Cluster, name: str, continuing: bool) -> tuple[str, ...]:
    host = cluster.hosts.get(name)
    if host is None:
        return (f"host {name} is unknown: see migrctl hosts",)
    found = []
    match host.state:
        case HostState.DRAINING if not continuing:
            found.append(f"{name} is being drained already: see migrctl ops")
        case HostState.DRAINED | HostState.OFF:
            found.append(f"{name} is {host.state} already: migrctl undrain {name} makes it usable again")
        case _:
            found += _source_refusals(cluster, name)
    if not any(other.state is HostState.ONLINE for other in _others(cluster, name)):
        found.append(f"{name} is the last usable host: no other host is online to take its guests")
    return tuple(found)


def _source_refusals(cluster: Cluster, name: str) -> tuple[str, ...]:
    """Why nothing can leave this host live right now."""
    host = cluster.hosts.get(name)
    if host is None:
        return (f"host {name} is unknown: see migrctl hosts",)
    seen = host.state
    if seen in (HostState.DRAINING, HostState.DRAINED) and host.observed is not HostState.UNKNOWN:
        seen = host.observed  # decided about, and still heard: its guests may leave
    if seen in (HostState.ONLINE, HostState.DRAINING, HostState.DRAINED):
        return ()
    return (f"{name} is {seen}: its guests can leave only while its agent and libvirt answer",)


def _unknown_names(here: Collection[Guest], host: str, allow_stop: Collection[str]) -> tuple[str, ...]:
    """A misspelt --allow-stop must not look like consent that was simply not needed."""
    known = {guest.name for guest in here} | {guest.uuid for guest in here}
    return tuple(f"--allow-stop {name}: no such guest on {host}" for name in sorted(set(allow_stop) - known))


def _others(cluster: Cluster, host: str, among: Collection[str] | None = None) -> list[Host]:
    names = sorted(cluster.hosts if among is None else cluster.hosts.keys() & set(among))
    return [cluster.hosts[name] for name in names if name != host]


def _move(guest: Guest, target: str, policy: Policy) -> Move:
    return Move(
        guest=guest.uuid,
        name=guest.name,
        source=guest.host,
        target=target,
        estimate_s=estimate.move_s(guest.memory_bytes, policy),
    )
