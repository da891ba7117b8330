"""Laws of the nouns: UIDs, derived UIDs, digests, and text for the log."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from node.logs import printable
from node.records import derived_uid, input_digest, is_uid

texts = st.text(max_size=20)


@given(st.lists(texts.filter(lambda t: "\0" not in t), min_size=1, max_size=4), st.data())
def test_derived_uids_are_valid_stable_and_differ_with_any_part(parts: list[str], data: st.DataObject) -> None:
    uid = derived_uid(*parts)
    assert is_uid(uid)
    assert UID(uid).is_valid
    assert uid.startswith("2.25.")
    assert derived_uid(*parts) == uid
    other = data.draw(st.lists(texts.filter(lambda t: "\0" not in t), min_size=1, max_size=4))
    assert (derived_uid(*other) == uid) == (other == parts)


def test_a_derived_uid_never_changes_between_versions() -> None:
    """Another value here would make every result ever sent a stranger to its own resend."""
    assert derived_uid("1.2.3", "abc", "model") == "2.25.48759365655393379370384254129452398150"


@given(st.lists(st.tuples(texts, texts), max_size=5), st.randoms())
def test_the_input_digest_does_not_depend_on_order(pairs: list[tuple[str, str]], random) -> None:
    shuffled = random.sample(pairs, len(pairs))
    assert input_digest(shuffled) == input_digest(pairs)
    assert re.fullmatch("[0-9a-f]{64}", input_digest(pairs))
    assert input_digest([*pairs, ("1.2", "new")]) != input_digest(pairs)


@given(st.text(max_size=70))
def test_what_passes_for_a_uid_can_be_a_file_name_and_nothing_more(text: str) -> None:
    if is_uid(text):
        assert set(text) <= set("0123456789.")
        assert ".." not in text
        assert 3 <= len(text) <= 64
        assert text[0] != "."


@given(st.text(), st.integers(1, 80))
def test_printable_is_one_bounded_line(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    assert shown.encode().decode() == shown
