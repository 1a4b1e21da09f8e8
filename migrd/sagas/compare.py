"""Is it the same disk on both hosts, and fit to be handed over? Pure verdicts over what both sides report."""

from __future__ import annotations

from collections.abc import Iterable

from storage.words import DrbdVolume, Health, Side, Volume, VolumeReport


def reasons_not_to_hand_over(
    volumes: Iterable[Volume],
    source: Iterable[VolumeReport],
    target: Iterable[VolumeReport],
    *,
    hosts: tuple[str, str],
) -> tuple[str, ...]:
    """I9: identity proved and equal on both. I6: no window open yet. Only health OK is good enough (I19)."""
    on_source = {report.volume.name: report for report in source}
    on_target = {report.volume.name: report for report in target}
    reasons: list[str] = []
    for volume in volumes:
        here, there = on_source.get(volume.name), on_target.get(volume.name)
        if here is None or there is None:
            missing = hosts[0] if here is None else hosts[1]
            reasons.append(f"{volume.name}: {missing} did not report this volume")
            continue
        reasons += _identity(here, there, hosts)
        reasons += _fitness(here, hosts[0]) + _fitness(there, hosts[1])
    return tuple(reasons)


def reasons_apart(
    volumes: Iterable[Volume],
    source: Iterable[VolumeReport],
    target: Iterable[VolumeReport],
    *,
    hosts: tuple[str, str],
) -> tuple[str, ...]:
    """I7: why the replica on the target may miss writes of the source's; asked before the source is let go.

    DRBD begins a new generation before it writes what its peer does not get: a source whose generation is the
    target's, or one that the target has gone through, has no write that the target lacks. Where generations
    are not known, equal identities and OK on both have to say the same.
    """
    on_source = {report.volume.name: report for report in source}
    on_target = {report.volume.name: report for report in target}
    reasons: list[str] = []
    for volume in volumes:
        if not isinstance(volume, DrbdVolume):
            continue
        here, there = on_source.get(volume.name), on_target.get(volume.name)
        if here is None or there is None:
            missing = hosts[0] if here is None else hosts[1]
            reasons.append(f"{volume.name}: {missing} did not report this volume")
            continue
        if here.generation is not None and here.generation in (there.generation, *there.ancestors):
            continue
        reasons += _identity(here, there, hosts)
        reasons += _illness(here, hosts[0]) + _illness(there, hosts[1])
    return tuple(reasons)


def _identity(here: VolumeReport, there: VolumeReport, hosts: tuple[str, str]) -> list[str]:
    name = here.volume.name
    unproved = [host for host, report in zip(hosts, (here, there), strict=True) if not report.identity]
    if unproved:
        return [f"{name}: its identity cannot be proved on {' and '.join(unproved)}"]
    reasons = []
    if here.identity != there.identity:
        reasons.append(
            f"{name}: not the same disk: {hosts[0]} opens {here.identity}, {hosts[1]} opens {there.identity}"
        )
    if here.size_bytes != there.size_bytes:
        reasons.append(
            f"{name}: sizes differ: {here.size_bytes} on {hosts[0]}, {there.size_bytes} on {hosts[1]}"
        )
    return reasons


def _fitness(report: VolumeReport, host: str) -> list[str]:
    reasons = _illness(report, host)
    if report.dual_primary_allowed:
        reasons.append(
            f"{report.volume.name}: two primaries are allowed on {host} already, outside of this migration; "
            "find out why, then clear allow-two-primaries"
        )
    return reasons


def _illness(report: VolumeReport, host: str) -> list[str]:
    if report.health is Health.OK:
        return []
    told = "; ".join(report.problems) or "no reason given"
    return [f"{report.volume.name}: health on {host} is {report.health}: {told}"]


def open_windows(side: Side, host: str, reports: Iterable[VolumeReport]) -> tuple[str, ...]:
    """Volumes on which the dual-primary flag is still set; `side` only words the sentence."""
    return tuple(
        f"{report.volume.name}: two primaries are still allowed on {host} ({side})"
        for report in reports
        if report.dual_primary_allowed
    )
