"""Sections about what goes out, and how long it is kept."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from node.forms import Compression, Form

from node.settings.base import AETitle, Section, Secured


class Seg(Section):
    """What is written into the result objects."""

    series_description: str = Field("PENN spine segmentation (research)", max_length=64)


class Destination(Secured):
    """A PACS that takes results by C-STORE."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,32}$")
    ae_title: AETitle
    host: str = Field(min_length=1)
    port: Annotated[int, Field(ge=1, le=65535)]
    calling_ae_title: AETitle | None = Field(None, description="how we present ourselves; unset: listener.ae_title")
    forms: tuple[Form, ...] = Field((Form.SEG,), min_length=1, description="what it gets")
    instead: tuple[Form, ...] = Field(
        (), description="what it gets, one after the other, where it takes no segmentation; a report goes with each"
    )
    omit_empty_frames: bool = Field(True, description="leave frames without a voxel out of segmentations")
    compression: Compression = Field("none", description="of segmentations; BINARY cannot be rle")


class Delivery(Section):
    """How results are sent, and how long we insist."""

    timeout_s: float = Field(30.0, gt=0)
    backoff_first_s: float = Field(5.0, gt=0, description="first wait after a failure; doubles each time")
    backoff_max_s: float = Field(900.0, gt=0)
    max_refusals: int = Field(5, ge=1, description="times a peer may refuse an object before its delivery is FAILED")


class Retention(Section):
    """How long images and results stay in the spool. Jobs that are not finished are never touched."""

    days: float = Field(
        14.0,
        gt=0,
        description="finished jobs older than this leave the spool, and what peers asked and announced the ledger",
    )
    free_floor_mb: int = Field(4096, ge=0, description="below this much free disk the oldest finished jobs leave early")
    interval_s: float = Field(600.0, gt=0)
