"""Sections about what goes out, and how long it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from node.forms import SEGMENTATIONS, Compression, Form
from node.settings.base import AETitle, Seconds, SecretUrl, Section, Secured, is_this_machine
from node.urls import Url


class Seg(Section):
    """What is written into the result objects."""

    series_description: str = Field("PENN spine segmentation (research)", max_length=64)

    @field_validator("series_description")
    @classmethod
    def _one_line(cls, words: str) -> str:
        if "\\" in words or not words.isprintable():  # LO, of which a backslash makes several (PS3.5 6.2)
            raise ValueError("it is one line without a backslash")
        return words


class Destination(Secured):
    """A PACS that takes results: by C-STORE at `ae_title`, `host` and `port`, or by STOW-RS at `url`."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,32}$")
    ae_title: AETitle = Field("", validate_default=False, description="its AE title")
    host: str = ""
    port: Annotated[int, Field(ge=1, le=65535)] = 104
    calling_ae_title: AETitle | None = Field(None, description="how we present ourselves; unset: listener.ae_title")
    url: SecretUrl = Field("", description="https://… of its DICOMweb service, to which objects are sent by STOW-RS")
    token: SecretStr | None = Field(None, description="bearer token for url")
    token_file: Path | None = Field(None, description="a file that holds it, read anew for each round")
    proxy: SecretUrl = Field("", description="http://… of a proxy on the way to url; those of the environment are not")
    forms: tuple[Form, ...] = Field((Form.SEG, Form.SR), min_length=1, description="what it gets")
    instead: tuple[Form, ...] = Field(
        (), description="what it gets, one after the other, where it takes no segmentation; a report goes with each"
    )
    omit_empty_frames: bool = Field(True, description="leave frames without a voxel out of segmentations")
    compression: Compression = Field("none", description="of segmentations; BINARY cannot be rle")
    proof: Literal["auto", "commitment", "query", "none"] = Field(
        "auto",
        description="how we know that it holds what it took: storage commitment, a query (C-FIND, QIDO-RS), auto: what "
        "of the two it offers, or not at all",
    )

    retrieve: Literal["get", "move"] = Field(
        "get",
        description="how results are read back where that is asked for: get: on our own association (C-GET); move: it"
        " sends them to listener.ae_title (C-MOVE), whose host and port it must know, and it must be one of [[peers]]",
    )

    @field_validator("url", "proxy")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        if not url:
            return url
        try:
            parts = urlsplit(url)
            whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # its text quotes what may be a password
            whole = False
        if not whole:
            raise ValueError("must read https://host[:port][/path], or http://…")
        if parts.query or parts.fragment or any(not "!" <= c <= "~" for c in url):
            raise ValueError("must be an address alone: no query, no spaces")
        return Url(url.rstrip("/"))

    @model_validator(mode="after")
    def _whole_client_tls(self) -> Self:
        """Say which keys exclude each other; `url` says by itself whether there is TLS."""
        given = self.model_fields_set
        if not self.url:
            for key in ("token", "token_file", "proxy"):
                if getattr(self, key):
                    raise ValueError(f"{key} belongs to a url: over DIMSE nobody asks for it")
            missing = [key for key in ("ae_title", "host", "port") if key not in given or not getattr(self, key)]
            if missing:
                raise ValueError(f"{' and '.join(missing)} missing: it needs ae_title, host and port, or a url")
            return self._checked_tls(self.tls)
        strange = sorted(given & {"ae_title", "host", "port", "calling_ae_title", "retrieve", "tls"})
        if strange:
            raise ValueError(f"url excludes {' and '.join(strange)}: a destination is reached by one or the other")
        parts = urlsplit(self.url)
        if parts.username is not None or parts.password is not None:
            raise ValueError("url must hold no password: set token or token_file")
        if self.token is not None and self.token_file is not None:
            raise ValueError("token and token_file exclude each other")
        if self.proof == "commitment":
            raise ValueError('DICOMweb has no storage commitment: set proof to "query", "auto" or "none"')
        if self._has_token and parts.scheme == "http" and not is_this_machine(parts.hostname or ""):
            raise ValueError("the token would go in clear text: url must begin with https://")
        return self._checked_tls(parts.scheme == "https")

    def _checked_tls(self, tls: bool) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if not tls and (self.tls_ca_file or self.tls_certificate or self.tls_server_name):
            how = "an https:// url" if self.url else "tls = true"
            raise ValueError(f"without {how} everything would go in clear text, whatever the other tls_ keys say")
        return self

    @model_validator(mode="after")
    def _forms_that_can_be(self) -> Self:
        for key, forms in (("forms", self.forms), ("instead", self.instead)):
            twice = [form for n, form in enumerate(forms) if form in forms[:n]]
            if twice:
                raise ValueError(f"{key} names {twice[0]} twice")
        if self.compression == "rle" and Form.SEG in (*self.forms, *self.instead):
            raise ValueError(
                "a BINARY segmentation (SEG) cannot be rle: set compression to none or deflated, or ask for LABELMAP"
            )
        again = [form for form in self.instead if form in SEGMENTATIONS and form in self.forms]
        if again:
            raise ValueError(f"instead holds {again[0]}, which forms holds already: where it is refused it stays so")
        if Form.SR in self.instead:
            raise ValueError("instead must not hold SR: the report of forms goes with each; name what shows the mask")
        if self.instead and set(self.forms) == {Form.SR}:
            raise ValueError("instead takes the place of what shows the mask, and forms holds nothing but SR")
        return self

    @property
    def security(self) -> Secured:
        """How it is connected to."""
        keys = {name: getattr(self, name) for name in Secured.model_fields}
        return Secured(**{**keys, "tls": self.url.startswith("https://") if self.url else self.tls})

    @property
    def _has_token(self) -> bool:
        return self.token is not None or self.token_file is not None


class Delivery(Section):
    """How results are sent, and how long we insist."""

    timeout_s: float = Field(30.0, gt=0)
    backoff_first_s: float = Field(5.0, gt=0, description="first wait after a failure; doubles each time")
    backoff_max_s: float = Field(900.0, gt=0)
    max_refusals: int = Field(5, ge=1, description="times a peer may refuse an object before its delivery is FAILED")
    report_pause_s: Seconds = Field(
        1.0, description="keep the association of a storage commitment open so long for its report"
    )
    report_timeout_s: float = Field(
        300.0, gt=0, description="a storage commitment not reported for so long is asked for again, or a query made"
    )
    proof_patience_s: Seconds = Field(
        60.0, description="what a query does not find so long after it was sent is sent again"
    )
    recheck_s: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (60.0, 3600.0, 86400.0), description="look again so long after the first proof whether it is still there"
    )
    max_losses: int = Field(
        3, ge=0, description="times an object is sent again because a peer does not hold it; then it is FAILED"
    )

    @field_validator("recheck_s")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(value):
            raise ValueError("the times must ascend, as in [60, 3600, 86400]")
        return value


class Retention(Section):
    """How long images and results stay in the spool. Jobs that are not finished are never touched."""

    days: float = Field(
        14.0,
        gt=0,
        description="finished jobs older than this leave the spool, and what peers asked and announced the ledger",
    )
    free_floor_mb: int = Field(4096, ge=0, description="below this much free disk the oldest finished jobs leave early")
    interval_s: float = Field(600.0, gt=0)
