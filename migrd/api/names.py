"""Pure: which host, guest or volume a word means. Nothing is guessed: a name either fits or is refused."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from migrd.api.problems import AMBIGUOUS, ProblemError
from migrd.api.views import volume_views
from migrd.api.words import VolumeView
from migrd.control import NotFound
from migrd.model import Cluster, Host

SHOWN = 5


def host_named(cluster: Cluster, word: str) -> Host:
    """Raises NotFound with near names."""
    host = cluster.hosts.get(word)
    if host is None:
        raise NotFound(_missing("host", word, cluster.hosts, "migrctl hosts"))
    return host


def guest_uuid(cluster: Cluster, word: str) -> str:
    """A guest by uuid or name. Raises NotFound with near names, ProblemError 409 when a name is ambiguous."""
    if cluster.instances(word.lower()):
        return word.lower()
    places = cluster.called(word)
    uuids = sorted({guest.uuid for guest in places})
    if not uuids:
        raise NotFound(_missing("guest", word, {guest.name for guest in cluster.guests}, "migrctl vms"))
    if len(uuids) > 1:
        where = {uuid: sorted(guest.host for guest in places if guest.uuid == uuid) for uuid in uuids}
        raise ProblemError(
            409,
            AMBIGUOUS,
            f"{len(uuids)} guests are called {word}: name one by its uuid",
            *(f"{uuid} on {', '.join(where[uuid])}" for uuid in uuids),
        )
    return uuids[0]


def consent(cluster: Cluster, words: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Guests that may be stopped, by uuid, and why a word names none or several: all of them at once.

    By uuid from here on: consent given to a name must not slide to another guest (I5).
    """
    uuids: dict[str, None] = {}
    reasons: list[str] = []
    for word in words:
        try:
            uuids[guest_uuid(cluster, word)] = None
        except NotFound as error:
            reasons += error.reasons
        except ProblemError as error:
            reasons.append(f"{error.problem.detail}: {'; '.join(error.problem.reasons)}")
    return tuple(uuids), tuple(reasons)


def guest_and_host(cluster: Cluster, guest: str, host: str | None) -> tuple[str, str | None]:
    """The uuid of a guest and the name of a host. Raises NotFound for both at once, ProblemError."""
    missing: list[str] = []
    uuid = name = None
    try:
        uuid = guest_uuid(cluster, guest)
    except NotFound as error:
        missing += error.reasons
    try:
        name = None if host is None else host_named(cluster, host).name
    except NotFound as error:
        missing += error.reasons
    if uuid is None or missing:
        raise NotFound(*missing)
    return uuid, name


def volume_named(cluster: Cluster, word: str) -> VolumeView:
    """Raises NotFound with near names."""
    views = {view.name: view for view in volume_views(cluster)}
    if word not in views:
        raise NotFound(_missing("volume", word, views, "migrctl volumes"))
    return views[word]


def _missing(kind: str, word: str, names: Iterable[str], command: str) -> str:
    shown = word if len(word) <= 80 else word[:80] + "..."
    near = get_close_matches(word[:200], sorted(names), n=SHOWN, cutoff=0.5)
    close = f"; near: {', '.join(near)}" if near else ""
    return f"no {kind} {shown!r}{close} (`{command}` lists all)"
