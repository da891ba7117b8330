"""Sections about what comes in: the listener, assembly and selection."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, IPvAnyNetwork, model_validator

from node.settings.base import AETitle, Port, Seconds, Section


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


class Peer(Section):
    """A system that may open associations with us, and how it is called back. Unset limits are the listener's."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,32}$")
    ae_title: AETitle = Field(description="its calling AE title")
    networks: tuple[IPvAnyNetwork, ...] = Field((), description="addresses it may come from; empty: any")
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
