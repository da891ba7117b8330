"""The configuration: one frozen, typed tree, read once at the top of a program and passed on in parts.

Order of precedence: environment (``PENNODE_SECTION_KEY``), then one TOML file, then the defaults below, with which
everything works on one machine. `node.configuration` reads it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from node.urls import Url

PREFIX = "PENNODE_"

SecretUrl = Annotated[str, AfterValidator(Url)]
# PS3.5 table 6.2-1, VR AE: at most 16 characters, no backslash or control character, not only spaces.
AE_PATTERN = r"^[\x20-\x5b\x5d-\x7e]*[\x21-\x5b\x5d-\x7e][\x20-\x5b\x5d-\x7e]*$"
AETitle = Annotated[str, Field(min_length=1, max_length=16, pattern=AE_PATTERN)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0)]
Backend = Literal["openvino", "tensorrt", "torch"]


class Section(BaseModel):
    """Base of all sections: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Log(Section):
    """How the program logs."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["plain", "json"] = "plain"


class Listener(Section):
    """The DICOM front door (C-ECHO, C-STORE)."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 to be reached by other machines")
    port: Port = Field(11112, description="0 picks a free port")
    ae_title: AETitle = "PENNODE"
    fast_path: bool = Field(True, description="false: pynetdicom does it all; slower, and without most limits below")
    max_associations: int = Field(64, ge=1, description="associations served at the same time")
    max_associations_per_peer: int = Field(24, ge=1, description="of them, from one address")
    max_waiting: int = Field(64, ge=1, description="connections without an association (yet) at the same time")
    max_waiting_per_peer: int = Field(16, ge=1, description="of them, from one address; the oldest makes room")
    max_pdu: int = Field(131072, ge=4096, le=1048576, description="largest PDU accepted, in bytes")
    max_command: int = Field(16384, ge=512, le=1048576, description="largest command set accepted, in bytes")
    max_object_mb: int = Field(4096, ge=1, description="largest object accepted")
    max_series_instances: int = Field(20000, ge=1, description="instances of one series accepted")
    artim_s: float = Field(10.0, gt=0, description="a connection without an association is closed after this")
    pdu_timeout_s: float = Field(30.0, gt=0, description="a PDU that takes longer ends the association")
    min_rate: int = Field(
        4096, ge=0, description="bytes per second, over pdu_timeout_s, below which an object ends the association"
    )
    network_timeout_s: Seconds = Field(60.0, description="an association idle for longer is aborted; 0: never")
    free_floor_mb: int = Field(
        1024, ge=0, description="below this much free disk, C-STORE is refused with 0xA700, new associations for now"
    )


class Assembly(Section):
    """When a series is complete."""

    settle_s: Seconds = Field(1.0, description="wait after the last image when the evidence is strong")
    quiet_s: Seconds = Field(20.0, description="wait after the last image when the evidence is weak")
    open_s: Seconds = Field(120.0, description="wait for an association that stays open but sends nothing more")


class Selection(Section):
    """Which series are segmented. Every rule must agree; an empty list agrees with everything. Case never matters."""

    modalities: tuple[str, ...] = ("MR",)
    sop_classes: tuple[Literal["MR Image Storage", "Enhanced MR Image Storage"], ...] = (
        "MR Image Storage",
        "Enhanced MR Image Storage",
    )
    orientations: tuple[Literal["sagittal", "coronal", "axial"], ...] = ("sagittal",)
    min_slices: int = Field(7, ge=1)
    max_slices: int = Field(1024, ge=1)
    body_parts: tuple[str, ...] = Field(
        ("*SPINE*", "*SPINAL*", "*VERTEB*", "*LUMBAR*", "*THORAC*", "*CERVIC*", "*SACR*", "BACK", "NECK"),
        description="patterns for BodyPartExamined; where it is absent, description_patterns decide",
    )
    description_patterns: tuple[str, ...] = Field(
        (
            "*spine*",
            "*spinal*",
            "*lumbar*",
            "*lumbal*",
            "*thorac*",
            "*cervic*",
            "*wirbel*",
            "*[hbl]ws*",
            "*rachis*",
            "*colonna*",
            "*columna*",
            "*vertebr*",
            "*[ctl]-spine*",
            "*sacr*",
        ),
        description="patterns for SeriesDescription, ProtocolName and StudyDescription",
    )
    exclude_patterns: tuple[str, ...] = Field(
        (
            "*localizer*",
            "*localiser*",
            "*scout*",
            "*survey*",
            "*plan scan*",
            "*topogram*",
            "*screen save*",
            "*phoenix*",
            "*myelo*",
            "*mip*",
            "*subtract*",
        ),
        description="patterns for SeriesDescription that rule a series out",
    )
    contrast: Literal["any", "required", "absent"] = Field("any", description="contrast agent (0018,0010)")


class Ledger(Section):
    """The database that is the truth about every series."""

    url: SecretUrl = Field("", description="SQLAlchemy URL; empty: SQLite in state_dir")


