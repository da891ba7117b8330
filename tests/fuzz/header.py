"""Data sets, from their bytes to their identity.

Laws: nothing but `InvalidInstance` is raised; where the quick scan answers, pydicom would have read the same; the CPU
time is bounded.
"""

from __future__ import annotations

import time

from pydicom import uid

from node import header
from node.errors import InvalidInstance
from node.headerstream import HEAD
from node.records import is_uid
from node.scan import read_plain
from tests.fuzz import exchanges

LONGEST = 16384
SECONDS = 2.0
SYNTAXES = (
    uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian, uid.RLELossless,
)  # fmt: skip


def check(data: bytes) -> None:
    """Byte 0 chooses the transfer syntax; the rest is the data set."""
    if not data:
        return
    syntax, encoded = SYNTAXES[data[0] % len(SYNTAXES)], data[1:]
    if syntax.is_little_endian and not syntax.is_deflated:
        quick = read_plain(encoded[:HEAD], len(encoded), implicit=syntax.is_implicit_VR)
        if quick is not None:
            try:
                slow = header._read_thoroughly(
                    lambda count, at: encoded[at : at + count], len(encoded), encoded[:HEAD], syntax
                )
            except header.UNREADABLE as error:
                raise AssertionError("pydicom cannot read what the quick scan could") from error
            assert quick == slow, "the quick scan reads otherwise than pydicom"
    start = time.thread_time()
    try:
        identity = header.read_identity(encoded, syntax)
    except InvalidInstance:
        pass
    else:
        assert all(map(is_uid, (identity.sop_uid, identity.series_uid, identity.study_uid)))
        assert identity.header.to_json()
    assert time.thread_time() - start < SECONDS, "it takes too long"


def seeds() -> dict[str, bytes]:
    """Images in every encoding, what their headers may hold, and what was read in two ways once."""
    plain = exchanges.encode(exchanges.data_sets()["plain"])
    number = b"\x20\0\x12\0IS\2\x001 "
    assert number in plain
    found = {
        "number-with-a-control-character": b"\0" + plain.replace(number, number[:-1] + b"\x94"),
        "number-with-an-underscore": b"\0" + plain.replace(number, number[:6] + b"\4\x001_0 "),
        "nothing-at-all": b"\0",
        "sequence-of-empty-items": b"\1\x18\0\x12\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\0\0\0\0" * 500,
    }
    return found | {
        f"{name}-{syntax.name.lower().replace(' ', '-')}": bytes([number]) + exchanges.encode(ds, syntax)
        for name, ds in exchanges.data_sets().items()
        for number, syntax in enumerate(SYNTAXES[:4])
    }
