"""A certificate authority for the tests, made by openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.peers import program


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, both PEM."""

    certificate: Path
    key: Path


class Authority:
    """Issues certificates below a folder; `certificate` is its own."""

    def __init__(self, folder: Path, name: str = "Test Authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.certificate, self._key = folder / "ca.pem", folder / "ca.key"
        _openssl(
            "req", "-x509", *_new_key(self._key), "-subj", f"/CN={name}", "-days", "30", "-out", self.certificate,
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip

    def issue(self, name: str, days: int = 30, usage: str = "serverAuth,clientAuth") -> Certificate:
        """Return a certificate for `name`, localhost and 127.0.0.1; with fewer than 0 days, one that has expired."""
        made = Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName=DNS:{name},DNS:localhost,IP:127.0.0.1\nextendedKeyUsage={usage}\n")
        _openssl("req", *_new_key(made.key), "-subj", f"/CN={name}", "-out", request)
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-days", days, "-extfile",
            extensions, "-out", made.certificate,
        )  # fmt: skip
        return made

    def revoke(self, *revoked: Certificate) -> Path:
        """Return the authority's certificate and its list of revoked ones in one file."""
        base = self._folder / "database"
        base.mkdir()
        (base / "index.txt").touch()
        configuration = base / "ca.cnf"
        configuration.write_text(
            f"[ca]\ndefault_ca=a\n[a]\ndatabase={base}/index.txt\ndefault_md=sha256\ndefault_crl_days=30\n"
        )
        both = ("ca", "-config", configuration, "-cert", self.certificate, "-keyfile", self._key)
        for one in revoked:
            _openssl(*both, "-revoke", one.certificate)
        _openssl(*both, "-gencrl", "-out", base / "crl.pem")
        whole = self._folder / "ca-and-crl.pem"
        whole.write_bytes(self.certificate.read_bytes() + (base / "crl.pem").read_bytes())
        return whole


def _new_key(path: Path) -> list[str]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(path)]


def _openssl(*arguments: object) -> None:
    command = [program("openssl", "openssl"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
