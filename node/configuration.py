"""Reading the configuration, showing it, and finding its secrets. Called at the top of a program only."""

from __future__ import annotations

import difflib
import os
import tomllib
import typing
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_settings import SettingsError

from node.errors import ConfigurationError
from node.settings import PREFIX, Section, Settings
from node.urls import Url, masked

# Names the program itself reads from the environment, beside the settings.
RESERVED = frozenset({"PENNODE_CONFIG"})
DEFAULT_FILE = Path("/etc/pennode/pennode.toml")


def load(path: Path | None = None) -> Settings:
    """Read the configuration once.

    `path` is the ``--config`` option; without it ``PENNODE_CONFIG`` names the file, then ``/etc/pennode/pennode.toml``
    if there is one.

    Raises
    ------
    ConfigurationError
        The file cannot be read, a key is unknown (its nearest neighbour is named), or a value does not fit.
    """
    if path is None:
        named = os.environ.get("PENNODE_CONFIG")
        path = Path(named) if named else DEFAULT_FILE if DEFAULT_FILE.exists() else None
    values = _read(path) if path else {}
    _refuse_unknown_variables(os.environ)
    try:
        return Settings(**values)
    except SettingsError as error:
        # Its text names the field; the value, which may be secret, is in the cause alone.
        raise ConfigurationError(f"{error}", 'lists and tables in the environment are JSON, as ["MR"]') from None
    except ValidationError as error:
        where = f" in {path}" if path else ""
        raise ConfigurationError("; ".join(_explain(e, where) for e in error.errors())) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the settings file {path}: {error}", "check --config") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}", "mend that line") from error


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    """A misspelt variable must not pass in silence: pydantic looks only for those it knows."""
    known = set(RESERVED)
    for name, field in Settings.model_fields.items():
        known.add(f"{PREFIX}{name}".upper())
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            known |= {f"{PREFIX}{name}_{key}".upper() for key in field.annotation.model_fields}
    for name in environ:
        if name.startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            raise ConfigurationError(f"unknown environment variable {name}", f"did you mean {near[0]}?" if near else "")


def _keys_at(loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the table at `loc` may hold."""
    model: type[BaseModel] = Settings
    for key in loc:
        if isinstance(key, int):
            continue
        annotation = model.model_fields[key].annotation
        candidates = (annotation, *typing.get_args(annotation))
        inner = [a for a in candidates if isinstance(a, type) and issubclass(a, BaseModel)]
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)


def _explain(error: Any, where: str) -> str:
    loc = tuple(error["loc"])
    name = ".".join(str(part) for part in loc)
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(loc[-1]), _keys_at(loc[:-1]), 1, 0.4)
        return f"unknown setting {name}{where}" + (f"; did you mean {near[0]}?" if near else "")
    secret_kind = any(kind in name for kind in ("token", "url", "proxy"))
    if isinstance(error["input"], BaseModel | dict | SecretStr) or secret_kind:
        return f"setting {name}{where}: {error['msg']}"
    return f"setting {name}{where}: {error['msg']} (it is {masked(repr(error['input']))})"


def effective(settings: Settings) -> dict[str, Any]:
    """Return the configuration as plain values, secrets masked, for ``pennode config show``."""

    def plain(value: Any) -> Any:
        if isinstance(value, BaseModel):
            return {name: plain(getattr(value, name)) for name in type(value).model_fields}
        if isinstance(value, SecretStr):
            return "***"
        if isinstance(value, Url):
            return masked(value)
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path | IPv4Network | IPv6Network) else value

    tree: dict[str, Any] = plain(settings)
    tree["ledger"]["url"] = masked(settings.ledger_url)
    return tree


def secret(given: SecretStr | None, file: Path | None, fallback: Path) -> str:
    """Return a token: as given, or as `file` holds it, or as `fallback` (made by the node) holds it.

    Raises
    ------
    ConfigurationError
        There is no token, or its file cannot be read or is empty.
    """
    if given is not None:
        if not given.get_secret_value().strip():
            raise ConfigurationError("the token is empty", "give it a value, or leave it out")
        return given.get_secret_value()
    source = file or fallback
    try:
        token = source.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(
            f"no token: {source} cannot be read ({error.strerror})", "start the node once, or set the token"
        ) from error
    if not token:
        raise ConfigurationError(f"no token: {source} is empty", "write the token into it")
    return token
