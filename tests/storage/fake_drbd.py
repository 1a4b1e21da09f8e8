"""A DRBD 8.4 pair that behaves as the real one was seen to (data/drbd84/errors): two hosts, one resource."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from storage.errors import Unknown
from storage.run import Completed
from tests.storage.samples import DATA, tool_error

NODES = ("u1", "u2")


@dataclass
class Pair:
    """The kernels' state of both hosts. `uuid` without the primary bit."""

    role: dict[str, str] = field(default_factory=lambda: {"u1": "Primary", "u2": "Secondary"})
    flag: dict[str, bool] = field(default_factory=lambda: {"u1": False, "u2": False})
    held_open: set[str] = field(default_factory=lambda: {"u1"})
    linked: bool = True
    given_up: bool = False  # by u2, which was told to disconnect
    disk: dict[str, str] = field(default_factory=lambda: {"u1": "UpToDate", "u2": "UpToDate"})
    out_of_sync: int = 0
    protocol: str = "C"
    hang: set[str] = field(default_factory=set)  # tools that never answer, by their second word
    unlink_at_promotion: bool = False  # the link breaks in the very moment of drbdadm primary
    cut: set[str] = field(default_factory=set)  # tools whose answer loses its end, by their second word
    calls: list[tuple[str, ...]] = field(default_factory=list)
    dual_primary_without_flag: bool = False  # what must never be

    def tool(self, node: str) -> Host:
        return Host(self, node)


@dataclass
class Host:
    """A Runner for one host of the pair."""

    pair: Pair
    node: str

    @property
    def peer(self) -> str:
        return NODES[1 - NODES.index(self.node)]

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        deadline_s: float,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        words = tuple(argv)
        self.pair.calls.append((self.node, *words))
        if words[1] in self.pair.hang:
            raise Unknown(f"{' '.join(words)} did not end within {deadline_s:g} s and was killed")
        rc, out, err = self._answer(words)
        if words[1] in self.pair.cut:
            out = out[: len(out) // 2]
        roles = self.pair.role.values()
        if list(roles) == ["Primary", "Primary"] and not all(self.pair.flag.values()):
            self.pair.dual_primary_without_flag = True
        return Completed(words, rc, out, err)

    def _answer(self, words: tuple[str, ...]) -> tuple[int, str, str]:
        match words:
            case ("drbdadm", "dump-xml"):
                return 0, (DATA / "drbd84" / "dump.xml").read_text(), ""
            case ("drbdsetup", "events2", "r0", "--now", "--statistics"):
                return 0, self._events(), ""
            case ("drbdsetup", "show", "r0", "--show-defaults"):
                return 0, self._show(), ""
            case ("drbdsetup", "get-gi", "0"):
                bit = "D" if self.pair.role[self.node] == "Primary" else "C"
                return 0, f"F7268911AEA8B24{bit}:{'0' * 16}:{'0' * 16}:{'0' * 16}:1:1:0:1:0:0:0\n", ""
            case ("drbdsetup", "net-options", _, _, option):
                return self._net_options(option)
            case ("drbdadm", "primary", "r0"):
                return self._primary()
            case ("drbdadm", "secondary", "r0"):
                return self._secondary()
            case ("drbdadm", "disconnect", "r0"):
                self.pair.linked, self.pair.given_up = False, True
                return 0, "", ""
            case ("drbdadm", "adjust", "r0"):
                self.pair.linked, self.pair.given_up = True, False
                return 0, "", ""
        raise AssertionError(f"the driver ran {words}")

    def _net_options(self, option: str) -> tuple[int, str, str]:
        allowed = option == "--allow-two-primaries=yes"
        if not allowed and list(self.pair.role.values()) == ["Primary", "Primary"]:
            return (*self._refused("clear_while_both_primary"),)
        self.pair.flag[self.node] = allowed
        return 0, "", ""

    def _primary(self) -> tuple[int, str, str]:
        peer_primary = self.pair.linked and self.pair.role[self.peer] == "Primary"
        if peer_primary and not all(self.pair.flag.values()):
            return self._refused("primary_refused")
        self.pair.role[self.node] = "Primary"
        self.pair.linked = self.pair.linked and not self.pair.unlink_at_promotion
        return 0, "", ""

    def _secondary(self) -> tuple[int, str, str]:
        if self.node in self.pair.held_open:
            return self._refused("secondary_held_open")
        self.pair.role[self.node] = "Secondary"
        return 0, "", ""

    @staticmethod
    def _refused(name: str) -> tuple[int, str, str]:
        rc, said = tool_error(name)
        return rc, "", said

    def _events(self) -> str:
        pair, peer = self.pair, self.peer
        link, role, repl, disk = "Connected", pair.role[peer], "Established", pair.disk[peer]
        if not pair.linked:
            link = "StandAlone" if pair.given_up else "Connecting"
            role, repl, disk = "Unknown", "Off", "DUnknown"
        return (
            f"exists resource name:r0 role:{pair.role[self.node]} suspended:no write-ordering:flush\n"
            f"exists connection name:r0 peer-node-id:0 conn-name:peer "
            f"connection:{link} role:{role} congested:no\n"
            f"exists device name:r0 volume:0 minor:0 disk:{pair.disk[self.node]} "
            "size:65496 read:0 written:0\n"
            f"exists peer-device name:r0 peer-node-id:0 conn-name:peer volume:0 replication:{repl} "
            f"peer-disk:{disk} resync-suspended:no received:0 sent:0 out-of-sync:{pair.out_of_sync}\n"
            "exists -\n"
        )

    def _show(self) -> str:
        text = (DATA / "drbd84" / "connected" / "show_r0.txt").read_text()
        word = "yes" if self.pair.flag[self.node] else "no"
        text = text.replace("allow-two-primaries	no; # default", f"allow-two-primaries	{word};")
        assert f"allow-two-primaries	{word};" in text
        return text.replace("protocol        	C; # default", f"protocol        	{self.pair.protocol};")


def proc_drbd(tmp: Path) -> Path:
    """A /proc/drbd that says which version is loaded."""
    file = tmp / "proc_drbd"
    file.write_text((DATA / "drbd84" / "connected" / "proc_drbd.txt").read_text())
    return file
