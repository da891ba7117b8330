"""Sections about what comes in: the listener, assembly and selection."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, IPvAnyNetwork, SecretStr, model_validator

from node.settings.base import AETitle, Port, Seconds, SecretUrl, Section, Secured, is_this_machine


class Listener(Section):
    """The DICOM front door (C-ECHO, C-STORE, storage commitment, MPPS)."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 to be reached by other machines")
    port: Port = Field(11112, description="0 picks a free port")
    ae_title: AETitle = "PENNODE"
    also_called: tuple[AETitle, ...] = Field((), description="further AE titles that peers may call")
    check_called_ae: bool = Field(True, description="false: whatever AE title is called, it is us")
    unknown_peers: Literal["loopback", "accept", "reject"] = Field(
        "loopback", description="who may come that no [[peers]] lists: those of this machine, all, or nobody"
    )
    plain: bool = Field(True, description="false: port is closed, and tls_port the only way in")
    tls_port: Port | None = Field(None, description="DICOM over TLS is served here beside port; unset: it is not")
    tls_certificate: Path | None = Field(None, description="PEM chain; read again when the file changes")
    tls_key: Path | None = Field(None, description="its PEM key, not encrypted")
    tls_ca_file: Path | None = Field(
        None, description="PEM authorities of the peers' certificates, with their revocation lists if there are any"
    )
    tls_client: Literal["required", "optional", "none"] = Field(
        "required", description="whether peers show a certificate; one that is shown must be good"
    )
    fast_path: bool = Field(True, description="false: pynetdicom does it all; slower, and without most limits below")
    max_associations: int = Field(64, ge=1, description="associations served at the same time")
    max_associations_per_peer: int = Field(24, ge=1, description="of them, from one address")
    max_waiting: int = Field(64, ge=1, description="connections without an association (yet) at the same time")
    max_waiting_per_peer: int = Field(16, ge=1, description="of them, from one address; the oldest makes room")
    max_pdu: int = Field(131072, ge=4096, le=1048576, description="largest PDU accepted, in bytes")
    max_command: int = Field(16384, ge=512, le=1048576, description="largest command set accepted, in bytes")
    max_object_mb: int = Field(4096, ge=1, description="largest object accepted")
    max_association_mb: int = Field(65536, ge=1, description="bytes over one association, which is aborted after them")
    max_message_mb: int = Field(4, ge=1, description="largest data set of any other message, which is kept in memory")
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

    @model_validator(mode="after")
    def _whole_tls(self) -> Self:
        given = self.tls_certificate, self.tls_key
        if self.tls_port is None:
            if not self.plain:
                raise ValueError("plain = false needs a tls_port, or nobody can come in")
            if any(given) or self.tls_ca_file is not None:
                raise ValueError("tls_certificate, tls_key and tls_ca_file do nothing without a tls_port")
        elif not all(given):
            raise ValueError("tls_port needs tls_certificate and tls_key")
        elif (self.tls_client == "none") != (self.tls_ca_file is None):
            raise ValueError(
                "tls_ca_file says whose certificates are good: name it, or set tls_client = 'none' to ask for none"
            )
        return self