class Broker(Section):
    """The Celery broker: carries hints, never truth."""

    url: SecretUrl = Field("", description="redis://, rediss:// or filesystem://; empty: filesystem in state_dir")
    ca_file: Path | None = Field(None, description="PEM authority for rediss://; unset: those of the system")
    queue: str = Field("segment", pattern=r"^[A-Za-z0-9_.-]{1,64}$")

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        if not url:
            return url
        parts = urlsplit(url)
        if parts.scheme == "filesystem":
            if parts.netloc or not parts.path:
                raise ValueError("a folder is named by its whole path, as in filesystem:///var/lib/pennode/broker")
        elif parts.scheme not in ("redis", "rediss"):
            raise ValueError("must begin with redis://, rediss:// or filesystem://")
        elif not re.fullmatch(r"/?[0-9]*", parts.path) or parts.port == 0 or not parts.hostname:
            raise ValueError("must read redis://[:password@]host[:port][/number]")
        return url


class Dispatch(Section):
    """How jobs are handed to workers."""

    window: int = Field(32, ge=1, description="messages in the queue at most; 4 per live worker if that is more")
    requeue_after_s: Seconds = Field(300.0, description="a message nobody claimed is published again after this")
    lease_s: float = Field(60.0, ge=1, description="a worker silent for longer has lost its job")
    max_attempts: int = Field(3, ge=1, description="claims before a job that never finishes is FAILED")
    retry_after_s: Seconds = Field(30.0, description="wait before a retryable failure is tried again")


class Api(Section):
    """The worker API (HTTP)."""

    host: str = "127.0.0.1"
    port: Port = Field(11180, description="0 picks a free port")
    token: SecretStr | None = Field(None, description="shared with the workers; unset: made in state_dir/worker.token")
    token_file: Path | None = Field(None, description="a file that holds the token")
    tls_certificate: Path | None = Field(None, description="PEM chain; serves HTTPS together with tls_key")
    tls_key: Path | None = None
    max_result_mb: int = Field(2048, ge=1, description="largest result bundle taken")

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: without both the API would speak plain HTTP")
        return self


class Web(Section):
    """The admin page (HTTP)."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port = Field(11181, description="0 picks a free port")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="host names the page answers to, beside localhost and addresses"
    )
    token: SecretStr | None = Field(None, description="to sign in with; unset: made in state_dir/web.token")
    token_file: Path | None = Field(None, description="a file that holds the token")


class Worker(Section):
    """What a worker does and how."""

    node_url: SecretUrl = Field(
        "", description="http(s)://host:port of the worker API; empty: the node on this machine"
    )
    token: SecretStr | None = Field(None, description="the node's api.token; unset: read from state_dir/worker.token")
    token_file: Path | None = Field(None, description="a file that holds the token")
    ca_file: Path | None = Field(None, description="PEM certificate authority for an https node_url")
    model: str = Field("penn-spine", description="name under trt/models, or a folder with model.onnx and manifest.json")
    backend: Backend = Field("openvino", description="openvino, the CPU engine; tensorrt or torch, on an NVIDIA GPU")
    fallback: tuple[Backend, ...] = Field(
        (), description="backends to serve on instead where that one cannot, in this order; none: it fails"
    )
    precision: Literal["f32", "bf16", "int8", "f16"] = Field(
        "f32", description="f32 everywhere; bf16 and int8 on openvino; f16 on tensorrt and torch"
    )
    threads: int = Field(0, ge=0, description="CPU threads; 0: all cores")
    batch: int = Field(8, ge=1, le=512, description="patches run at once")
    slab_mb: int = Field(
        512, ge=16, description="GPU memory that a series may take beside the network; longer ones go slab by slab"
    )
    time_limit_s: int = Field(1800, ge=10, description="a job that runs longer is killed and tried again")
    overlap: float | None = Field(
        None,
        ge=0,
        le=0.75,
        description="share of a patch that neighbours repeat; unset: what the model's manifest says",
    )
    extraction: Literal["spine", "tissue", "all"] = Field(
        "spine",
        description="where the model runs: spine, where its finder sees one; tissue, not in air; all, everywhere",
    )


class Seg(Section):
    """What is written into the result objects."""

    series_description: str = Field("PENN spine segmentation (research)", max_length=64)
    omit_empty_frames: bool = True


class Destination(Section):
    """A PACS that takes results by C-STORE."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,32}$")
    ae_title: AETitle
    host: str = Field(min_length=1)
    port: Annotated[int, Field(ge=1, le=65535)]
    calling_ae_title: AETitle | None = Field(None, description="how we present ourselves; unset: listener.ae_title")


class Delivery(Section):
    """How results are sent, and how long we insist."""

    timeout_s: float = Field(30.0, gt=0)
    backoff_first_s: float = Field(5.0, gt=0, description="first wait after a failure; doubles each time")
    backoff_max_s: float = Field(900.0, gt=0)
    max_refusals: int = Field(5, ge=1, description="times a peer may refuse an object before its delivery is FAILED")


class Retention(Section):
    """How long images and results stay in the spool. Jobs that are not finished are never touched."""

    days: float = Field(14.0, gt=0, description="finished jobs older than this leave the spool")
    free_floor_mb: int = Field(4096, ge=0, description="below this much free disk the oldest finished jobs leave early")
    interval_s: float = Field(600.0, gt=0)


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
    assembly: Assembly = Assembly()
    selection: Selection = Selection()
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

    @field_validator("destinations")
    @classmethod
    def _unique_names(cls, value: tuple[Destination, ...]) -> tuple[Destination, ...]:
        names = [d.name for d in value]
        if len(set(names)) != len(names):
            raise ValueError("two destinations have the same name")
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
