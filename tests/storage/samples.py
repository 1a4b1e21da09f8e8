"""Captured outputs. data/drbd84 and data/iscsi were taken from a real 8.4.11 and a real LIO; data/drbd9 is
written after drbdsetup-9.0(8), for want of a DRBD 9 kernel module in Debian 12."""

from pathlib import Path

DATA = Path(__file__).parent / "data"
STATES_84 = sorted(path.name for path in (DATA / "drbd84").iterdir() if (path / "events2.txt").exists())


def state_84(name: str, file: str) -> str:
    """One captured file of one captured situation."""
    return (DATA / "drbd84" / name / file).read_text()


def one_resource(events2: str, resource: str = "r0") -> str:
    """The capture names all resources; asked for one, drbdsetup prints its lines and the end mark."""
    lines = events2.splitlines(keepends=True)
    return "".join(line for line in lines if f"name:{resource} " in line or line == "exists -\n")


def tool_error(name: str) -> tuple[int, str]:
    """Exit code and stderr of a captured refusal."""
    text = (DATA / "drbd84" / "errors" / f"{name}.txt").read_text()
    rc = next(line for line in text.splitlines() if line.startswith("rc: "))
    return int(rc.removeprefix("rc: ")), text.partition("--- stderr\n")[2]
