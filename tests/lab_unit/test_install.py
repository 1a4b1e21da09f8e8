"""`install-packages` in a copy-on-write root with an apt of its own: what it leaves on a machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from labkit import needs

LAB = Path(__file__).resolve().parents[2] / "deploy" / "lab"
POLICY = "/usr/sbin/policy-rc.d"
# The root is an overlay on a tmpfs in a mount namespace of its own: nothing of it is seen or kept outside.
ROOT = r"""
set -e
mount -t tmpfs none "$1"; mkdir "$1/up" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/up,workdir=$1/work" "$1/root"
mount --rbind /dev "$1/root/dev"
mkdir -p "$1/root/x"; cp "$2/install-packages" "$1/root/x/"; echo "labd # x" >"$1/root/x/packages.txt"
cat >"$1/root/usr/local/bin/dpkg-query" <<'END'
#!/bin/sh
case "$*" in
    *labd.service*) echo "labd: /lib/systemd/system/labd.service" ;;
    *labd*) [ -e /installed ] && echo installed ;;
    *-S*) echo "base: x" ;;
    *) echo "installed base" ;;
esac
END
cat >"$1/root/usr/local/bin/apt-get" <<'END'
#!/bin/sh
echo "chatter of apt"
case "$*" in *update*)
    echo u >>/updates; [ "$(wc -l </updates)" -ge "${GOOD_UPDATE:-1}" ]; exit ;; esac
[ -z "$APT_DIES" ] || kill -"$APT_DIES" "$PPID" $$
touch /installed; ls /usr/sbin/policy-rc.d >/policy-then
mkdir -p /etc/systemd/system/multi-user.target.wants
ln -s /lib/systemd/system/labd.service /etc/systemd/system/multi-user.target.wants/
END
cat >"$1/root/usr/local/bin/systemctl" <<'END'
#!/bin/sh
echo "$*" >>/systemctl
END
chmod 755 "$1"/root/usr/local/bin/*
exec chroot "$1/root" /bin/sh -c "$3"
"""


def in_root(tmp_path: Path, script: str, **env: str) -> subprocess.CompletedProcess[str]:
    place = tmp_path / "place"
    place.mkdir()
    argv = ["unshare", "--mount", "sh", "-c", ROOT, "sh", str(place), str(LAB), script]
    path = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=60, env={"PATH": path, **env}
    )
    if "mount:" in done.stderr:
        pytest.skip(f"no overlay here: {done.stderr}")
    return done


pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes mounts of its own: root is needed")


def test_what_it_brings_neither_starts_now_nor_at_the_next_boot(tmp_path: Path) -> None:
    done = in_root(
        tmp_path, f"rm -f {POLICY}; /x/install-packages; echo rc $?; cat /policy-then /systemctl; ls {POLICY}"
    )
    assert done.stdout.splitlines() == ["rc 0", POLICY, "disable -q labd.service"]
    assert "chatter of apt" in done.stderr, "stdout belongs to make's caller"
    assert "labd.service of labd does not start at boot" in done.stderr


def test_lists_that_do_not_come_are_asked_for_again(tmp_path: Path) -> None:
    done = in_root(tmp_path, "/x/install-packages; echo rc $?; wc -l </updates", GOOD_UPDATE="2")
    assert done.stdout.split() == ["rc", "0", "2"]


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    done = in_root(tmp_path, "/x/install-packages 2>/dev/null; rm /updates; /x/install-packages; ls /updates")
    assert done.stdout == ""


@pytest.mark.parametrize("signal", ["HUP", "INT", "TERM"])
def test_a_signal_leaves_no_policy(tmp_path: Path, signal: str) -> None:
    done = in_root(tmp_path, f"rm -f {POLICY}; /x/install-packages; ls {POLICY}; echo end", APT_DIES=signal)
    assert done.stdout.split() == ["end"]


def test_policy_of_a_run_that_was_killed_is_removed_by_the_next_one_and_a_foreign_one_is_kept(
    tmp_path: Path,
) -> None:
    killed = f"rm -f {POLICY}; /x/install-packages; ls {POLICY}; unset APT_DIES; "
    again = f"/x/install-packages; ls {POLICY} || echo gone; "
    foreign = f"echo '# mine' >{POLICY}; rm /installed; /x/install-packages; cat {POLICY}"
    done = in_root(tmp_path, killed + again + foreign, APT_DIES="KILL")
    assert done.stdout.split() == [POLICY, "gone", "#", "mine"]


def test_whatever_the_lab_asks_for_is_in_the_list_of_packages() -> None:
    listed = {line.partition("#")[0].strip() for line in (LAB / "packages.txt").read_text().splitlines()}
    asked = {*needs.PROGRAMS.values(), *needs.FILES.values()} - {
        "util-linux"
    }  # Debian calls that one essential
    assert asked <= listed
