"""Real certificates for tests, made by the openssl program: one authority, any number of leaves."""

from __future__ import annotations

import ipaddress
import subprocess
from collections.abc import Sequence
from pathlib import Path

from agents.tls import TlsFiles


def make_ca(folder: Path, name: str = "migrd test authority") -> Path:
    """Create an authority in `folder` (ca.pem, ca.key) and return the path of ca.pem."""
    folder.mkdir(parents=True, exist_ok=True)
    _openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        "-keyout", str(folder / "ca.key"), "-out", str(folder / "ca.pem"),
    )  # fmt: skip
    return folder / "ca.pem"


def issue(folder: Path, name: str, sans: Sequence[str] = ()) -> TlsFiles:
    """A key and certificate with common name `name`, signed by the authority in `folder`.

    `sans` are DNS names or IP addresses; `name` is one of them in any case. Good for server and client.
    """
    key, request, cert, extensions = (folder / f"{name}.{end}" for end in ("key", "csr", "pem", "ext"))
    names = ",".join(_san(san) for san in dict.fromkeys((name, *sans)))
    extensions.write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n")
    _openssl(
        "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(request),
    )  # fmt: skip
    _openssl(
        "x509", "-req", "-days", "2", "-in", str(request), "-extfile", str(extensions),
        "-CA", str(folder / "ca.pem"), "-CAkey", str(folder / "ca.key"), "-CAcreateserial",
        "-out", str(cert),
    )  # fmt: skip
    return TlsFiles(cert=cert, key=key, ca=folder / "ca.pem")


def _san(name: str) -> str:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return f"DNS:{name}"
    return f"IP:{name}"


def _openssl(*argv: str) -> None:
    subprocess.run(["openssl", *argv], check=True, capture_output=True, timeout=30)
