"""The evidence: what images, MPPS and counts say of a series being complete, and the laws that hold whatever comes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid

from node.evidence import Evidence, Source, Strength, Weight, strength
from node.records import Instance, PerformedSeries
from node.weighing import Counted, weigh, weigh_announced, weigh_association, weigh_count, weigh_performed
from tests.node.making import SERIES, T0, instance

SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
AXIAL, CORONAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
STRONG, WEAK, AGAINST = Strength.STRONG, Strength.WEAK, Strength.AGAINST
FOR, NEUTRAL = Weight.FOR, Weight.NEUTRAL


def placed(number: int | None, at_mm: float, name: int | None = None, **header) -> Instance:
    """A sagittal slice `at_mm` along its normal."""
    values = {"orientation": SAGITTAL, "position": (at_mm, -100.0, 90.0), "instance_number": number, **header}
    return instance(name if name is not None else number or 0, header=values)


def slices(count: int = 8, **header) -> list[Instance]:
    return [placed(n, 4.8 * n, **header) for n in range(1, count + 1)]


def echoes(positions: int = 4, repetitions: int = 2, *, by_position: bool = True, restart: bool = False, **header):
    """A grid of positions and repetitions, numbered through position by position or repetition by repetition."""
    made = []
    for r in range(repetitions):
        for p in range(positions):
            number = p * repetitions + r + 1 if by_position else r * positions + p + 1
            shown = p + 1 if restart else number
            values = {"temporal_position": r + 1, "acquisition_number": r + 1, **header}
            made.append(placed(shown, 4.8 * p, name=number, **values))
    return made


def stack(orientation: tuple[float, ...], first: int, along: int, count: int = 5) -> list[Instance]:
    def position(n: int) -> tuple[float, ...]:
        return tuple(6.0 * n if axis == along else 0.0 for axis in range(3))

    return [placed(first + n, 0.0, position=position(n), orientation=orientation) for n in range(count)]


def without(members: list[Instance], *numbers: int) -> list[Instance]:
    return [m for m in members if m.header.instance_number not in numbers]


ENHANCED = {"sop_class_uid": uid.EnhancedMRImageStorage}


@pytest.mark.parametrize(
    ("members", "how", "text"),
    [
        (slices(), STRONG, "instance numbers 1 to 8, 8 slice positions, 4.80 mm apart"),
        ([placed(n, 4.8 * n) for n in range(8)], STRONG, "instance numbers 0 to 7"),
        (slices(2), STRONG, "instance numbers 1 to 2"),
        (slices(300), STRONG, "1 to 300"),
        (slices()[:-1], STRONG, "1 to 7"),  # what ends early cannot be told from what is short
        (slices(1), WEAK, "a single image"),
        ([], WEAK, "no image"),
        # instance numbers
        (without(slices(), 4), AGAINST, "instance number 4 is missing between 1 and 8"),
        (without(slices(), 3, 4, 6), AGAINST, "3 instance numbers, 3 the first, are missing between 1 and 8"),
        (slices()[1:], AGAINST, "instance numbers begin at 2"),
        ([placed(100 + n, 4.8 * n) for n in range(8)], WEAK, "instance numbers begin at 100"),
        ([placed(1000 * n, 4.8 * n) for n in range(1, 9)], WEAK, "instance numbers are no sequence (1000 to 8000)"),
        ([*slices(7), placed(None, 4.8 * 8, name=8)], WEAK, "instance numbers are missing"),
        ([*slices(7), placed(7, 4.8 * 8, name=8)], WEAK, "instance numbers repeat"),
        ([placed(2**31 - 1, 0.0, name=1), placed(-(2**31), 4.8, name=2)], WEAK, "no sequence"),
        # slice positions
        ([*slices(7), placed(8, 4.8 * 8 + 0.15)], STRONG, "8 slice positions"),
        ([*slices(7), placed(8, 4.8 * 8 + 0.5)], WEAK, "slice positions are uneven: gaps of 4.80 to 5.30 mm"),
        ([*slices(7), placed(8, 4.8 * 9)], WEAK, "gaps of 4.80 to 9.60 mm, but numbered through"),
        ([placed(n, 4.8 * p) for n, p in enumerate((0, 1, 2, 4, 5, 6, 9), 1)], WEAK, "numbered through"),
        ([placed(n, -4.8 * p) for n, p in enumerate((0, 1, 2, 4, 5, 6), 1)], WEAK, "numbered through"),
        ([placed(n, 4.8 * p) for n, p in enumerate((0, 2, 5, 1, 4), 1)], AGAINST, "gaps of 4.80 to 9.60 mm"),
        ([*slices(7), placed(8, 0, position=())], WEAK, "slice positions are missing"),
        ([*slices(7), placed(8, 0, orientation=())], WEAK, "slice positions are missing"),
        ([placed(n, 10.0) for n in range(1, 9)], WEAK, "all images lie at one position"),
        ([placed(n, 4.8 * n, orientation=(0.0,) * 6) for n in range(1, 9)], WEAK, "all images lie at one position"),
        ([*stack(SAGITTAL, 1, 0), *stack(CORONAL, 6, 1), *stack(AXIAL, 11, 2)], STRONG, "3 stacks of evenly spaced"),
        ([*stack(SAGITTAL, 1, 0), *stack(CORONAL, 6, 1, 1)], WEAK, "in one of 2 orientations: all images lie at one"),
        (without([*stack(SAGITTAL, 1, 0), *stack(AXIAL, 6, 2)], 3), AGAINST, "in one of 2 orientations: slice"),
        ([placed(n, 4.8 * n, orientation=(n / 1000, 1.0, 0.0, 0.0, 0.0, -1.0)) for n in range(1, 99)], WEAK, "64 ori"),
        # repetitions
        (echoes(), STRONG, "4 slice positions, 4.80 mm apart, 2 images at each"),
        (echoes(by_position=False), STRONG, "2 images at each"),
        (echoes(restart=True), STRONG, "instance numbers 1 to 4, each 2 times"),
        (echoes()[:-1], AGAINST, "1 of 4 slice positions have fewer than 2 images"),
        (echoes(by_position=False)[:5], AGAINST, "3 of 4 slice positions have fewer than 2 images"),
        (echoes(restart=True)[1:], AGAINST, "1 of 4 slice positions"),
        # Images in Acquisition
        (slices(images_in_acquisition=8), STRONG, "8 images, as Images in Acquisition says"),
        (slices(images_in_acquisition=9), AGAINST, "8 images are here, Images in Acquisition says 9"),
        (slices(images_in_acquisition=4), STRONG, "instance numbers 1 to 8"),
        (slices(images_in_acquisition=16), STRONG, "instance numbers 1 to 8"),  # the other half is another series
        (slices(images_in_acquisition=0), STRONG, "instance numbers 1 to 8"),
        (slices(position=(), images_in_acquisition=8), STRONG, "instance numbers 1 to 8, 8 images"),
        (slices(instance_number=None, images_in_acquisition=8), STRONG, "8 slice positions, 4.80 mm apart, 8 images"),
        (slices(position=(), instance_number=None, images_in_acquisition=8), WEAK, "instance numbers are missing"),
        (echoes(images_in_acquisition=4), STRONG, "each of 2 acquisitions has as many images as it says"),
        (echoes(images_in_acquisition=8), STRONG, "8 images, as Images in Acquisition says"),
        (echoes(position=(), images_in_acquisition=4)[:-1], AGAINST, "one of 2 acquisitions lacks 1 images"),
        # temporal positions
        (echoes(4, 3, temporal_positions=3), STRONG, "all 3 temporal positions are here"),
        (echoes(4, 3, by_position=False, temporal_positions=3)[:4], AGAINST, "1 of 3 temporal positions are here"),
        (echoes(4, 3, by_position=False, temporal_positions=3)[:8], AGAINST, "2 of 3 temporal positions are here"),
        (echoes(4, 3, position=(), temporal_positions=3)[:-1], AGAINST, "temporal position 3 has fewer images"),
        (slices(temporal_position=3, temporal_positions=5), STRONG, "instance numbers 1 to 8"),  # a series for each
        (slices(temporal_positions=5), STRONG, "instance numbers 1 to 8"),
        (slices(temporal_position=1, temporal_positions=1), STRONG, "instance numbers 1 to 8"),
        # frames
        ([instance(1, header={"number_of_frames": 40}, **ENHANCED)], STRONG, "one multi-frame object of 40 frames"),
        ([instance(1, header={"number_of_frames": 40, "concatenation_total": 3}, **ENHANCED)], AGAINST, "1 of 3"),
        (
            [instance(n, header={"number_of_frames": 40, "concatenation_total": 3}, **ENHANCED) for n in (1, 2, 3)],
            STRONG, "3 of 3 objects of a concatenation",
        ),
        ([instance(n, header={"number_of_frames": 40}, **ENHANCED) for n in (1, 2)], WEAK, "2 objects of 80 frames"),
    ],
)  # fmt: skip
def test_what_the_images_say_of_being_all(members: list[Instance], how: Strength, text: str) -> None:
    for order in (members, members[::-1], random.Random(0).sample(members, len(members))):
        found = weigh(order)
        assert strength(found) is how, found
        telling = {STRONG: FOR, WEAK: NEUTRAL, AGAINST: Weight.AGAINST}[how]
        assert text in ", ".join(p.text for p in found if p.weight is telling), found


# -- laws


@st.composite
def series(draw: st.DrawFn) -> list[Instance]:
    """A whole series, as scanners make them: one image or several at each position, numbered in one of their ways."""
    positions, repetitions = draw(st.integers(4, 12)), draw(st.integers(1, 3))
    count = positions * repetitions
    extra = draw(
        st.sampled_from([
            {}, {"images_in_acquisition": count}, {"images_in_acquisition": positions},
            {"temporal_positions": repetitions},
        ])
    )  # fmt: skip
    kind = draw(st.sampled_from(["by position", "by repetition", "restarting"]))
    return echoes(positions, repetitions, by_position=kind == "by position", restart=kind == "restarting", **extra)


@given(series())
def test_a_whole_series_is_strong_evidence(members: list[Instance]) -> None:
    assert strength(weigh(members)) is STRONG


@settings(max_examples=200)
@given(series(), st.data())
def test_without_any_inner_slice_the_evidence_is_never_strong(members: list[Instance], data: st.DataObject) -> None:
    """Inner: neither its position nor its number is at an end. Nothing but a count can say that it was never made."""
    places = sorted({m.header.position[0] for m in members})
    numbers = sorted(m.header.instance_number or 0 for m in members)
    inner = [
        m for m in members
        if m.header.position[0] not in (places[0], places[-1])
        and m.header.instance_number not in (numbers[0], numbers[-1])
    ]  # fmt: skip
    gone = data.draw(st.sampled_from(inner))
    rest = [m for m in members if m is not gone]
    found = weigh(rest)
    assert strength(found) is AGAINST
    assert strength([*found, weigh_association(False)]) is AGAINST
    made = PerformedSeries(SERIES, "COMPLETED", frozenset(m.sop_uid for m in rest))
    told = weigh_performed(made.sop_uids, made)
    assert told
    assert strength([*found, told]) is STRONG


@settings(max_examples=200)
@given(series(), st.data())
def test_the_order_of_arrival_never_matters(members: list[Instance], data: st.DataObject) -> None:
    some = data.draw(st.lists(st.sampled_from(members), unique_by=lambda m: m.sop_uid, min_size=1))
    times = data.draw(st.permutations(range(len(some))))
    arrived = [replace(m, received_at=T0 + t) for m, t in zip(some, times, strict=True)]
    arrived.sort(key=lambda m: m.received_at)
    assert weigh(arrived) == weigh(some)


header_numbers = st.none() | st.integers(-(2**31), 2**31 - 1) | st.integers(0, 9)
triples = st.just(()) | st.tuples(*[st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0, 2.0, 1e308])] * 3)


@settings(max_examples=300)
@given(
    st.lists(
        st.fixed_dictionaries({
            "instance_number": header_numbers, "acquisition_number": header_numbers,
            "images_in_acquisition": header_numbers, "temporal_position": header_numbers,
            "temporal_positions": header_numbers, "concatenation_total": header_numbers,
            "number_of_frames": st.integers(1, 3), "position": triples,
            "orientation": st.sampled_from([(), SAGITTAL, AXIAL]) | st.tuples(*[st.floats(-2, 2)] * 6),
        }),
        max_size=8,
    )
)  # fmt: skip
def test_whatever_a_header_says_is_weighed_in_any_order_alike(headers: list[dict[str, object]]) -> None:
    members = [instance(n, header=header) for n, header in enumerate(headers)]
    found = weigh(members)
    assert weigh(members[::-1]) == found
    assert all(p.text.isprintable() for p in found)


# -- MPPS


def performed(state: str, *numbers: int) -> PerformedSeries:
    return PerformedSeries(SERIES, state, frozenset(f"{SERIES}.{n}" for n in numbers))


@pytest.mark.parametrize(
    ("step", "weight", "text"),
    [
        (performed("COMPLETED", 1, 2, 3), Weight.FOR, "all 3 images that MPPS lists are here (completed)"),
        (performed("COMPLETED", 1, 2), Weight.FOR, "all 2 images that MPPS lists are here (completed)"),
        (performed("COMPLETED", 1, 2, 3, 4), Weight.AGAINST, "3 of 4 images that MPPS lists are here (completed)"),
        (performed("COMPLETED"), Weight.NEUTRAL, "the procedure step is completed, no image is listed"),
        (
            performed("IN PROGRESS", 1, 2),
            Weight.NEUTRAL,
            "the procedure step is in progress, 2 images are listed so far",
        ),
        (performed("DISCONTINUED", 1, 2, 3), Weight.FOR, "all 3 images that MPPS lists are here (discontinued)"),
        (performed("DISCONTINUED", 1, 4), Weight.NEUTRAL, "1 of 2 images that MPPS lists are here (discontinued)"),
    ],
)
def test_what_mpps_says(step: PerformedSeries, weight: Weight, text: str) -> None:
    here = frozenset(m.sop_uid for m in slices(3))
    assert weigh_performed(here, step) == Evidence(Source.MPPS, weight, text)
    assert weigh_performed(here, None) is None


# -- counts


@pytest.mark.parametrize(
    ("counted", "weight", "text"),
    [
        (Counted("pacs", T0 + 1, 8), Weight.FOR, "pacs has as many images, 8"),
        (Counted("pacs", T0 + 1, 9), Weight.AGAINST, "pacs has 9 images, 8 are here"),
        (Counted("pacs", T0 + 1, 7), Weight.NEUTRAL, "pacs has 7 images, 8 are here"),
        (Counted("pacs", T0 - 1, 8), Weight.NEUTRAL, "pacs has 8 images, 8 are here"),  # asked before the last came
        (Counted("pacs", T0 - 1, 9), Weight.AGAINST, "pacs has 9 images, 8 are here"),
        (
            Counted("pacs", T0 + 1, None, "it does not answer"),
            Weight.NEUTRAL,
            "pacs gives no number of images: it does not",
        ),
    ],
)
def test_what_a_count_says(counted: Counted, weight: Weight, text: str) -> None:
    found = weigh_count(8, T0, counted)
    assert found
    assert (found.source, found.weight) == (Source.COUNT, weight)
    assert text in found.text
    assert weigh_count(8, T0, None) is None


def test_who_counts_has_the_last_word_and_who_misses_something_the_very_last() -> None:
    holes, whole = weigh(without(slices(), 4)), weigh(slices())
    equal, larger = (weigh_count(8, T0, Counted("pacs", T0 + 1, n)) for n in (8, 9))
    listed, unlisted = (weigh_performed(frozenset(has), performed("COMPLETED", 1)) for has in ([f"{SERIES}.1"], []))
    assert equal and larger and listed and unlisted  # noqa: PT018 - for mypy
    assert strength([*holes, equal]) is strength([*holes, listed]) is STRONG
    assert strength([*whole, larger]) is strength([*whole, unlisted]) is AGAINST
    assert strength([equal, unlisted]) is strength([larger, listed]) is AGAINST


@pytest.mark.parametrize(
    ("here", "number", "is_coming", "expected"),
    [
        (8, 8, True, (Weight.FOR, "all 8 images that pacs has are here")),
        (8, 8, False, (Weight.FOR, "all 8 images that pacs has are here")),
        (5, 8, True, (Weight.AGAINST, "5 of 8 images that pacs has are here, and more come")),
        (5, 8, False, (Weight.AGAINST, "5 of 8 images that pacs has are here")),
        (9, 8, False, (Weight.NEUTRAL, "pacs has 8 images, 9 are here")),
        (8, None, True, None),
    ],
)
def test_what_an_archive_announced(
    here: int, number: int | None, is_coming: bool, expected: tuple[Weight, str] | None
) -> None:
    found = weigh_announced(here, "pacs", number, is_coming=is_coming)
    assert found == (Evidence(Source.FETCH, *expected) if expected else None)
    if found:
        numbers = Evidence(Source.NUMBERS, Weight.AGAINST if found.weight is FOR else FOR, "")
        how = {FOR: STRONG, Weight.AGAINST: AGAINST, NEUTRAL: WEAK}[found.weight]
        assert strength([found, numbers]) is how, "who counted decides"
