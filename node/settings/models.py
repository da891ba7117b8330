"""Which model a series goes to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from node.settings.base import Section

# As a model's manifest names it (`trt.companions`).
MODEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Model(Section):
    """A model, and the series it is for: every rule must agree, an empty list agrees with everything, case is ignored.

    The rules say the same as those of [selection], which come first; an absent value agrees with no pattern.
    """

    name: str = Field(pattern=MODEL_PATTERN, description="the name in its manifest.json")
    shadow: bool = Field(False, description="true: it runs beside the series' own model; its result is never sent")
    body_parts: tuple[str, ...] = Field((), description="patterns for BodyPartExamined")
    description_patterns: tuple[str, ...] = Field(
        (), description="patterns for SeriesDescription, ProtocolName and StudyDescription"
    )
    exclude_patterns: tuple[str, ...] = Field((), description="patterns for SeriesDescription that rule a series out")
    sequence_names: tuple[str, ...] = Field((), description="patterns for SequenceName (0018,0024)")
    orientations: tuple[Literal["sagittal", "coronal", "axial"], ...] = ()
    contrast: Literal["any", "required", "absent"] = Field("any", description="contrast agent (0018,0010)")
    min_slices: int = Field(1, ge=1)
    max_slices: int = Field(1 << 20, ge=1)
