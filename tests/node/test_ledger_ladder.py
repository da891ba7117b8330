"""Rungs in the ledger, on SQLite and PostgreSQL: what takes the place of what a destination does not take."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from node.forms import SOP_CLASSES, Recipe, in_words, leads, short
from node.ledger import Ledger
from node.records import Result
from node.settings import Delivery
from node.states import DeliveryState, JobState
from tests.node.making import SERIES, T0, claim, instance, seal, sealed

D, S = DeliveryState, JobState
LADDER = [["SEG", "SR:SEG"], ["SC", "SR"], ["GSPS", "SR"]]


def segmented(ledger: Ledger, first: Sequence[str], made: Sequence[str], to: Sequence[str] = ("pacs",)) -> str:
    """A job with one result of each key in `made`, the SC twice."""
    job = sealed(ledger)
    held = claim(ledger, job)
    keys = [key for key in made for _ in range(2 if key == "SC" else 1)]
    results = [
        Result(f"2.25.{n}", SOP_CLASSES[Recipe.parse(key).form], job, f"results/{n}.dcm", 10, "0" * 64, key)
        for n, key in enumerate(keys, 1)
    ]
    ledger.finish(job, held.fence, results, dict.fromkeys(to, tuple(first)), model="m", note="n", now=T0 + 30)
    return job


def every(ladder: Sequence[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(key for rung in ladder for key in rung))


def rows(ledger: Ledger, job: str) -> list[tuple[str, int, DeliveryState]]:
    return [(d.form, d.rung, d.state) for d in ledger.deliveries(job)]


def number(ledger: Ledger, job: str, form: str, rung: int) -> int:
    return next(d.id for d in ledger.deliveries(job) if (d.form, d.rung) == (form, rung) and d.state is not D.SENT)


def refuse(ledger: Ledger, job: str, form: str, rung: int, ladder: Sequence[Sequence[str]] = LADDER):
    found = number(ledger, job, form, rung)
    assert ledger.start_sending(found, T0 + 40)
    return ledger.replace(found, ladder, "no presentation context", T0 + 41)


def send_all(ledger: Ledger, job: str) -> None:
    for item in ledger.due_deliveries(T0 + 1e6):
        assert ledger.start_sending(item.id, T0 + 50)
        ledger.sent(item.id, "stored", T0 + 51)


def test_the_next_rung_takes_the_place_of_a_segmentation_and_of_its_report(any_ledger: Ledger) -> None:
    job = segmented(any_ledger, LADDER[0], every(LADDER))
    first = [d.id for d in any_ledger.deliveries(job)]
    assert refuse(any_ledger, job, "SEG", 0) == frozenset(first)
    assert rows(any_ledger, job) == [
        ("SEG", 0, D.REPLACED), ("SR:SEG", 0, D.REPLACED),
        ("SC", 1, D.PENDING), ("SC", 1, D.PENDING), ("SR", 1, D.PENDING),
    ]  # fmt: skip
    assert any_ledger.deliveries(job)[0].reason == "pacs takes no SEG: sends SC and SR instead; no presentation context"
    assert any_ledger.job(job).reason == "pacs takes no SEG: sends SC and SR instead"
    last = any_ledger.journal(job)[-1]
    assert (last.subject, last.before, last.after) == ("delivery", "SENDING", "REPLACED")
    assert last.text == "pacs takes no SEG: sends SC and SR instead; no presentation context"
    send_all(any_ledger, job)
    found = any_ledger.job(job)
    assert found.state is S.DELIVERED
    assert found.reason == "every destination has the results; pacs took SC and SR in place of SEG and SR"


def test_a_rung_that_is_refused_takes_the_next_and_after_the_last_there_is_none(any_ledger: Ledger) -> None:
    job = segmented(any_ledger, LADDER[0], every(LADDER))
    refuse(any_ledger, job, "SEG", 0)
    refuse(any_ledger, job, "SC", 1)
    assert rows(any_ledger, job)[2:] == [
        ("SC", 1, D.REPLACED), ("SC", 1, D.REPLACED), ("SR", 1, D.PENDING), ("GSPS", 2, D.PENDING)
    ]  # fmt: skip
    before = rows(any_ledger, job)
    assert refuse(any_ledger, job, "GSPS", 2) is None
    assert [state for _, _, state in rows(any_ledger, job)] == [*[s for _, _, s in before[:-1]], D.SENDING]
    any_ledger.refuse(number(any_ledger, job, "GSPS", 2), "no context", T0, 1, T0 + 60)
    send_all(any_ledger, job)
    found = any_ledger.job(job)
    assert (found.state, found.stage) == (S.FAILED, "delivery")
    assert found.reason == "pacs refused the result: no context"


def test_a_retry_begins_at_the_first_rung_again(any_ledger: Ledger) -> None:
    job = segmented(any_ledger, LADDER[0], every(LADDER), to=("pacs", "other"))
    refuse(any_ledger, job, "SEG", 0)
    for form, rung in (("SC", 1), ("GSPS", 2)):
        refuse(any_ledger, job, form, rung)
    any_ledger.refuse(number(any_ledger, job, "GSPS", 2), "no context", T0, 1, T0 + 60)
    send_all(any_ledger, job)
    assert any_ledger.job(job).state is S.FAILED
    assert any_ledger.retry(job, "admin", T0 + 70).state is S.SEGMENTED
    assert [(d.destination, d.form, d.rung, d.state) for d in any_ledger.deliveries(job)] == [
        ("pacs", "SEG", 0, D.PENDING), ("pacs", "SR:SEG", 0, D.PENDING),
        ("other", "SEG", 0, D.SENT), ("other", "SR:SEG", 0, D.SENT), ("pacs", "SR", 1, D.SENT),
    ]  # fmt: skip
    refuse(any_ledger, job, "SEG", 0)
    assert [(f, r) for f, r, state in rows(any_ledger, job) if state is D.PENDING] == [("SC", 1), ("SC", 1)]
    send_all(any_ledger, job)
    assert any_ledger.job(job).state is S.DELIVERED


def test_a_report_that_is_refused_is_refused_alone(any_ledger: Ledger) -> None:
    """The overlay is what the radiologist needs: it stays, and who looks after the node is told of the report."""
    job = segmented(any_ledger, LADDER[0], every(LADDER))
    assert refuse(any_ledger, job, "SR:SEG", 0) is None
    any_ledger.refuse(number(any_ledger, job, "SR:SEG", 0), "no context for it", T0, 1, T0 + 60)
    send_all(any_ledger, job)
    assert rows(any_ledger, job) == [("SEG", 0, D.SENT), ("SR:SEG", 0, D.FAILED)]
    assert any_ledger.job(job).reason == "pacs refused the report: no context for it"


def test_what_is_there_already_is_not_sent_twice(any_ledger: Ledger) -> None:
    ladder = [["SC", "SEG"], ["SC"]]
    job = segmented(any_ledger, ladder[0], every(ladder))
    assert [form for form, _, _ in rows(any_ledger, job)] == ["SEG", "SC", "SC"], "segmentations go first"
    refuse(any_ledger, job, "SEG", 0, ladder)
    assert rows(any_ledger, job) == [("SEG", 0, D.REPLACED), ("SC", 0, D.PENDING), ("SC", 0, D.PENDING)]
    send_all(any_ledger, job)
    assert any_ledger.job(job).reason == "every destination has the results; pacs took SC in place of SEG"


def test_the_last_to_be_replaced_delivers_the_job_when_all_else_is_there(any_ledger: Ledger) -> None:
    ladder = [["SEG", "SC"], ["SC"]]
    job = segmented(any_ledger, ladder[0], every(ladder))
    for item in any_ledger.deliveries(job)[1:]:
        any_ledger.start_sending(item.id, T0 + 40)
        any_ledger.sent(item.id, "stored", T0 + 40)
    refuse(any_ledger, job, "SEG", 0, ladder)
    assert any_ledger.job(job).state is S.DELIVERED


def test_a_rung_whose_forms_were_never_made_is_passed_over(any_ledger: Ledger) -> None:
    job = segmented(any_ledger, LADDER[0], ["SEG", "SR:SEG", "SR", "GSPS"])
    refuse(any_ledger, job, "SEG", 0)
    assert rows(any_ledger, job)[2:] == [("GSPS", 2, D.PENDING), ("SR", 2, D.PENDING)]


def test_nothing_is_replaced_of_a_job_that_was_cancelled_or_superseded_meanwhile(any_ledger: Ledger) -> None:
    job = segmented(any_ledger, LADDER[0], every(LADDER))
    found = number(any_ledger, job, "SEG", 0)
    any_ledger.start_sending(found, T0 + 40)
    any_ledger.record(instance(9))
    assert seal(any_ledger, SERIES, now=T0 + 41)
    before = any_ledger.journal(job)
    assert any_ledger.replace(found, LADDER, "no", T0 + 42) == frozenset()
    assert {state for _, _, state in rows(any_ledger, job)} == {D.CANCELLED}
    assert any_ledger.journal(job) == before
    assert any_ledger.job(job).state is S.SUPERSEDED


def test_results_that_lack_what_a_new_destination_gets_are_made_again_on_request(any_ledger: Ledger) -> None:
    job = segmented(any_ledger, (), ["SEG"], to=())
    any_ledger.recover_deliveries({"pacs": ["SEG", "SC"]}, T0 + 50)
    found = any_ledger.job(job)
    assert (found.state, found.stage) == (S.FAILED, "forms")
    assert found.reason == "the results lack a form that pacs gets"
    assert any_ledger.retry(job, "admin", T0 + 60).state is S.READY


@pytest.mark.parametrize(
    ("rung", "for_which"),
    [
        (["SEG", "SR:SEG", "SC"], {"SEG"}), (["LABELMAP+rle", "SEG"], {"LABELMAP+rle", "SEG"}),
        (["SR", "SC", "GSPS"], {"SC"}), (["SR"], set()),
    ],
)  # fmt: skip
def test_what_a_rung_is_for(rung: list[str], for_which: set[str]) -> None:
    assert leads(rung) == for_which


def test_forms_in_words() -> None:
    assert in_words("SEG") == "segmentation (BINARY)"
    assert in_words("LABELMAP+all-frames+rle") == "label map segmentation (all frames, rle)"
    assert in_words("SR:SEG") == "measurement report"
    assert in_words("<script>") == "<script>"
    assert short(["SEG+all-frames", "SR:SEG", "SC", "SC"]) == "SEG, SR and SC"


def test_a_destination_gets_its_next_rung_though_another_failed_the_job(any_ledger: Ledger) -> None:
    job = segmented(any_ledger, LADDER[0], every(LADDER), ["pacs", "vna"])
    vna = [d for d in any_ledger.deliveries(job) if d.destination == "vna"]
    for item in vna:
        assert any_ledger.start_sending(item.id, T0 + 40)
        any_ledger.sent(item.id, "stored", T0 + 41)
    for _ in range(2):
        any_ledger.read_back(vna[0].id, "read back and found different", False, Delivery(), T0 + 42)
    failed = any_ledger.job(job)
    assert failed.state is S.FAILED
    item = next(d for d in any_ledger.deliveries(job) if d.destination == "pacs")
    assert any_ledger.start_sending(item.id, T0 + 43)
    assert any_ledger.replace(item.id, LADDER, "no presentation context", T0 + 44)
    mine = [(d.form, d.state) for d in any_ledger.deliveries(job) if d.destination == "pacs"]
    assert mine[-1] == ("SR", D.PENDING)
    assert D.SENDING not in [state for _, state in mine], "what is being sent for ever is tried every second"
    assert any_ledger.job(job).reason == failed.reason
