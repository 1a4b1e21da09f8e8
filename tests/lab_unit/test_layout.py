"""Addresses and names: two labs, two hosts or two networks never share one."""

from __future__ import annotations

import itertools

import pytest
from labkit.layout import MAX_GUESTS, MAX_SLOTS, NETWORKS, Layout, check_lab_name, host_index

HOSTS = tuple(f"h{number}" for number in range(1, 10))


def layout(slot: int = 0, name: str = "lab") -> Layout:
    return Layout(name=name, slot=slot, hosts=HOSTS)


def test_addresses_of_every_slot_are_distinct_and_in_their_own_subnet() -> None:
    seen: set[str] = set()
    for slot in range(MAX_SLOTS):
        one = layout(slot)
        found = [one.gateway(network) for network in NETWORKS]
        found += [one.host_address(host, "management") for host in one.machines]
        found += [one.host_address(host, "storage") for host in one.machines]
        found += [one.bmc_address(host) for host in HOSTS]
        found += [one.guest_address(number) for number in range(MAX_GUESTS)]
        assert len(set(found)) == len(found)
        assert not seen & set(found)
        assert all(address.startswith(f"10.{77 + slot}.") for address in found)
        seen |= set(found)


def test_macs_are_distinct_over_labs_hosts_networks_and_guests() -> None:
    labs = [layout(slot) for slot in range(MAX_SLOTS)]
    hosts = [
        one.host_mac(host, network)
        for one in labs
        for host, network in itertools.product(one.machines, NETWORKS)
    ]
    guests = [one.guest_mac(number) for one in labs for number in range(MAX_GUESTS)]
    assert len(set(hosts + guests)) == len(hosts) + len(guests)
    assert all(int(mac[:2], 16) & 1 == 0 for mac in hosts + guests), "a multicast MAC reaches nobody"


def test_interface_names_fit_into_the_kernels_15_bytes() -> None:
    one = layout(name="abcdefgh")
    names = [one.tap(host, network) for host in (*HOSTS, "h16", "s1") for network in NETWORKS]
    assert max(map(len, [*names, f"mlab-{one.name}"])) <= 15


@pytest.mark.parametrize("name", ["", "Lab", "1lab", "a/b", "..", "ninechars", "a-b", "lab\n"])
def test_lab_name_that_could_leave_its_directory_or_interface_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="lab name"):
        check_lab_name(name)


@pytest.mark.parametrize("name", ["s1", "h0", "h17", "h", "h1x", "H1", "../h1"])
def test_unknown_host_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no such host name"):
        host_index(name)


def test_hosts_have_no_address_on_the_guest_network() -> None:
    with pytest.raises(ValueError, match="guest network"):
        layout().host_address("h1", "guests")
    with pytest.raises(ValueError, match="guest number"):
        layout().guest_address(MAX_GUESTS)
