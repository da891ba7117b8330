"""How long a series waits by its evidence, and what a peer's earlier series teach of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.evidence import Evidence, Source, Strength, Weight, strength
from node.patience import wait_for
from node.rhythm import longest_gaps, quiet_period
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
        ([RELEASED], 5, "nothing came for 5 s (no evidence)"),
    ],
)
def test_reasons_in_words(pieces: list[Evidence], seconds: float, reason: str) -> None:
    found = wait_for(pieces, 5.0, RULES)
    assert (found.seconds, found.reason) == (seconds, reason)
    assert found.what


pieces = st.lists(
    st.builds(piece, st.sampled_from(Source), st.sampled_from(Weight)), max_size=8, unique_by=lambda p: p.source
)
rules = st.builds(
    Assembly, **{f"{name}_s": st.floats(0, 300) for name in ("settle", "quiet", "quiet_min", "patience", "open")}
)


@given(pieces, st.floats(0, 20), rules)
def test_the_law_of_patience(some: list[Evidence], quiet_s: float, rules: Assembly) -> None:
    closed = [p for p in some if p.source is not Source.ASSOCIATION]
    wait = {how: wait_for([how, *closed], quiet_s, rules) for how in (RELEASED, OPEN)}
    # An open association never hastens, nothing seals before settle_s, and every wait ends.
    assert wait[OPEN].seconds >= wait[RELEASED].seconds >= rules.settle_s
    assert wait[OPEN].seconds <= max(rules.settle_s, rules.patience_s, rules.open_s, quiet_s)
    # What speaks for it never slows, what speaks against it never hastens.
    for source in Source:
        others = [p for p in closed if p.source is not source]
        ordered = [
            wait_for([RELEASED, *others, piece(source, w)], quiet_s, rules).seconds
            for w in (Weight.FOR, Weight.NEUTRAL, Weight.AGAINST)
        ]
        if source is not Source.ASSOCIATION:
            assert ordered == sorted(ordered), source
    assert (strength(some) is Strength.AGAINST) == wait_for(some, quiet_s, rules).reason.startswith("incomplete: ")


# -- rhythm


def test_the_longest_gap_of_each_sender_is_that_before_its_own_image() -> None:
    times = [("A", 0.0), ("A", 1.0), ("B", 4.0), ("B", 4.5), ("A", 6.0)]
    members = [instance(n, calling_ae=ae, at=T0 + at) for n, (ae, at) in enumerate(times)]
    for order in (members, members[::-1]):
        assert longest_gaps(order) == {"A": 1.5, "B": 3.0}
    assert longest_gaps(members[:1]) == longest_gaps([]) == {}


@pytest.mark.parametrize(
    ("longest", "quiet_s"),
    [
        ([], 20),
        ([0.1] * 19, 20),  # too few to tell
        ([0.1] * 20, 2),  # never less than quiet_min_s
        ([1.5] * 20, 3),
        ([1.5] * 19 + [4.0], 8),
        ([1.5] * 49 + [4.0], 3),  # one in fifty may be odd
        ([1.5] * 48 + [4.0] * 2, 8),
        ([1.5] * 190 + [900.0] * 10, 20),  # never more than quiet_s
    ],
)
def test_a_quiet_period_is_twice_what_is_usual(longest: list[float], quiet_s: float) -> None:
    assert quiet_period(longest, RULES) == quiet_s
    assert quiet_period(longest[::-1], RULES) == quiet_s


@given(st.lists(st.floats(0, 100), max_size=200), st.floats(0, 100))
def test_the_law_of_the_quiet_period(longest: list[float], other: float) -> None:
    found = quiet_period(longest, RULES)
    assert RULES.quiet_min_s <= found <= RULES.quiet_s
    # Longer gaps never make it shorter; and of what was seen, two in a hundred outlast it at most.
    assert quiet_period([max(gap, other) for gap in longest], RULES) >= found
    assert sum(gap > found for gap in longest if found < RULES.quiet_s) <= 0.02 * len(longest)


def test_a_shorter_quiet_period_is_not_exceeded_by_its_floor() -> None:
    hurried = RULES.model_copy(update={"quiet_s": 1.0})
    assert quiet_period([0.1] * 50, hurried) == quiet_period([], hurried) == 1.0
