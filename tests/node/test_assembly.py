"""When a series is complete: the evidence, the law of the seal, and the rounds on a real ledger."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import uid

from node.assembly import Assembler, Evidence, seal_reason, weigh
from node.errors import NotFound
from node.ledger import Ledger
from node.records import Instance, JobState, input_digest
from node.selection import Verdict
from node.settings import Assembly
from tests.node.making import SERIES, T0, instance

SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
RULES = Assembly(settle_s=1, quiet_s=20, open_s=120)
STRONG, WEAK = Evidence(True, "whole"), Evidence(False, "holes")


def slices(count: int = 8, **header) -> list[Instance]:
    return [placed(n, 4.8 * n, **header) for n in range(1, count + 1)]


def placed(number: int | None, at_mm: float, name: int | None = None, **header) -> Instance:
    values = {"orientation": SAGITTAL, "position": (at_mm, -100.0, 90.0), "instance_number": number, **header}
    return instance(name if name is not None else number or 0, header=values)


@pytest.mark.parametrize(
    ("members", "strong", "reason"),
    [
        (slices(), True, "instance numbers 1 to 8 and slice positions are contiguous"),
        ([placed(n, 4.8 * n) for n in range(8)], True, "instance numbers 0 to 7"),
        (slices(2), True, "1 to 2"),
        (slices(1), False, "a single image"),
        ([], False, "a single image"),
        ([instance(1, sop_class_uid=uid.EnhancedMRImageStorage, header={"number_of_frames": 40})], True, "40 frames"),
        (slices()[:3] + slices()[4:], False, "instance number 4 is missing between 1 and 8"),
        (slices()[1:], False, "instance numbers begin at 2"),
        (slices()[:-1], True, "1 to 7"),
        ([*slices(7), placed(None, 4.8 * 8, name=8)], False, "instance numbers are missing"),
        ([*slices(7), placed(7, 4.8 * 8, name=8)], False, "instance numbers repeat"),
        (slices(images_in_acquisition=9), False, "Images in Acquisition says 9"),
        (slices(images_in_acquisition=8), True, "contiguous"),
        (slices(images_in_acquisition=4), True, "contiguous"),
        ([*slices(7), placed(8, 4.8 * 9)], False, "slice positions are uneven: gaps of 4.80 to 9.60 mm"),
        ([*slices(7), placed(8, 4.8 * 8 + 0.04)], True, "contiguous"),
        ([*slices(7), placed(8, 0, position=())], False, "slice positions are missing"),
        ([*slices(7), placed(8, 0, orientation=())], False, "slice positions are missing"),
        ([placed(n, 10.0) for n in range(1, 9)], False, "all images lie at one position"),
        ([placed(n, 4.8 * (n % 4)) for n in range(1, 9)], True, "contiguous"),  # two echoes of four slices
        (slices(300), True, "1 to 300"),
    ],
)
def test_what_the_images_say_of_being_all(members: list[Instance], strong: bool, reason: str) -> None:
    for order in (members, members[::-1], random.Random(0).sample(members, len(members))):
        found = weigh(order)
        assert found.strong is strong
        assert reason in found.reason


@given(st.integers(2, 60), st.data())
def test_a_missing_slice_inside_is_always_noticed(count: int, data: st.DataObject) -> None:
    gone = data.draw(st.integers(2, count))
    rest = [m for m in slices(count + 1) if m.header.instance_number != gone]
    found = weigh(rest)
    assert not found.strong
    assert f"instance number {gone} is missing" in found.reason


@given(st.floats(0, 500), st.floats(0, 500), st.booleans(), st.booleans())
def test_the_law_of_the_seal(silent: float, longer: float, is_open: bool, strong: bool) -> None:
    evidence = STRONG if strong else WEAK
    reason = seal_reason(silent, is_open, evidence, RULES)
    due = RULES.open_s if is_open else RULES.settle_s if strong else RULES.quiet_s
    assert bool(reason) == (silent >= due)
    # Waiting longer never unseals, strong evidence never delays, an open association never hastens.
    if reason:
        assert seal_reason(max(silent, longer), is_open, evidence, RULES)
        assert seal_reason(silent, is_open, STRONG, RULES)
        assert seal_reason(silent, False, evidence, RULES)
        assert evidence.reason in reason


def test_reasons_in_words() -> None:
    assert seal_reason(1, False, STRONG, RULES) == "association released, whole"
    assert seal_reason(20, False, WEAK, RULES) == "nothing came for 20 s (holes)"
    assert seal_reason(120, True, WEAK, RULES) == "nothing came for 120 s on an open association (holes)"


class Site:
    """An assembler on a real ledger, with the knobs of its world."""

    def __init__(self, ledger: Ledger) -> None:
        self.open: set[str] = set()
        self.lost: set[str] = set()
        self.seals = 0
        self.ledger = ledger
        self.assembler = Assembler(ledger, RULES, self.open.__contains__, self.judge, self.digest, sealed=self.count)

    def judge(self, members) -> Verdict:
        return Verdict(len(members) >= 3, f"{len(members)} seen", "")

    def digest(self, one) -> str:
        if one.sop_uid in self.lost:
            raise NotFound("gone")
        return f"of {one.path}"

    def count(self) -> None:
        self.seals += 1


@pytest.fixture
def site(ledger: Ledger) -> Site:
    return Site(ledger)


def test_a_whole_series_is_sealed_shortly_after_its_association_ends(site: Site) -> None:
    assert site.assembler.tick(T0) == 5.0
    for member in slices():
        site.ledger.record(member)
    site.open.add(SERIES)
    assert site.assembler.tick(T0 + 0.5) < 1
    assert site.assembler.tick(T0 + 50) < 1
    site.open.clear()
    site.assembler.tick(T0 + 0.9)
    assert site.ledger.jobs() == []
    site.assembler.tick(T0 + 50)
    (job,) = site.ledger.jobs()
    assert (job.state, job.reason, job.instances, job.created_at) == (JobState.READY, "8 seen", 8, T0 + 50)
    assert "association released" in site.ledger.journal(job.id)[1].text
    assert site.seals == 1
    site.assembler.tick(T0 + 51)
    assert site.seals == 1


def test_a_series_with_holes_waits_for_silence_and_each_image_begins_the_wait_anew(site: Site) -> None:
    site.ledger.record(instance(1, at=T0))
    site.assembler.tick(T0 + 19)
    site.ledger.record(instance(3, at=T0 + 19))
    site.assembler.tick(T0 + 38)
    assert site.seals == 0
    site.assembler.tick(T0 + 39)
    (job,) = site.ledger.jobs()
    assert (job.state, job.reason) == (JobState.SKIPPED, "2 seen")


def test_the_evidence_is_weighed_anew_when_images_come(site: Site) -> None:
    members = slices(8)
    for member in members[:3] + members[4:]:
        site.ledger.record(member)
    site.assembler.tick(T0 + 5)
    assert site.seals == 0
    site.ledger.record(members[3])
    site.assembler.tick(T0 + 6)
    assert site.ledger.jobs()[0].instances == 8


def test_an_image_between_look_and_seal_postpones_the_seal(site: Site) -> None:
    for member in slices(4):
        site.ledger.record(member)
    judge = site.judge

    def late(members) -> Verdict:
        site.ledger.record(placed(5, 4.8 * 5))
        return judge(members)

    hurried = Assembler(site.ledger, RULES, lambda _: False, late, site.digest, sealed=site.count)
    hurried.tick(T0 + 5)
    assert site.seals == 0
    site.assembler.tick(T0 + 6)
    assert [j.instances for j in site.ledger.jobs()] == [5]


def test_digests_are_found_before_the_seal_and_a_lost_file_does_not_hold_it_up(site: Site) -> None:
    members = [replace(member, sha256="" if n < 3 else member.sha256) for n, member in enumerate(slices(5))]
    for member in members:
        site.ledger.record(member)
    site.lost.add(members[1].sop_uid)
    site.assembler.tick(T0 + 100)
    held = {m.sop_uid: m.sha256 for m in site.ledger.series_instances(SERIES)}
    expected = [f"of {members[0].path}", "", f"of {members[2].path}", members[3].sha256, members[4].sha256]
    assert [held[m.sop_uid] for m in members] == expected
    assert site.ledger.jobs()[0].input_digest == input_digest(held.items())


def test_several_series_do_not_disturb_each_other(site: Site) -> None:
    for n in range(4):
        for image in range(1, 5):
            site.ledger.record(instance(image, f"1.2.{n}", at=T0 + 10 * n))
    for now in (20, 30, 40, 50):
        site.assembler.tick(T0 + now)
        assert site.seals == now / 10 - 1
    assert site.assembler.tick(T0 + 60) == 5.0
