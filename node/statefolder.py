"""The state folder: one node at a time has it, and it keeps the tokens that nobody configured."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path
from typing import IO

from pydantic import SecretStr

from node.configuration import secret
from node.errors import ConfigurationError


def lock_state(folder: Path) -> IO[str]:
    """Make the state folder ours alone until the process ends, so that no thread of ours outlives the lock."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        lock = (folder / "node.lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigurationError(
            f"another node runs on {folder}", "stop it, or give this one another state_dir"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"the state folder {folder} cannot be used ({error.strerror})", "check who owns it, or set state_dir"
        ) from error
    return lock


def token_of(given: SecretStr | None, file: Path | None, own: Path) -> str:
    """Return the token as configured; without one, that of our own file, made at first start."""
    if given is None and file is None and not own.exists():
        write_atomically(own, secrets.token_urlsafe(24))
    return secret(given, file, own)


def write_atomically(path: Path, text: str) -> None:
    """Write a small file, readable by its owner alone, so that it is there whole or as it was."""
    temporary = path.with_suffix(".tmp")
    temporary.touch(mode=0o600)
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
