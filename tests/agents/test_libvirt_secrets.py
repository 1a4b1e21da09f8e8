"""libvirt's secrets, on a connection that answers as libvirtd does (test:///default has no secrets)."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import libvirt
import pytest

from agents.hypervisor.libvirt_secrets import has_secret, put_secret, secret_xml

UUID = "11111111-2222-3333-4444-555555555555"


def error(code: int) -> libvirt.libvirtError:
    found = libvirt.libvirtError("libvirt says no")
    found.err = (code, 0, "libvirt says no", 0, "", "", "", 0, 0)
    return found


class Secret:
    """virSecretGetValue refuses on a private secret before it looks for a value."""

    def __init__(self, *, private: bool, value: bytes | None) -> None:
        self.private, self.held = private, value

    def value(self) -> bytes:
        if self.private:
            raise error(libvirt.VIR_ERR_INVALID_SECRET)
        if self.held is None:
            raise error(libvirt.VIR_ERR_NO_SECRET)
        return self.held

    def setValue(self, value: bytes) -> None:
        self.held = value


class Connection:
    """Secrets by UUID and by usage."""

    def __init__(self, **secrets: Secret) -> None:
        self.secrets = secrets
        self.defined: list[str] = []
        self.trouble: int | None = None

    def _look(self, key: str) -> Secret:
        if self.trouble is not None:
            raise error(self.trouble)
        if key not in self.secrets:
            raise error(libvirt.VIR_ERR_NO_SECRET)
        return self.secrets[key]

    def secretLookupByUUIDString(self, uuid: str) -> Secret:
        return self._look(uuid)

    def secretLookupByUsage(self, kind: int, usage: str) -> Secret:
        assert kind == libvirt.VIR_SECRET_USAGE_TYPE_ISCSI
        return self._look(usage)

    def secretDefineXML(self, text: str) -> Secret:
        self.defined.append(text)
        root = ET.fromstring(text)
        key = root.findtext("uuid") or root.findtext("usage/target") or ""
        self.secrets[key] = Secret(private=root.get("private") == "yes", value=None)
        return self.secrets[key]


@pytest.mark.parametrize(
    ("secret", "there"),
    [
        (None, False),
        (Secret(private=False, value=None), False),
        (Secret(private=False, value=b"x"), True),
        (Secret(private=True, value=None), True),  # libvirt does not tell
        (Secret(private=True, value=b"x"), True),
    ],
)
def test_what_counts_as_there(secret: Secret | None, there: bool) -> None:
    connection = Connection(**({"lab": secret} if secret else {}))
    assert has_secret(connection, None, "lab") is there


def test_a_missing_secret_is_defined_private_and_gets_its_value() -> None:
    connection = Connection()
    put_secret(connection, None, "lab", b"hush")
    assert connection.defined == [secret_xml(None, "lab")]
    assert (connection.secrets["lab"].private, connection.secrets["lab"].held) == (True, b"hush")
    assert "hush" not in connection.defined[0]


@pytest.mark.parametrize("value", [None, b"wrong"])
def test_an_existing_secret_gets_the_value_and_is_not_defined_again(value: bytes | None) -> None:
    connection = Connection(**{UUID: Secret(private=True, value=value)})
    put_secret(connection, UUID, None, b"hush")
    assert connection.secrets[UUID].held == b"hush"
    assert connection.defined == []


def test_other_errors_are_not_taken_for_absence() -> None:
    connection = Connection()
    connection.trouble = libvirt.VIR_ERR_INTERNAL_ERROR
    with pytest.raises(libvirt.libvirtError):
        has_secret(connection, UUID, None)
    with pytest.raises(libvirt.libvirtError):
        put_secret(connection, UUID, None, b"hush")
    assert connection.defined == []


def test_the_definition_names_uuid_and_usage() -> None:
    root = ET.fromstring(secret_xml(UUID, None))
    assert (root.get("private"), root.get("ephemeral"), root.findtext("uuid")) == ("yes", "no", UUID)
    assert root.find("usage").get("type") == "iscsi"  # type: ignore[union-attr]
