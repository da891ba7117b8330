"""How long a series waits by its evidence, and what a peer's earlier series teach of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.evidence import Evidence, Source, Strength, Weight, strength
from node.patience import wait_for
from node.records import Instance
from node.rhythm import Rhythm, is_piecemeal, longest_gaps, own_gap, rhythm_of, usual_gap
from node.settings import Assembly
from tests.node.making import T0, instance

RULES = Assembly(settle_s=1, quiet_min_s=2, quiet_s=20, patience_s=60, open_s=120)


def piece(source: Source, weight: Weight, text: str = "") -> Evidence:
    return Evidence(source, weight, text or f"{source.name} {weight.name}")


RELEASED = piece(Source.ASSOCIATION, Weight.FOR, "association released")
OPEN = piece(Source.ASSOCIATION, Weight.NEUTRAL)
WHOLE = [piece(Source.NUMBERS, Weight.FOR, "numbers"), piece(Source.POSITIONS, Weight.FOR, "positions")]
HOLES = [piece(Source.NUMBERS, Weight.AGAINST, "number 4 is missing"), piece(Source.POSITIONS, Weight.FOR)]
THIN = [piece(Source.NUMBERS, Weight.NEUTRAL, "a single image")]
COUNTED, ONE = piece(Source.COUNT, Weight.FOR, "as many"), piece(Source.FRAMES, Weight.FOR, "one object")
PHASE = piece(Source.ACQUISITION, Weight.FOR, "as Images in Acquisition says")
LISTED = piece(Source.MPPS, Weight.FOR, "all listed")


@pytest.mark.parametrize(
    ("pieces", "seconds", "reason"),
    [
        ([RELEASED, *WHOLE], 1, "association released, numbers, positions"),
        ([RELEASED, *THIN], 5, "nothing came for 5 s (a single image)"),
        ([RELEASED, *HOLES], 60, "incomplete: number 4 is missing; nothing came for 60 s"),
        ([RELEASED, *HOLES, LISTED], 1, "all listed"),
        ([OPEN, *WHOLE], 120, "nothing came for 120 s on an open association (numbers, positions)"),
        ([OPEN, *HOLES], 120, "incomplete: number 4 is missing; nothing came for 120 s on an open association"),
        (
            [OPEN, *THIN, LISTED],
            1,
            "all listed",
        ),  # the scanner has said what it made: who else is connected is no matter
        ([OPEN, *HOLES, COUNTED], 1, "as many"),
        ([OPEN, ONE], 1, "one object"),
        (
            [OPEN, ONE, piece(Source.MPPS, Weight.AGAINST, "1 of 2")],
            120,
            "incomplete: 1 of 2; nothing came for 120 s on an open association",
        ),
        (
            [OPEN, WHOLE[0], PHASE],
            120,
            "nothing came for 120 s on an open association (numbers, as Images in Acquisition says)",
        ),
        ([RELEASED], 5, "nothing came for 5 s (no evidence)"),
    ],
)
def test_reasons_in_words(pieces: list[Evidence], seconds: float, reason: str) -> None:
    found = wait_for(pieces, Rhythm(quiet_s=5.0, pause_s=0.0), RULES)
    assert (found.seconds, found.reason) == (seconds, reason)
    assert found.what


pieces = st.lists(
    st.builds(piece, st.sampled_from(Source), st.sampled_from(Weight)), max_size=8, unique_by=lambda p: p.source
)
rules = st.builds(
    Assembly, **{f"{name}_s": st.floats(0, 300) for name in ("settle", "quiet", "quiet_min", "patience", "open")}
)
rhythms = st.builds(Rhythm, quiet_s=st.floats(0, 20), pause_s=st.floats(0, 20)).filter(lambda r: r.pause_s <= r.quiet_s)


def test_who_sends_in_several_associations_may_pause_unless_it_is_known_how_many_there_are() -> None:
    slow = Rhythm(quiet_s=9.0, pause_s=4.0)
    counted, one = piece(Source.COUNT, Weight.FOR), piece(Source.FRAMES, Weight.FOR)
    waits = [wait_for([RELEASED, *some], slow, RULES).seconds for some in (WHOLE, [*WHOLE, LISTED], [counted], [one])]
    assert waits == [4, 1, 1, 1]


@given(pieces, rhythms, rules)
def test_the_law_of_patience(some: list[Evidence], rhythm: Rhythm, rules: Assembly) -> None:
    closed = [p for p in some if p.source is not Source.ASSOCIATION]
    wait = {how: wait_for([how, *closed], rhythm, rules) for how in (RELEASED, OPEN)}
    # An open association never hastens, nothing seals before settle_s, and every wait ends.
    assert wait[OPEN].seconds >= wait[RELEASED].seconds >= rules.settle_s
    assert wait[OPEN].seconds <= max(rules.settle_s, rules.patience_s, rules.open_s, rhythm.quiet_s)
    # What speaks for it never slows, what speaks against it never hastens.
    for source in set(Source) - {Source.ASSOCIATION}:
        others = [RELEASED, *(p for p in closed if p.source is not source)]
        weights = (Weight.FOR, Weight.NEUTRAL, Weight.AGAINST)
        seconds = [wait_for([*others, piece(source, weight)], rhythm, rules).seconds for weight in weights]
        assert seconds == sorted(seconds), source
    assert (strength(some) is Strength.AGAINST) == wait_for(some, rhythm, rules).reason.startswith("incomplete: ")


# -- rhythm


def brought(*times: tuple[str, int, float]) -> list[Instance]:
    """Images by calling AE title, association and seconds."""
    return [instance(n, calling_ae=ae, association=by, at=T0 + at) for n, (ae, by, at) in enumerate(times)]


def test_only_waits_from_one_association_to_the_next_are_gaps() -> None:
    members = brought(("A", 1, 0.0), ("A", 1, 9.0), ("A", 2, 10.0), ("B", 3, 13.0), ("B", 3, 33.0), ("A", 4, 34.5))
    for order in (members, members[::-1]):
        assert longest_gaps(order) == {"A": 1.5, "B": 3.0}
    assert longest_gaps(members[:2]) == {"A": 0.0}
    assert longest_gaps(members[:1]) == longest_gaps([]) == {}


@pytest.mark.parametrize(
    ("associations", "piecemeal"),
    [
        ([], False), ([1], False), ([1, 1, 1], False), ([1] * 9 + [2], False),
        ([1, 1], True), ([1, 2], True), ([1, 1, 2, 2], True), ([1, 2, 3, 3, 3], True),
    ],
)  # fmt: skip
def test_a_series_is_piecemeal_when_associations_bring_two_images_at_most(associations, piecemeal: bool) -> None:
    assert is_piecemeal(brought(*(("A", by, n) for n, by in enumerate(associations)))) is piecemeal


def test_the_own_gap_is_the_longest_that_no_missing_image_explains() -> None:
    times = [("A", 1, 0.0), ("A", 1, 5.0), ("A", 2, 7.0), ("A", 3, 10.0), ("A", 4, 30.0), ("A", 5, 31.0)]
    members = brought(*times)
    for order in (members, members[::-1]):
        assert own_gap(order, lambda _part: False) == 20.0
        assert own_gap(order, lambda part: len(part) == 4) == 3.0, "the fifth filled a hole"
        assert own_gap(order, lambda _part: True) == 1.0, "only the three longest are looked at"
    assert own_gap(members[:2], lambda _part: False) == own_gap([], lambda _part: False) == 0.0


@pytest.mark.parametrize(
    ("longest", "usual"),
    [
        ([], None),
        ([0.1] * 19, None),  # too few to tell
        ([0.1] * 20, 0.1),
        ([1.5] * 19 + [4.0], 4.0),
        ([1.5] * 49 + [4.0], 1.5),  # one in fifty may be odd
        ([1.5] * 48 + [4.0] * 2, 4.0),
        ([0.0] * 190 + [900.0] * 10, 900.0),
    ],
)
def test_what_is_usual(longest: list[float], usual: float | None) -> None:
    assert usual_gap(longest) == usual_gap(longest[::-1]) == usual


@pytest.mark.parametrize(
    ("own_s", "usual", "quiet_s", "pause_s"),
    [
        (0.0, [], 20, 0),
        (0.0, [None], 20, 0),  # of a stranger nothing is known
        (0.0, [0.0], 2, 0),  # never less than quiet_min_s; who sends by one association does not pause
        (0.0, [4.0], 8, 8),  # twice what is usual
        (0.0, [1.5, 4.0], 8, 8),  # the slower of two
        (0.0, [1.5, None], 20, 3),
        (2.0, [1.5], 4, 4),  # twice what it paused itself
        (2.0, [None], 20, 4),
        (25.0, [900.0], 20, 20),  # never more than quiet_s
    ],
)
def test_what_to_expect_of_senders(own_s: float, usual: list[float | None], quiet_s: float, pause_s: float) -> None:
    assert rhythm_of(own_s, usual, RULES) == Rhythm(quiet_s, pause_s)


@given(st.lists(st.floats(0, 100), min_size=20, max_size=200), st.floats(0, 100))
def test_the_law_of_the_quiet_period(longest: list[float], other: float) -> None:
    found = rhythm_of(0.0, [usual_gap(longest)], RULES)
    assert RULES.quiet_min_s <= found.quiet_s <= RULES.quiet_s
    assert 0 <= found.pause_s <= found.quiet_s
    # Longer gaps never make it shorter; and of what was seen, two in a hundred outlast it at most.
    slower = rhythm_of(other, [usual_gap([max(gap, other) for gap in longest])], RULES)
    assert slower.quiet_s >= found.quiet_s
    assert slower.pause_s >= found.pause_s
    assert sum(gap > found.quiet_s for gap in longest if found.quiet_s < RULES.quiet_s) <= 0.02 * len(longest)


def test_a_shorter_quiet_period_is_not_exceeded_by_its_floor() -> None:
    hurried = RULES.model_copy(update={"quiet_s": 1.0})
    for usual in ([0.1], [None]):
        assert rhythm_of(0.0, usual, hurried).quiet_s == 1.0
