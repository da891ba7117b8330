"""The rounds of assembly on a real ledger: what is sealed when, for what reason, and what is shown until then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.assembly import Assembler
from node.census import Census
from node.errors import NotFound, OutOfDisk
from node.evidence import Source, Weight
from node.ledger import FetchedSeries, Ledger, Receipt
from node.records import Instance, PerformedSeries, input_digest
from node.scu import Address
from node.selection import Verdict
from node.settings import Assembly
from node.states import JobState
from tests.node.making import SERIES, STUDY, T0, instance
from tests.node.test_weighing import echoes, placed, slices, without

RULES = Assembly(settle_s=1, quiet_s=20, quiet_min_s=2, patience_s=60, open_s=120)
PEER = Address("SCANNER", "127.0.0.1", 104, "PENNODE")


class Site:
    """An assembler on a real ledger, with the knobs of its world."""

    def __init__(self, ledger: Ledger) -> None:
        self.open: set[str] = set()
        self.lost: set[str] = set()
        self.unreadable: set[str] = set()
        self.read: list[str] = []
        self.seals = 0
        self.rules = RULES
        self.ledger = ledger
        self.step: PerformedSeries | None = None
        self.count: Callable[[], dict[str, int]] | None = None
        self.asked: list[float] = []
        self.now = T0
        self.census = Census("pacs", PEER, lambda: None, lambda: None, count=self._count, clock=lambda: self.now)
        self.assembler = self.restarted()

    def restarted(self, judge: Callable[..., Verdict] | None = None, **censuses: Census) -> Assembler:
        self.assembler = Assembler(
            self.ledger, self.rules, self.open.__contains__, judge or self.judge, self.digest, sealed=self.on_sealed,
            performed=lambda _uid: self.step, censuses=censuses, announced=self.ledger.announcement,
        )  # fmt: skip
        return self.assembler

    def judge(self, members) -> Verdict:
        return Verdict(len(members) >= 3, f"{len(members)} seen", "")

    def digest(self, one) -> str:
        if one.sop_uid in self.lost:
            raise NotFound("gone")
        self.read.append(one.sop_uid)
        if one.sop_uid in self.unreadable:
            raise OutOfDisk("an image cannot be read (Input/output error)", "check the disk")
        return f"of {one.path}"

    def on_sealed(self) -> None:
        self.seals += 1

    def _count(self, peer: Address, series, timeout_s: float) -> dict[str, int]:
        self.asked.append(self.now - T0)
        assert self.count is not None
        return self.count()

    def bring(self, members: list[Instance], at: float = 0.0, gap: float = 0.0, *, piecemeal: bool = False) -> None:
        """Record images, `gap` s apart, as one association brings them or, `piecemeal`, one for each."""
        for n, member in enumerate(members):
            by = int(1000 * at) + (n if piecemeal else 0)
            assert self.ledger.record(replace(member, received_at=T0 + at + n * gap, association=by)) is Receipt.NEW

    def run(self, until: float, since: float = 0.0) -> list[float]:
        """Let assembly and census go their rounds from `since` to `until`, as loops do; return when it sealed."""
        self.now, sealed = T0 + since, []
        while self.now <= T0 + until:
            before = self.seals
            wait = min(self.assembler.tick(self.now), 0.5)
            self.census.tick(self.now)
            if self.seals > before:
                sealed.append(round(self.now - T0, 1))
            self.now += wait
        return sealed

    def reason(self, revision: int = 1) -> str:
        found = self.ledger.weighing(SERIES, revision)
        assert found is not None
        assert found.until == 0
        (series_line,) = [
            e.text for j in self.ledger.jobs() if j.revision == revision
            for e in self.ledger.journal(j.id) if e.after == "SEALED" and found.outcome in e.text
        ]  # fmt: skip
        assert series_line.endswith(found.outcome)
        return found.outcome


@pytest.fixture
def site(ledger: Ledger) -> Site:
    return Site(ledger)


def test_a_whole_series_is_sealed_shortly_after_its_association_ends(site: Site) -> None:
    assert site.assembler.tick(T0) == 5.0
    site.bring(slices())
    site.open.add(SERIES)
    assert site.run(50) == []
    site.open.clear()
    assert site.run(60, since=50) == [50]
    (job,) = site.ledger.jobs()
    assert (job.state, job.reason, job.instances, job.created_at) == (JobState.READY, "8 seen", 8, T0 + 50)
    assert site.reason() == "association released or gone on, instance numbers 1 to 8, 8 slice positions, 4.80 mm apart"


def test_the_next_round_is_when_the_next_series_is_due(site: Site) -> None:
    site.bring(slices())
    assert site.assembler.tick(T0) == 0.5
    assert site.assembler.tick(T0 + 0.7) == pytest.approx(0.3)
    assert site.assembler.tick(T0 + 0.999) == pytest.approx(0.02)
    assert site.seals == 0
    site.assembler.tick(T0 + 1)
    assert site.seals == 1


def test_weak_evidence_waits_for_silence_and_each_image_begins_the_wait_anew(site: Site) -> None:
    site.bring([instance(1)])
    assert site.run(19) == []
    site.bring([instance(2)], at=19)
    assert site.run(60, since=19) == [39]
    assert site.reason() == "nothing came for 20 s (instance numbers 1 to 2, slice positions are missing)"
    (job,) = site.ledger.jobs()
    assert (job.state, job.reason) == (JobState.SKIPPED, "2 seen")


@pytest.mark.parametrize("late_s", [1.5, 20, 45])
def test_one_slice_that_lacks_is_waited_for(site: Site, late_s: float) -> None:
    members = slices()
    site.bring(without(members, 4))
    assert site.run(late_s) == []
    waiting = site.ledger.weighings()[SERIES]
    holes = "instance number 4 is missing between 1 and 8, slice positions are uneven: gaps of 4.80 to 9.60 mm"
    assert waiting.outcome == f"waits for what is missing: {holes}"
    assert waiting.until == T0 + 60
    site.bring(members[3:4], at=late_s)
    assert site.run(late_s + 10, since=late_s) == [pytest.approx(late_s + 1, abs=0.1)]
    assert [j.instances for j in site.ledger.jobs()] == [8]


def test_one_that_never_comes_is_waited_for_in_bounded_time_and_the_reason_says_so(site: Site) -> None:
    site.bring(without(slices(), 4))
    assert site.run(200) == [60]
    assert site.reason().startswith("incomplete: instance number 4 is missing between 1 and 8")
    pieces = site.ledger.weighing(SERIES, 1).pieces
    assert {p.source: p.weight for p in pieces} == {
        Source.ASSOCIATION: Weight.FOR, Source.NUMBERS: Weight.AGAINST, Source.POSITIONS: Weight.AGAINST,
    }  # fmt: skip


def test_an_association_that_never_ends_is_waited_for_in_bounded_time(site: Site) -> None:
    site.bring(slices())
    site.open.add(SERIES)
    assert site.run(300) == [120]
    assert "on an open association" in site.reason()


def test_an_incomplete_echo_is_waited_for(site: Site) -> None:
    members = echoes(4, 2, by_position=False)
    site.bring(members[:5])
    assert site.run(30) == []
    site.bring(members[5:], at=30)
    assert site.run(40, since=30) == [31]


def test_silence_of_our_own_making_is_none(site: Site) -> None:
    """A slow disk keeps the sender waiting for its answer; and while we were down, nobody could send."""
    site.bring(slices())
    assert site.run(20, since=7) == [8]
    site.bring([instance(n, "1.2.8") for n in range(2)], at=20)
    site.run(30, since=20)
    site.restarted()
    assert site.run(60, since=35) == [55]


def test_a_series_that_comes_image_by_image_is_given_time_between_them(site: Site) -> None:
    """Whatever came so far looks whole each time, and the end of an association of one image tells nothing."""
    for n, member in enumerate(slices()):
        site.bring([member], at=2 * n, piecemeal=True)
        assert site.run(2 * n + 1.9, since=2 * n) == []
    assert site.run(60, since=16) == [18]
    assert site.reason() == "association released or gone on, instance numbers 1 to 8, 8 slice positions, 4.80 mm apart"


# -- what an archive said that it is fetched from


def test_all_that_the_archive_announced_is_sealed_at_once_and_less_is_waited_for(site: Site) -> None:
    asked = site.ledger.ask_fetch("pacs", STUDY, [], "anna", T0)
    site.ledger.note_fetched_series(asked, [FetchedSeries(SERIES, "MR", "t2_sag", 8)], T0)
    members = [replace(m, header=replace(m.header, instance_number=None)) for m in slices()]
    site.open.add(SERIES)
    site.bring(members[:5])
    assert site.run(30) == []
    site.bring(members[5:], at=30)
    assert site.run(40, since=30) == [31]
    assert site.reason() == "all 8 images that pacs has are here"


def test_fewer_than_announced_are_sealed_as_incomplete_in_the_end(site: Site) -> None:
    asked = site.ledger.ask_fetch("pacs", STUDY, [], "anna", T0)
    site.ledger.note_fetched_series(asked, [FetchedSeries(SERIES, "MR", "t2_sag", 9)], T0)
    site.bring(slices())
    assert site.run(100) == [60]
    assert site.reason().startswith("incomplete: 8 of 9 images that pacs has are here, and more come")


# -- what the sender usually does


def taught(site: Site, gap: float, series: int = 20, **values) -> None:
    """Let a peer send series with such a gap between images, none of which tells whether it is whole."""
    for n in range(series):
        uid = f"1.2.9.{n}"
        for image in range(4):
            at = T0 - 10000 + n * 100 + image * gap
            site.ledger.record(instance(image, uid, at=at, association=image, **values))
        (seen,) = [s for s in site.ledger.receiving() if s.series_uid == uid]
        site.ledger.seal(
            seen, site.ledger.series_instances(uid), "test", wanted=False, verdict="", next_step="", now=T0 - 9000 + n
        )


def test_silence_is_measured_by_what_the_sender_usually_does(site: Site) -> None:
    taught(site, 1.5)
    site.bring([instance(n) for n in range(2)])
    assert site.run(30) == [3]
    assert site.reason().startswith("nothing came for 3 s (")


def test_another_sender_is_another_matter_and_two_wait_for_the_slower(site: Site) -> None:
    taught(site, 1.5, calling_ae="FAST")
    site.bring([instance(n, calling_ae="FAST") for n in range(2)])
    site.bring([instance(n, "1.2.8") for n in range(2)])
    site.bring([instance(n, "1.2.7", calling_ae="FAST" if n else "SCANNER") for n in range(2)])
    site.run(60)
    jobs = {j.series_uid: j.created_at - T0 for j in site.ledger.jobs() if j.created_at >= T0}
    assert jobs == {SERIES: 3, "1.2.8": 20, "1.2.7": 20}


def test_what_was_learned_survives_a_restart_and_one_odd_series_changes_little(site: Site) -> None:
    taught(site, 1.5, 60)
    odd = [instance(n, "1.2.8", at=T0 - 500 + 100 * n, association=n) for n in range(2)]
    for one in odd:
        site.ledger.record(one)
    site.run(-300, since=-350)
    assert site.seals == 1
    assert sorted(site.ledger.longest_gaps("SCANNER")) == [1.5] * 60 + [100.0]
    site.restarted()
    site.bring([instance(n) for n in range(2)])
    assert site.run(30) == [3]


def test_a_series_that_paused_before_may_pause_again(site: Site) -> None:
    taught(site, 0.1)
    site.bring([instance(n) for n in range(2)], gap=1.9, piecemeal=True)
    assert site.run(30, since=1.9) == [pytest.approx(1.9 + 3.8)]


def test_who_sends_a_series_in_several_associations_is_waited_for_after_each(site: Site) -> None:
    """Each part of a series in order looks whole: only what is usual with its sender tells that more will come."""
    taught(site, 6.0)
    members = slices(20)
    for at, part in ((0, members[:8]), (6, members[8:14]), (12, members[14:])):
        site.bring(part, at=at)
        assert site.run(at + 5.9, since=at) == []
    assert site.run(60, since=18) == [24]
    assert [j.instances for j in site.ledger.jobs() if j.series_uid == SERIES] == [20]


def test_a_stranger_who_paused_between_associations_of_a_series_may_pause_again(site: Site) -> None:
    members = slices(12)
    site.bring(members[:4])
    site.bring(members[4:8], at=6)
    assert site.run(12, since=6) == []
    site.bring(members[8:], at=12)
    assert site.run(60, since=12) == [24]


def test_a_peer_whose_series_come_by_one_association_waits_for_no_other(site: Site) -> None:
    for n in range(20):
        for one in slices(4):
            uid = f"1.2.9.{n}"
            site.ledger.record(replace(one, series_uid=uid, sop_uid=f"{uid}{one.sop_uid[-2:]}", received_at=T0 - 99))
    site.run(-50, since=-99)
    assert site.ledger.longest_gaps("SCANNER") == [0.0] * 20
    site.bring(slices(20))
    assert site.run(30) == [1]


def test_a_gap_that_outlasted_the_quiet_period_teaches_it(site: Site) -> None:
    taught(site, 1.5)
    site.bring([instance(n) for n in range(2)])
    assert site.run(8) == [3]
    site.bring([instance(2)], at=8)
    site.run(60, since=8)
    assert site.seals == 2
    assert sorted(site.ledger.longest_gaps("SCANNER"))[-1] == 8
    site.bring([instance(n, "1.2.8", at=T0) for n in range(2)], at=100)
    assert site.run(130, since=100) == [116]


# -- MPPS


def test_what_mpps_lists_is_waited_for_and_then_enough(site: Site) -> None:
    members = slices()
    site.step = PerformedSeries(SERIES, "IN PROGRESS", frozenset())
    site.bring([instance(1), *members[1:4]])
    site.open.add(SERIES)
    assert site.run(5) == []
    site.step = PerformedSeries(SERIES, "COMPLETED", frozenset(m.sop_uid for m in members[:5]))
    assert site.run(40, since=5) == []
    assert "4 of 5 images that MPPS lists are here" in str(site.ledger.weighings()[SERIES].pieces)
    site.bring(members[4:5], at=40)
    assert site.run(50, since=40) == [41], "though the association is open"
    assert site.reason() == "all 5 images that MPPS lists are here (completed)"


def test_images_that_mpps_lists_and_nobody_sends_end_as_incomplete(site: Site) -> None:
    site.step = PerformedSeries(SERIES, "COMPLETED", frozenset(f"{SERIES}.{n}" for n in range(1, 11)))
    site.bring(slices())
    assert site.run(100) == [60]
    assert site.reason().startswith("incomplete: 8 of 10 images that MPPS lists are here")


# -- counts


def test_the_sender_is_asked_where_the_images_do_not_tell(site: Site) -> None:
    site.restarted(SCANNER=site.census)
    site.count = lambda: {SERIES: 2}
    site.bring([instance(n) for n in range(2)])
    assert site.run(10) == [pytest.approx(1.5, abs=0.5)]
    assert site.reason() == "pacs has as many images, 2"
    assert len(site.asked) == 1


def test_it_is_not_asked_where_they_tell_nor_while_it_still_sends(site: Site) -> None:
    site.restarted(SCANNER=site.census)
    site.bring(slices())
    assert site.run(5) == [1]
    site.bring([instance(n, "1.2.8") for n in range(2)])
    site.open.add("1.2.8")
    site.run(60, since=5)
    site.bring([instance(n, "1.2.7", calling_ae="OTHER") for n in range(2)], at=60)
    site.run(70, since=60)
    assert site.asked == []


def test_a_larger_count_is_waited_for_and_asked_again_less_and_less_often(site: Site) -> None:
    site.restarted(SCANNER=site.census)
    site.count = lambda: {SERIES: 9}
    site.bring([*slices()[:3], instance(99)])
    assert site.run(50) == []
    assert "pacs has 9 images, 4 are here" in site.ledger.weighings()[SERIES].outcome
    gaps = [round(b - a) for a, b in zip(site.asked, site.asked[1:], strict=False)]
    assert gaps == [2, 4, 8, 16]
    site.bring([instance(n) for n in range(100, 105)], at=50)
    assert site.run(70, since=50) == [pytest.approx(51, abs=0.5)], "a further image is reason to ask at once"
    assert site.reason() == "pacs has as many images, 9"


def test_a_count_decides_against_the_numbers_of_the_images(site: Site) -> None:
    """Somebody deleted a slice at the PACS: nothing is missing."""
    site.restarted(SCANNER=site.census)
    site.count = lambda: {SERIES: 7}
    site.bring(without(slices(), 4))
    assert site.run(10) == [pytest.approx(1.5, abs=0.5)]


@pytest.mark.parametrize("failure", ["unavailable", "refused", "no number"])
def test_a_peer_that_does_not_answer_is_as_if_not_asked_and_the_evidence_says_so(site: Site, failure: str) -> None:
    from node.errors import PeerRefused, PeerUnavailable

    def fail() -> dict[str, int]:
        if failure == "no number":
            return {}
        raise (PeerUnavailable if failure == "unavailable" else PeerRefused)("PACS@127.0.0.1:104 does not", "look")

    site.restarted(SCANNER=site.census)
    site.count = fail
    site.bring([instance(n) for n in range(2)])
    assert site.run(40) == [20]
    words = "it was asked and left it out" if failure == "no number" else "PACS@127.0.0.1:104 does not"
    assert f"pacs gives no number of images: {words}" in site.reason()


# -- late images, repeated images


def test_a_late_image_opens_a_revision_that_is_weighed_like_any_other(site: Site) -> None:
    members = slices()
    site.bring(members[:7])
    assert site.run(10) == [1]
    site.bring(members[7:], at=10)
    assert site.run(40, since=10) == [30], "it paused 10 s and may do so again"
    states = {j.revision: (j.state, j.instances) for j in site.ledger.jobs()}
    assert states == {1: (JobState.SUPERSEDED, 7), 2: (JobState.READY, 8)}
    assert "1 to 7" in site.reason(1)
    assert "1 to 8" in site.reason(2)


def test_repeated_images_change_nothing(site: Site) -> None:
    members = without(slices(), 4)
    site.bring(members)
    site.run(30)
    before = site.ledger.weighings()[SERIES]
    for member in members:
        assert site.ledger.record(replace(member, received_at=T0 + 30)) is Receipt.HELD
    assert site.ledger.weighings()[SERIES] == before
    assert site.run(100, since=30) == [60]
    for member in members:
        assert site.ledger.record(replace(member, received_at=T0 + 100)) is Receipt.HELD
    assert site.run(200, since=100) == []
    assert len(site.ledger.jobs()) == 1


def test_an_image_between_look_and_seal_postpones_the_seal(site: Site) -> None:
    site.bring(slices(4))

    def late(members) -> Verdict:
        site.ledger.record(placed(5, 4.8 * 5))
        return site.judge(members)

    site.restarted(late)
    assert site.run(10) == [pytest.approx(2, abs=0.1)], "at the second attempt"
    assert [j.instances for j in site.ledger.jobs()] == [5]


def test_digests_are_found_before_the_seal_and_a_lost_file_does_not_hold_it_up(site: Site) -> None:
    members = [replace(member, sha256="" if n < 3 else member.sha256) for n, member in enumerate(slices(5))]
    site.lost.add(members[1].sop_uid)
    site.bring(members)
    assert len(site.run(10)) == 1
    held = {m.sop_uid: m.sha256 for m in site.ledger.series_instances(SERIES)}
    expected = [f"of {members[0].path}", "", f"of {members[2].path}", members[3].sha256, members[4].sha256]
    assert [held[m.sop_uid] for m in members] == expected
    assert site.ledger.jobs()[0].input_digest == input_digest(held.items())


def test_a_file_that_cannot_be_read_holds_up_its_series_alone(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    members = [replace(member, sha256="") for member in slices(5)]
    bad = members[2].sop_uid
    site.unreadable.add(bad)
    site.bring(members)
    site.bring([replace(one, series_uid="1.2.8", sop_uid=f"1.2.8.{n}") for n, one in enumerate(members)])
    assert site.run(70) == [1]
    assert [j.series_uid for j in site.ledger.jobs()] == ["1.2.8"]
    assert site.read.count(bad) == 3, "at 1, 31 and 61 s"
    assert site.read.count(members[0].sop_uid) == 1, "what could be read is not read again"
    waiting = site.ledger.weighings()[SERIES]
    assert waiting.outcome == "waits for its files: an image cannot be read (Input/output error)"
    assert waiting.until == pytest.approx(T0 + 91, abs=0.1)
    assert caplog.text.count("cannot be sealed yet") == 1
    site.unreadable.clear()
    assert site.run(100, since=70) == [pytest.approx(91, abs=0.1)]


@pytest.mark.parametrize("back_s", [3600, 86400])
def test_a_clock_that_is_set_back_holds_nothing_up(site: Site, back_s: int) -> None:
    site.bring(slices())
    site.bring([instance(n, "1.2.8") for n in range(2)])
    site.assembler.tick(T0 + 0.5)
    assert site.run(60 - back_s, since=-back_s) == [1 - back_s, 20 - back_s]


def test_a_count_is_asked_for_again_though_the_clock_was_set_back(site: Site) -> None:
    site.restarted(SCANNER=site.census)
    site.count = lambda: {SERIES: 9}
    site.bring([instance(n) for n in range(2)])
    assert site.run(8) == []
    site.count = lambda: {SERIES: 2}
    assert site.run(10 - 3600, since=-3600) == [pytest.approx(1 - 3600, abs=1)]


def test_who_drips_images_without_an_end_is_cut_short(site: Site) -> None:
    site.rules = RULES.model_copy(update={"longest_s": 90.0})
    site.restarted()
    for n in range(16):
        site.bring([instance(n)], at=10 * n)
        assert site.run(10 * n + 9.9, since=10 * n) == ([90] if n == 9 else [])
    assert site.run(300, since=160) == [170], "its next revision has its own time"
    assert site.reason(1) == "images came for 90 s without an end"
    site.bring([instance(n, "1.2.8") for n in (1, 2, 4)], at=300)
    for n in range(5, 105):  # not even long enough for a look
        site.bring([instance(n, "1.2.8")], at=300 + n)
        if site.run(300 + n + 0.9, since=300 + n):
            break
    (job,) = [j for j in site.ledger.jobs() if j.series_uid == "1.2.8"]
    assert job.created_at == pytest.approx(T0 + 395, abs=1)
    assert "incomplete: instance number 3 is missing between 1 and" in site.ledger.weighing("1.2.8", 1).outcome


def test_several_series_do_not_disturb_each_other(site: Site) -> None:
    for n in range(4):
        for image in range(1, 5):
            site.ledger.record(instance(image, f"1.2.{n}", at=T0 + 10 * n))
        assert site.run(10 * n + 9.9, since=10 * n) == ([20] if n == 2 else [30] if n == 3 else [])
    assert site.run(60, since=40) == [40, 50]


def test_what_was_weighed_before_the_last_image_is_not_shown_any_more(site: Site) -> None:
    site.bring([instance(1)])
    site.run(3)
    assert SERIES in site.ledger.weighings()
    site.bring([instance(2)], at=3)
    assert site.ledger.weighings() == {}
    site.run(5, since=3)
    assert site.ledger.weighings()[SERIES].last_at == T0 + 3


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_the_order_of_arrival_never_changes_the_outcome(data: st.DataObject, tmp_path_factory) -> None:
    members = data.draw(st.sampled_from([slices(6), without(slices(6), 3), echoes(3, 2), echoes(3, 2)[:-1]]))
    outcomes = []
    for order in (members, data.draw(st.permutations(members))):
        ledger = Ledger(f"sqlite:///{tmp_path_factory.mktemp('order') / 'ledger.sqlite3'}")
        ledger.migrate()
        site = Site(ledger)
        site.bring(list(order))
        sealed = site.run(100)
        outcomes.append((sealed, ledger.weighing(SERIES, 1)))
        ledger.close()
    assert outcomes[0] == outcomes[1]
