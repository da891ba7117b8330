"""Sections about what goes out, and how long it is kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from node.forms import Compression, Form
from node.settings.base import AETitle, Seconds, Section, Secured


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
    proof: Literal["auto", "commitment", "query", "none"] = Field(
        "auto",
        description="how we know that it holds what it took: storage commitment, a query (C-FIND, QIDO-RS), auto: what "
        "of the two it offers, or not at all",
    )


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
