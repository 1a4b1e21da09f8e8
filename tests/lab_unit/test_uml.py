"""What a UML host is made of: its command line, its first program, the files that differ from here."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from labkit import disks_iscsi, libvirt_conf, uml_image, uml_seed, uml_units
from labkit.layout import Layout
from labkit.sh import LabRefusedError
from labkit.state import Lab
from labkit.uml_host import MAX_UBD, UmlHost, command_line, free_ubd_slot, home_cpu, ubd_device

LAYOUT = Layout(name="lab", slot=2, hosts=("h1", "h2"))
FACTS = uml_seed.Facts(
    kernel="6.1.176",
    shadow="daemon:*:1:0:99999:7:::\nroot:!:20228:0:99999:7:::\n",
    iscsid_conf="node.startup = manual\n",
    public_key="ssh-ed25519 AAAA lab",
    host_key=b"private",
    host_key_public=b"public",
    chap_secret="0123456789abcdef",
    machine_id="ab" * 16,
    generators=("systemd-sysv-generator",),
)


def test_command_line_has_every_cable_with_gro_and_every_disk_in_its_slot() -> None:
    argv = command_line(LAYOUT, "h2", {"10": "/x/b.img", "2": "/x/a.img"}, [])
    cables = [word for word in argv if word.startswith("vec")]
    assert [word.split(":", 1)[0] for word in cables] == ["vec0", "vec1", "vec2"]
    assert all("gro=1" in word for word in cables), "without gro a host gets 2.8 Mbit/s"
    assert "ifname=h2-storage" in cables[1]
    assert [word for word in argv if word.startswith("ubd")][1:] == ["ubd2=/x/a.img", "ubd10=/x/b.img"]
    assert "mem=1536M" in argv
    assert "mem=512M" in command_line(LAYOUT, "s1", {}, [])


def test_a_host_says_which_signal_ended_a_command() -> None:
    assert UmlHost(LAYOUT, "h1").reach(["kill", "-9", "$$"])[-1] == "kill -9 '$$'; exit $?"


def test_host_is_told_which_resources_were_removed_while_it_was_off() -> None:
    assert "lab.gone=g1,g2" in command_line(LAYOUT, "h1", {}, ["g1", "g2"])
    assert not [word for word in command_line(LAYOUT, "h1", {}, []) if word.startswith("lab.gone")]


def test_h1_has_a_processor_to_itself_and_the_next_instance_begins_with_the_next_one() -> None:
    machines = ("h1", "h2", "h3", "s1")
    homes = [[home_cpu(host, slot, (0, 1)) for host in machines] for slot in (0, 1, 2)]
    assert homes == [[0, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 1]]
    assert [home_cpu(host, 0, (0, 1, 2, 3)) for host in machines] == [0, 3, 1, 1]
    assert [home_cpu(host, 5, (0, 1, 2, 3)) for host in machines] == [1, 0, 2, 2]
    assert home_cpu("h2", 1, (4,)) == 4


def test_disk_slots_are_given_out_lowest_first_and_run_out_with_a_reason() -> None:
    lab = Lab(layout=LAYOUT, ubd={"h1": {"1": "a", "3": "c"}})
    assert free_ubd_slot(lab, "h1") == 2
    assert free_ubd_slot(lab, "h2") == 1
    full = Lab(layout=LAYOUT, ubd={"h1": {str(slot): "x" for slot in range(1, MAX_UBD + 1)}})
    with pytest.raises(LabRefusedError, match="h1 has all 15 disks"):
        free_ubd_slot(full, "h1")
    assert ubd_device(0) == "/dev/ubda"
    assert ubd_device(MAX_UBD) == "/dev/ubdp"


def test_modules_are_inserted_dependencies_first_and_once() -> None:
    modules_dep = (
        "kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko\n"
        "kernel/fs/jbd2/jbd2.ko:\n"
        "kernel/lib/crc16.ko:\n"
        "kernel/fs/overlayfs/overlay.ko: kernel/lib/crc16.ko\n"
    )
    order = uml_image.load_order(modules_dep, ("ext4", "overlay", "builtin-one"))
    assert order == [
        "kernel/lib/crc16.ko",
        "kernel/fs/jbd2/jbd2.ko",
        "kernel/fs/ext4/ext4.ko",
        "kernel/fs/overlayfs/overlay.ko",
    ]
    script = uml_image.init_script(order, [Path("/tmp/checkout")])
    assert "mount -t hostfs -o ro,/tmp/checkout none /mnt/root/tmp/checkout" in script
    assert (
        script.index("crc16.ko")
        < script.index("ext4.ko")
        < script.index("/dev/ubda")
        < script.index("pivot_root")
    )


def test_root_can_log_in_with_a_key_on_a_machine_whose_root_is_locked() -> None:
    lines = uml_seed.unlocked_root(FACTS.shadow).splitlines()
    assert lines[0].startswith("root:*:")
    assert [line for line in lines if line.startswith("root:")] == lines[:1]
    assert "daemon:*:1:0:99999:7:::" in lines


def test_network_script_makes_the_three_networks_and_gives_the_guest_bridge_no_address() -> None:
    script = uml_seed.network_batch(LAYOUT, "h1")
    assert "link set vec0 name management\naddress add 10.79.0.11/24 dev management" in script
    assert "address add 10.79.1.11/24 dev storage" in script
    assert "link set vec2 name guests master br-guests up" in script
    assert "10.79.2." not in script


def test_secrets_are_in_files_that_only_root_reads() -> None:
    seed = uml_seed.seed(LAYOUT, "h1", FACTS)
    holders = [path for path, (_, data) in seed.files.items() if FACTS.chap_secret.encode() in data]
    assert holders == ["etc/iscsi/iscsid.conf"]
    assert all(seed.files[path][0] == 0o600 for path in [*holders, "etc/ssh/ssh_host_ed25519_key"])
    assert "var/lib/migrd-lab" in seed.hidden


def test_storage_host_runs_the_target_and_no_hypervisor() -> None:
    storage = uml_seed.seed(LAYOUT, "s1", FACTS)
    wants = [path for path in storage.links if ".wants/" in path]
    assert any("rtslib-fb-targetctl" in path for path in wants)
    assert not any("libvirtd" in path for path in (*wants, *storage.files))
    assert any("libvirtd" in path for path in uml_seed.seed(LAYOUT, "h1", FACTS).links)


def test_no_unit_is_both_wanted_and_masked() -> None:
    for host in LAYOUT.machines:
        links = uml_units.links(host)
        wanted = {Path(path).name for path in links if ".wants/" in path}
        masked = {Path(path).name for path, target in links.items() if target == "/dev/null"}
        assert not wanted & masked


def test_host_uuids_differ_between_hosts_and_labs_and_stay_the_same() -> None:
    other = replace(LAYOUT, name="other")
    uuids = [uml_seed.host_uuid(one, host) for one in (LAYOUT, other) for host in one.hosts]
    assert len(set(uuids)) == 4
    assert uml_seed.host_uuid(LAYOUT, "h1") == uuids[0]


def test_seed_becomes_a_tree_with_its_modes(tmp_path: Path) -> None:
    seed = uml_seed.Seed(
        files={"etc/secret": (0o600, b"x"), "etc/deep/er/file": (0o644, b"y")},
        links={"etc/masked": "/dev/null"},
        hidden=(),
        absent=(),
        directories=("root", "tmp", "var/tmp"),
    )
    uml_image.write_tree(tmp_path, seed)
    assert (tmp_path / "etc/secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "etc/deep/er/file").read_bytes() == b"y"
    assert (tmp_path / "etc/masked").readlink() == Path("/dev/null")
    assert (tmp_path / "root").stat().st_mode & 0o7777 == 0o700
    assert (tmp_path / "tmp").stat().st_mode & 0o7777 == 0o1777


def test_credentials_file_is_toml() -> None:
    found = tomllib.loads(disks_iscsi.credentials(LAYOUT, "g1", "h1", "s3cret"))
    assert found == {
        "target": "iqn.2026-11.org.lab:lab.g1",
        "portal": "10.79.1.5:3260",
        "username": "h1",
        "password": "s3cret",
    }


def test_an_arriving_guests_port_cannot_be_taken_by_a_connection() -> None:
    """Seen under xargs -P 8: "Failed to find an available port: Address already in use"."""
    first, last = libvirt_conf.MIGRATION_PORTS
    assert f"migration_port_min = {first}\nmigration_port_max = {last}\n" in libvirt_conf.qemu(LAYOUT, "h1")
    network = uml_units.files(LAYOUT, "h1")["etc/systemd/system/lab-network.service"]
    assert f"echo {first}-{last} >/proc/sys/net/ipv4/ip_local_reserved_ports" in network
