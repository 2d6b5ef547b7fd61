"""Certificates for the tests (an authority, a server's and a client's, by openssl), and servers that want them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tritonpress_server import Settings

TOKEN = "0123456789abcdef"


@dataclass(frozen=True)
class Certificates:
    """PEM files; the server's certificate is for `triton.test` and 127.0.0.1."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path


def write_certificates(folder: Path) -> Certificates:
    """Returns new certificates in the folder."""
    openssl("req", "-x509", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", folder=folder)
    (folder / "names").write_text("subjectAltName=DNS:triton.test,IP:127.0.0.1")
    for name in ("server", "client"):
        openssl("req", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}", folder=folder)
        signed = ["x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
        openssl(*signed, "-extfile", "names", "-out", f"{name}.pem", folder=folder)
    files = ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")
    return Certificates(*(folder / name for name in files))


def guard(certificates: Certificates, token_file: Path) -> Settings:
    """Returns the settings of a server with mutual TLS that asks for `TOKEN`, which it writes into the file."""
    token_file.write_text(TOKEN + "\n", encoding="utf-8")
    return Settings(
        tls_certificate=str(certificates.server),
        tls_key=str(certificates.server_key),
        tls_client_ca=str(certificates.ca),
        admin_token_file=str(token_file),
    )


def openssl(command: str, *arguments: str, folder: Path) -> None:
    """Runs openssl; new keys are on a curve, which is quick."""
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"] if command == "req" else []
    subprocess.run(["openssl", command, *curve, *arguments], cwd=folder, check=True, capture_output=True)
