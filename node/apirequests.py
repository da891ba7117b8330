"""What workers ask of the worker API, as JSON: checked when it is read."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from node.logs import printable
from node.settings import MODEL_PATTERN

# One line of plain text: what a database, a log line or a terminal would stumble over is shown as '?'.
Line = Annotated[str, AfterValidator(lambda text: printable(text, len(text)))]
Fence = Annotated[int, Field(ge=0, lt=1 << 31)]


# A model's name, or none: that of jobs which go to the default of whichever worker takes them.
ModelName = Annotated[str, Field(pattern=rf"{MODEL_PATTERN}|^$")]


class Greeting(BaseModel):
    """A worker says that it lives, and which models it has: its default, and all of them as name and version."""

    worker: Line = Field(min_length=1, max_length=128)
    version: Line = Field("", max_length=64)
    device: Line = Field("", max_length=200)
    model: Line = Field("", max_length=200)
    models: tuple[Annotated[Line, Field(max_length=200)], ...] = Field((), max_length=256)


class ClaimRequest(BaseModel):
    """A worker asks for a job that is for one of these models."""

    worker: Line = Field(min_length=1, max_length=64)
    models: tuple[ModelName, ...] = Field(("",), max_length=256)


class Beat(BaseModel):
    """A worker renews its lease; `progress` runs from 0 to 1."""

    fence: Fence
    progress: float = Field(0.0, ge=0, le=1)


class Failure(BaseModel):
    """A worker gives a job back. `kind`: ``retryable``, ``rejected`` (the series is unsuitable) or ``failed``."""

    fence: Fence
    kind: str = Field(pattern="^(retryable|rejected|failed)$")
    stage: Line = Field("segment", max_length=32)
    reason: Line = Field(min_length=1, max_length=2000)
    next_step: Line = Field("", max_length=2000)
