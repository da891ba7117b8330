"""How the results of two models agree, as the ledger keeps it and people see it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from node.records import Job
from node.states import WAITING, JobState


@dataclass(frozen=True)
class Agreement:
    """One segment in the result of a series' own model and in that of a shadow.

    `code`, `scheme` and `meaning` are its coded type (0062,000F), `label` is its Segment Label. `dice` is
    2 |own and shadow| / (|own| + |shadow|) over voxels, 0..1; the volumes are in ml, 0 where a result has no such
    segment.
    """

    label: str
    code: str
    scheme: str
    meaning: str
    dice: float
    own_ml: float
    shadow_ml: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """How the result of a shadow, `job_id`, compares with that of its series' own job, `own_id`, each as of one fence.

    Without segments, `reason` says why there are no figures. `at` is in seconds since 1970.
    """

    job_id: str
    fence: int
    own_id: str
    own_fence: int
    at: float
    segments: tuple[Agreement, ...] = ()
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def outlook(shadow: Job, own: Job) -> str:
    """Return why a shadow has not been compared with its series' own job, in words."""
    if shadow.state is not JobState.STORED:
        return f"the shadow is {shadow.state}: there is no result of it to compare"
    if own.state in (*WAITING, JobState.RUNNING):
        return "the series has no result of its own yet"
    if own.state in (JobState.SEGMENTED, JobState.DELIVERED):
        return "not compared yet, or one of the results had left the spool before"
    return f"the series' own job is {own.state}: there is no result to compare with"
