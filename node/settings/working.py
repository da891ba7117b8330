"""Sections about the node itself and its workers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from node.settings.base import Port, Seconds, SecretUrl, Section

Backend = Literal["openvino", "tensorrt", "torch"]


class Log(Section):
    """How the program logs."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["plain", "json"] = "plain"


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
    """The admin page (HTTP), and STOW-RS."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port = Field(11181, description="0 picks a free port")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="host names the page answers to, beside localhost and addresses"
    )
    token: SecretStr | None = Field(None, description="to sign in with; unset: made in state_dir/web.token")
    token_file: Path | None = Field(None, description="a file that holds the token")
    stow: bool = Field(
        False, description="true: images are taken at /dicom-web/studies (STOW-RS), within the limits of [listener] too"
    )
    stow_token: SecretStr | None = Field(
        None, description="what STOW-RS clients send as bearer token; unset: made in state_dir/stow.token"
    )
    stow_token_file: Path | None = Field(None, description="a file that holds that token")
    max_stow_mb: int = Field(8192, ge=1, description="largest STOW-RS request taken")
    max_stow_parts: int = Field(10000, ge=1, description="objects in one request")
    max_stow_requests: int = Field(8, ge=1, le=32, description="requests served at the same time; others get 503")

    @model_validator(mode="after")
    def _stow_needs_the_port(self) -> Self:
        if self.stow and not self.enabled:
            raise ValueError("stow is served on the port of the admin page: it needs enabled = true")
        return self


class Worker(Section):
    """What a worker does and how."""

    node_url: SecretUrl = Field(
        "", description="http(s)://host:port of the worker API; empty: the node on this machine"
    )
    token: SecretStr | None = Field(None, description="the node's api.token; unset: read from state_dir/worker.token")
    token_file: Path | None = Field(None, description="a file that holds the token")
    ca_file: Path | None = Field(None, description="PEM certificate authority for an https node_url")
    model: str = Field("penn-spine", description="name under trt/models, or a folder with model.onnx and manifest.json")
    models: tuple[str, ...] = Field(
        (), description="further models, named likewise, for series that [[models]] gives to them"
    )
    open_models: int = Field(2, ge=1, description="models kept open at once; the one not used for longest is closed")
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
