"""Fetches in the ledger, on both databases: asked once, begun one after the other, ended once, forgotten by age."""

from __future__ import annotations

import pytest

from node.errors import NotFound, Permanent
from node.ledger import FetchedSeries, FetchState, Ledger
from tests.node.making import SERIES, STUDY, T0, instance, seal

OTHER = "1.2.3.20"
FOUND = [
    FetchedSeries(SERIES, "MR", "t2_sag", 3),
    FetchedSeries(OTHER, "CT", "ct", None, "modality is CT, not MR"),
]


def test_the_same_is_asked_once_while_it_is_open(any_ledger: Ledger) -> None:
    first = any_ledger.ask_fetch("pacs", STUDY, [OTHER, SERIES], "anna", T0)
    assert (first.state, first.wanted, first.asked_by) == (FetchState.ASKED, (SERIES, OTHER), "anna")
    assert any_ledger.ask_fetch("pacs", STUDY, [SERIES, OTHER, SERIES], "ben", T0 + 1) == first
    assert any_ledger.ask_fetch("pacs", STUDY, [], "ben", T0 + 1).number == first.number + 1
    assert any_ledger.ask_fetch("vna", STUDY, [SERIES, OTHER], "ben", T0 + 1).number == first.number + 2
    any_ledger.cancel_fetch(first.number, "anna", T0 + 2)
    assert any_ledger.ask_fetch("pacs", STUDY, [SERIES, OTHER], "anna", T0 + 3).number == first.number + 3
    assert [one.number for one in any_ledger.fetches(2)] == [first.number + 3, first.number + 2]
    with pytest.raises(Permanent, match="3 fetches are open"):
        any_ledger.ask_fetch("pacs", "1.2.9", [], "anna", T0, most_open=3)
    with pytest.raises(NotFound, match="there is no fetch 404"):
        any_ledger.fetch(404)


def test_it_is_begun_noted_and_ended(any_ledger: Ledger) -> None:
    asked = any_ledger.ask_fetch("pacs", STUDY, [], "anna", T0)
    any_ledger.ask_fetch("pacs", "1.2.9", [], "anna", T0)
    assert any_ledger.claim_fetch("vna", T0) is None
    claimed = any_ledger.claim_fetch("pacs", T0 + 1)
    assert claimed
    assert (claimed.number, claimed.state, claimed.attempts) == (asked.number, FetchState.RUNNING, 1)
    any_ledger.note_fetched_series(claimed, FOUND, T0 + 2)
    assert any_ledger.fetch_progress(asked.number, 2, 1, 0, T0 + 3)
    again = any_ledger.claim_fetch("pacs", T0 + 4)
    assert again
    assert (again.number, again.attempts, again.completed) == (asked.number, 2, 0), (
        "one that was broken off comes first"
    )
    for number in (1, 2):
        any_ledger.record(instance(number))
    any_ledger.note_fetched_series(again, FOUND, T0 + 5)
    assert [(s.series_uid, s.announced, s.here) for s in any_ledger.fetch(asked.number).series] == [
        (SERIES, 3, 2), (OTHER, None, 0),
    ]  # fmt: skip
    said = any_ledger.announcement(SERIES)
    assert said
    assert (said.archive, said.asked_by, said.number, said.is_coming) == ("pacs", "anna", 3, True)
    assert any_ledger.announcement(OTHER) is None, "it was left out"
    assert any_ledger.end_fetch(asked.number, FetchState.FAILED, "2 of 3", "fetch again", "fetch", T0 + 6)
    assert not any_ledger.end_fetch(asked.number, FetchState.DONE, "", "", "fetch", T0 + 7)
    assert not any_ledger.fetch_progress(asked.number, 9, 9, 9, T0 + 8)
    ended = any_ledger.fetch(asked.number)
    assert (ended.state, ended.reason, ended.next_step) == (FetchState.FAILED, "2 of 3", "fetch again")
    said = any_ledger.announcement(SERIES)
    assert said
    assert not said.is_coming
    job = seal(any_ledger)
    assert job
    history = [(e.before, e.after, e.by) for e in any_ledger.journal(job) if e.subject == "fetch"]
    assert history == [("", "RUNNING", "anna"), ("", "RUNNING", "anna"), ("RUNNING", "FAILED", "fetch")]


def test_what_is_open_of_archives_that_are_gone_is_ended(any_ledger: Ledger) -> None:
    kept, gone = (any_ledger.ask_fetch(name, STUDY, [], "anna", T0) for name in ("pacs", "old"))
    assert any_ledger.end_fetches_of_others(["pacs"], T0 + 1) == 1
    assert any_ledger.fetch(kept.number).state is FetchState.ASKED
    assert any_ledger.fetch(gone.number).reason == "no archive is called old any more"


def test_old_ones_are_forgotten(any_ledger: Ledger) -> None:
    old, running = (any_ledger.ask_fetch("pacs", uid, [], "anna", T0) for uid in ("1.2.8", "1.2.9"))
    any_ledger.note_fetched_series(old, FOUND, T0)
    any_ledger.end_fetch(old.number, FetchState.DONE, "", "", "fetch", T0)
    assert any_ledger.forget_fetches(T0) == 0
    assert any_ledger.forget_fetches(T0 + 1) == 1
    assert [one.number for one in any_ledger.fetches()] == [running.number]
    assert any_ledger.announcement(SERIES) is None
