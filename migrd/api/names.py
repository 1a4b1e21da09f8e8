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
    places = [guest for guest in cluster.guests if guest.uuid == word.lower()]
    if places:
        return places[0].uuid
    places = [guest for guest in cluster.guests if guest.name == word]
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
