"""Records put into words for people: states, times, and the HTML templates of the admin page."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import jinja2

from node.evidence import Weight
from node.forms import in_words
from node.ledger import CommitmentState, FetchState, StepState
from node.logs import printable
from node.records import RESEARCH_NOTICE, Job
from node.states import FINISHED, JOB_MOVES, UNFINISHED, DeliveryState, JobState

# A tone for the colour of a state, and words for a job that carries no reason of its own.
STATES: dict[JobState, tuple[str, str]] = {
    JobState.READY: ("wait", "Will be offered to the workers."),
    JobState.QUEUED: ("wait", "Waits for a worker to take it."),
    JobState.RUNNING: ("busy", "Is being segmented."),
    JobState.SEGMENTED: ("busy", "Segmented; the results are on their way."),
    JobState.DELIVERED: ("good", "The results are delivered."),
    JobState.SKIPPED: ("calm", "Not a series this node segments."),
    JobState.REJECTED: ("warn", "The images cannot be segmented."),
    JobState.FAILED: ("bad", "Given up."),
    JobState.CANCELLED: ("calm", "Stopped by an operator."),
    JobState.SUPERSEDED: ("calm", "More images came; a newer job took over."),
    JobState.STORED: ("good", "A shadow's result: kept here, and not sent."),
}

DELIVERY_TONES: dict[DeliveryState, str] = {
    DeliveryState.PENDING: "wait",
    DeliveryState.SENDING: "busy",
    DeliveryState.SENT: "good",
    DeliveryState.COMMITTED: "good",
    DeliveryState.FAILED: "bad",
    DeliveryState.CANCELLED: "calm",
    DeliveryState.REPLACED: "calm",
}

COMMITMENT_TONES: dict[CommitmentState, str] = {
    CommitmentState.PENDING: "wait",
    CommitmentState.REPORTED: "good",
    CommitmentState.FAILED: "bad",
}
STEP_TONES: dict[StepState, str] = {
    StepState.IN_PROGRESS: "busy",
    StepState.COMPLETED: "good",
    StepState.DISCONTINUED: "warn",
}
FETCH_TONES: dict[FetchState, str] = {
    FetchState.ASKED: "wait",
    FetchState.RUNNING: "busy",
    FetchState.DONE: "good",
    FetchState.FAILED: "bad",
    FetchState.CANCELLED: "calm",
}
EVIDENCE_TONES: dict[Weight, str] = {Weight.FOR: "good", Weight.AGAINST: "warn", Weight.NEUTRAL: "calm"}

# Views of several states: what is under way, and what wants a person.
VIEWS: dict[str, frozenset[JobState]] = {
    "open": UNFINISHED,
    "problems": frozenset({JobState.FAILED, JobState.REJECTED}),
}


def states_of(view: str) -> frozenset[JobState] | None:
    """Return the states a view shows, by the name of a view or of one state; None: all of them."""
    return VIEWS.get(view) or frozenset(state for state in JobState if state == view) or None


def views(counts: dict[JobState, int], shown: str) -> list[tuple[str, str, int]]:
    """Return `(name, label, number of jobs)` of the views worth a link."""
    found = [("", "All", sum(counts.values()))]
    found += [(name, name.capitalize(), sum(counts.get(s, 0) for s in of)) for name, of in VIEWS.items()]
    return found + [(s.value, s.value, counts.get(s, 0)) for s in JobState if counts.get(s) or s == shown]


def verbs(job: Job) -> list[tuple[str, str]]:
    """Return `(verb, label)` of what an operator may do to a job."""
    found = []
    if job.state in FINISHED and JobState.READY in JOB_MOVES[job.state]:
        only_delivery = job.state is JobState.FAILED and job.stage == "delivery"
        found.append(("retry", "Send again" if only_delivery else "Retry"))
    if JobState.CANCELLED in JOB_MOVES[job.state]:
        found.append(("cancel", "Cancel"))
    if job.state is JobState.DELIVERED:
        found += [("prove", "Ask the PACS again"), ("read-back", "Read back and compare")]
    return found


def span(seconds: float) -> str:
    """Return a length of time as one rounded number: ``42 s``, ``5 min``, ``3 h``, ``2 d``."""
    seconds = max(0.0, seconds)
    for unit, size, limit in (("s", 1, 60), ("min", 60, 60), ("h", 3600, 48)):
        if int(seconds / size) < limit:
            return f"{int(seconds / size)} {unit}"
    return f"{int(seconds / 86400)} d"


def clock(at: float) -> str:
    """Return a time in the node's own time zone, which it names: ``2026-03-01 14:05:09 +0100``."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")


def templates() -> jinja2.Environment:
    """Return the templates: everything is escaped, an unknown name is an error, peers' text goes through ``peer``."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        notice=RESEARCH_NOTICE, states=STATES, tones=DELIVERY_TONES, commitment_tones=COMMITMENT_TONES,
        step_tones=STEP_TONES, weights=EVIDENCE_TONES, fetch_tones=FETCH_TONES,
    )  # fmt: skip
    environment.filters.update(form=in_words, peer=lambda text: printable(text, 256), clock=clock, span=span)
    return environment
