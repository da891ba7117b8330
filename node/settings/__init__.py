"""The configuration: one frozen, typed tree, read once at the top of a program and passed on in parts.

Order of precedence: environment (``PENNODE_SECTION_KEY``), then one TOML file, then the defaults below, with which
everything works on one machine. `node.configuration` reads it.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from node.settings.base import AE_PATTERN, AETitle, Port, Seconds, SecretUrl, Section, Secured
from node.settings.models import MODEL_PATTERN, Model
from node.settings.receiving import Archive, Assembly, Commitment, Listener, Peer, Selection
from node.settings.results import Delivery, Destination, Retention, Seg
from node.settings.working import Api, Backend, Broker, Dispatch, Ledger, Log, Web, Worker

__all__ = [
    "AE_PATTERN", "MODEL_PATTERN", "PREFIX", "AETitle", "Api", "Archive", "Assembly", "Backend", "Broker", "Commitment",
    "Delivery", "Destination", "Dispatch", "Ledger", "Listener", "Log", "Model", "Peer", "Port", "Retention", "Seconds",
    "SecretUrl", "Section", "Secured", "Seg", "Selection", "Settings", "Web", "Worker",
]  # fmt: skip

PREFIX = "PENNODE_"


class Settings(BaseSettings):
    """The whole configuration. Build it with `node.configuration.load`; functions take the section they need."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        env_nested_delimiter="_",
        env_nested_max_split=1,
        case_sensitive=False,
    )

    state_dir: Path = Field(
        default_factory=lambda: Path(os.environ.get("XDG_STATE_HOME", "~/.local/state")).expanduser() / "pennode",
        description="ledger, spool, embedded broker and tokens live here",
    )
    log: Log = Log()
    listener: Listener = Listener()
    peers: tuple[Peer, ...] = ()
    archives: tuple[Archive, ...] = ()
    commitment: Commitment = Commitment()
    assembly: Assembly = Assembly()
    selection: Selection = Selection()
    models: tuple[Model, ...] = ()
    ledger: Ledger = Ledger()
    broker: Broker = Broker()
    dispatch: Dispatch = Dispatch()
    api: Api = Api()
    web: Web = Web()
    worker: Worker = Worker()
    seg: Seg = Seg()
    destinations: tuple[Destination, ...] = ()
    delivery: Delivery = Delivery()
    retention: Retention = Retention()

    @field_validator("archives", "destinations", "models", "peers")
    @classmethod
    def _unique_names(
        cls, value: tuple[Archive | Destination | Model | Peer, ...], info: ValidationInfo
    ) -> tuple[Archive | Destination | Model | Peer, ...]:
        names = [one.name for one in value]
        if len(set(names)) != len(names):
            raise ValueError(f"two {info.field_name} have the same name")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file, whose values arrive as keyword arguments."""
        return env_settings, init_settings

    @property
    def ledger_url(self) -> str:
        """The ledger's SQLAlchemy URL, with its default filled in."""
        return self.ledger.url or f"sqlite:///{self.state_dir / 'ledger.sqlite3'}"

    @property
    def spool_dir(self) -> Path:
        """Where received images and results lie."""
        return self.state_dir / "spool"
