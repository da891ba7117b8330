"""What the viewers' tests take from npm: pinned, checked by its digest, and kept in ``.cache`` for the next run."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.peers import program

CACHE = Path(__file__).parents[2] / ".cache" / "viewers"


@dataclass(frozen=True)
class Package:
    """One version of a package, and the integrity that its tarball must have (sha512, base64)."""

    name: str
    version: str
    integrity: str


OHIF = Package(
    "@ohif/app", "3.13.2", "WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
)
PLAYWRIGHT = Package(
    "playwright-core",
    "1.65.1",
    "hqPpz7blSMPxWVdoeE1yiBSzXsKiVOd2k+kjCvmUywD2GPO2Dd9HfcWnq9NN0GHbNZDFgZ9JfBFr+X5/BLo0qw==",
)


def unpacked(package: Package) -> Path:
    """Return the folder of a package's files, fetched if need be.

    Skips (in CI: fails) where npm is absent or cannot fetch it. Other bytes than those pinned fail everywhere.
    """
    folder = CACHE / f"{package.name.removeprefix('@').replace('/', '-')}-{package.version}"
    if folder.is_dir():
        return folder
    npm, tar = program("npm", "npm"), program("tar", "tar")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        command = [npm, "pack", f"{package.name}@{package.version}", "--pack-destination", work, "--silent"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
        if done.returncode != 0:
            reason = f"npm could not fetch {package.name}@{package.version}: {done.stderr[-500:]}"
            pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
        (tarball,) = Path(work).glob("*.tgz")
        digest = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
        assert digest == package.integrity, f"{package.name}@{package.version} is not the one that was pinned"
        subprocess.run([tar, "-xzf", tarball, "-C", work], check=True)
        # Another run may have been faster.
        if not folder.exists():
            shutil.move(Path(work) / "package", folder)
    return folder