class Peer(Secured):
    """A system that may open associations with us, and how it is called back. Unset limits are the listener's."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,32}$")
    ae_title: AETitle = Field(description="its calling AE title")
    networks: tuple[IPvAnyNetwork, ...] = Field((), description="addresses it may come from; empty: any")
    enabled: bool = Field(True, description="false: it is rejected")
    called_ae_titles: tuple[AETitle, ...] = Field((), description="titles it may call us by; empty: the listener's")
    max_associations: int | None = Field(
        None, ge=1, description="at the same time, from all its addresses; unset: listener.max_associations_per_peer"
    )
    host: str = Field("", description="where it listens itself, for storage commitment and queries; empty: nowhere")
    port: Port = 104
    count: bool = Field(
        False,
        description="ask it by C-FIND how many images of a series it has, where the images do not tell; not of a PACS"
        " that forwards images while it is still receiving them",
    )

    @model_validator(mode="after")
    def _count_needs_host(self) -> Self:
        if self.count and not self.host:
            raise ValueError("count asks the peer at its host: set host too, or leave count out")
        return self


class Archive(Secured):
    """A PACS that studies are fetched from, by DIMSE at its host and port, or by DICOMweb at its url."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,32}$")
    ae_title: AETitle | None = Field(None, description="what it is called; unset: it is asked by DICOMweb, at url")
    host: str = Field("", description="where it listens for DICOM")
    port: Port = 104
    calling_ae_title: AETitle | None = Field(None, description="how we present ourselves; unset: listener.ae_title")
    retrieve: Literal["get", "move"] = Field(
        "get",
        description="get: images come back on our own association (C-GET); move: it sends them to listener.ae_title"
        " (C-MOVE), whose host and port it must know, and it must be let in as one of [[peers]]",
    )
    url: SecretUrl = Field("", description="root of its DICOMweb services (QIDO-RS and WADO-RS), in place of ae_title")
    token: SecretStr | None = Field(None, description="bearer token for url")
    token_file: Path | None = Field(None, description="a file that holds the token")
    timeout_s: float = Field(60.0, gt=0, description="it is given up when nothing is heard of it for so long")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.url) == bool(self.ae_title):
            raise ValueError("name either ae_title, with host and port, or url")
        if self.ae_title and (not self.host or not self.port):
            raise ValueError("ae_title needs the host and port where it listens")
        if not self.url and (self.token or self.token_file):
            raise ValueError("a token is for url alone")
        if self.url:
            parts = urlsplit(self.url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise ValueError("url must read http(s)://host[:port]/path")
            if self.host or self.calling_ae_title or self.retrieve != "get":
                raise ValueError("host, calling_ae_title and retrieve do nothing beside url")
            if self.tls != (parts.scheme == "https"):
                raise ValueError("tls = true goes with https://, and with nothing else")
            if parts.username is not None or parts.password is not None:
                raise ValueError("url must hold no password: set token or token_file")
            if self.token is not None and self.token_file is not None:
                raise ValueError("token and token_file exclude each other")
            if (self.token or self.token_file) and not self.tls and not is_this_machine(parts.hostname):
                raise ValueError("the token would go in clear text: url must begin with https://")
        return self


class Commitment(Section):
    """Storage commitment: how a peer that asks whether its images are safe is told (PS3.4 annex J)."""

    same_association: bool = Field(
        True, description="report on the association of the request while that is open; false: always on one of our own"
    )
    pause_s: Seconds = Field(1.0, description="wait until the peer has been at rest so long before reporting")
    timeout_s: float = Field(30.0, gt=0, description="wait for a peer's answer to a report")
    backoff_first_s: float = Field(5.0, gt=0, description="first wait after a report that failed; doubles each time")
    backoff_max_s: float = Field(900.0, gt=0, description="longest wait between two tries")
    give_up_after_s: float = Field(86400.0, gt=0, description="a report not delivered for so long is FAILED")
    max_references: int = Field(10000, ge=1, description="images that one request may name")
    max_open_per_peer: int = Field(64, ge=1, description="requests of one AE title whose report is not delivered")


class Assembly(Section):
    """When a series is complete."""

    settle_s: Seconds = Field(1.0, description="wait after the last image when the evidence is strong")
    quiet_s: Seconds = Field(
        20.0,
        description="wait at most when the evidence is weak; what is usual with a peer is learned from its own series",
    )
    quiet_min_s: Seconds = Field(2.0, description="wait at least when the evidence is weak")
    patience_s: Seconds = Field(60.0, description="wait when the evidence says that something is missing")
    open_s: Seconds = Field(120.0, description="wait for an association that stays open but sends nothing more")
    longest_s: Seconds = Field(
        3600.0, gt=0, description="a series whose images never end is sealed after so long in all"
    )


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
