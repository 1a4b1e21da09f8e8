"""Physics of one DRBD resource on two nodes: roles, the flag, generations of data, connection and resync.

A generation grows whenever data is written that the other side does not get. What the kernel refuses is
refused here in the kernel's words; what it allows, it allows, however foolish.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from storage.words import DrbdVolume, Health, Role, VolumeReport

SIZE_BYTES = 1 << 30


@dataclass
class Replica:
    """One node's half. `older`: generations that this copy has gone through."""

    host: str
    up: bool = True
    role: Role = Role.SECONDARY
    flag: bool = False  # allow-two-primaries, at runtime
    generation: int = 1
    older: frozenset[int] = frozenset()
    inconsistent: bool = False  # in the middle of a resync that it receives
    standalone: bool = False  # dropped its connection for good; drbdadm connect takes it up again
    left: bool = False  # because it was told to

    def is_behind(self, other: Replica) -> bool:
        return self.generation in other.older


@dataclass
class Resource:
    volume: DrbdVolume
    replicas: dict[str, Replica]  # by host
    connected: bool = True
    syncing: bool = False
    lost_s: float = 0.0  # when the connection was lost last, on the loop's clock
    forked: bool = False  # both copies have writes that the other lacks, and nobody could have known in time
    by_hand: bool = False  # an operator allows two primaries, for purposes of his own
    identity: dict[str, str] = field(default_factory=dict)  # host -> another disk's identity (a wrong one)

    @property
    def name(self) -> str:
        return self.volume.name

    def peer(self, host: str) -> Replica:
        return next(replica for name, replica in self.replicas.items() if name != host)

    def mine(self, host: str) -> Replica:
        return self.replicas[host]

    # -- what the kernel does --------------------------------------------------------------------

    def promote(self, host: str) -> str:
        """'' or why the kernel refuses."""
        mine, peer = self.mine(host), self.peer(host)
        if not mine.up:
            return "no such resource"
        if mine.inconsistent:
            return "State change failed: (-2) Need access to UpToDate data"
        if self.connected and peer.role is Role.PRIMARY and not (mine.flag and peer.flag):
            return "State change failed: (-1) Multiple primaries not allowed by config"
        mine.role = Role.PRIMARY
        return ""

    def demote(self, host: str, *, open_by: str) -> str:
        """'' or why the kernel refuses. `open_by`: who has the device open, '' for nobody."""
        if open_by:
            return f"State change failed: (-12) Device is held open by someone ({open_by})"
        self.mine(host).role = Role.SECONDARY
        return ""

    def set_flag(self, host: str, *, allowed: bool) -> str:
        mine, peer = self.mine(host), self.peer(host)
        if not allowed and self.connected and mine.role is peer.role is Role.PRIMARY:
            return "allow-two-primaries cannot be cleared while both are primary"
        mine.flag = allowed
        return ""

    def power_lost(self, host: str, now_s: float) -> None:
        """Runtime options and roles are gone with the kernel; the data stays."""
        mine = self.mine(host)
        mine.up, mine.role, mine.flag = False, Role.SECONDARY, False
        mine.standalone = mine.left = False
        if self.connected:
            self.disconnect(now_s)

    def disconnect(self, now_s: float) -> None:
        self.lost_s = now_s
        self.connected = self.syncing = False

    def wrote_alone(self, host: str, generation: int) -> None:
        """A guest writes here, and the peer does not get it."""
        mine = self.mine(host)
        mine.older |= {mine.generation}
        mine.generation = generation

    def connect(self) -> str:
        """The handshake. '' when connected (perhaps with a resync to come), else why not."""
        first, second = self.replicas.values()
        if first.standalone or second.standalone:
            return "StandAlone"
        if first.flag != second.flag:  # receive_protocol() of the module: both sides give up
            first.standalone = second.standalone = True
            return "incompatible allow-two-primaries settings, dropping connection"
        same = first.generation == second.generation
        if not same and not first.is_behind(second) and not second.is_behind(first):
            first.standalone = second.standalone = True
            return "Split-Brain detected, dropping connection"
        self.connected, self.forked = True, False
        behind = next((r for r in (first, second) if r.is_behind(self.peer(r.host)) or r.inconsistent), None)
        if behind is not None:
            behind.inconsistent = self.syncing = True
        return ""

    def synced(self) -> None:
        """The resync has come to its end."""
        for replica in self.replicas.values():
            if replica.inconsistent:
                other = self.peer(replica.host)
                replica.generation, replica.older, replica.inconsistent = (
                    other.generation,
                    other.older,
                    False,
                )
        self.syncing = False

    # -- what the tools show ---------------------------------------------------------------------

    def current(self, host: str) -> bool:
        """A copy that has all writes that any copy has."""
        mine = self.mine(host)
        return not mine.inconsistent and not mine.is_behind(self.peer(host))

    def problems(self, host: str) -> tuple[str, ...]:
        """Why this resource is not OK, as seen from `host`."""
        mine = self.mine(host)
        if not mine.up:
            return (f"DRBD resource {self.volume.resource} is not up on this host",)
        found = []
        if mine.inconsistent:
            found.append(f"DRBD {self.volume.resource}: the disk of this host is Inconsistent")
        if not self.connected:
            word = "StandAlone" if mine.standalone else "Connecting"
            found.append(f"DRBD resource {self.volume.resource} is not connected to its peer ({word})")
        elif self.syncing:
            found.append(f"DRBD {self.volume.resource}: replication is SyncSource, not Established")
        return tuple(found)

    def report(self, host: str) -> VolumeReport:
        """As DrbdDriver.inspect tells it."""
        mine, peer, problems = self.mine(host), self.peer(host), self.problems(host)
        if not mine.up:
            return VolumeReport(
                volume=self.volume,
                role=Role.DETACHED,
                health=Health.UNREACHABLE,
                identity=None,
                size_bytes=None,
                sole_current_copy=True,
                problems=problems,
            )
        health = Health.OK if not problems else Health.SYNCING if self.syncing else Health.DEGRADED
        proved = self.identity.get(host, f"drbd:{self.volume.resource}:{mine.generation:016X}")
        peer_current = self.connected and not self.syncing
        return VolumeReport(
            volume=self.volume,
            role=mine.role,
            health=health,
            identity=None if mine.inconsistent else proved,
            size_bytes=SIZE_BYTES,
            dual_primary_allowed=mine.flag,
            peer_role=peer.role if self.connected else Role.UNKNOWN,
            sole_current_copy=not mine.inconsistent and not peer_current,
            problems=problems,
            generation=f"{mine.generation:016X}",
            ancestors=tuple(f"{older:016X}" for older in sorted(mine.older)),
        )
