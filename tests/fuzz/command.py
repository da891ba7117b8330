"""Command sets, against the reference and against pydicom.

Laws: nothing but `ProtocolViolation` is raised; what is read is what the reference reads, and pydicom.
"""

from __future__ import annotations

from io import BytesIO

from pydicom.filereader import read_dataset

from node.errors import ProtocolViolation
from node.pdata import parse_command
from tests.fuzz import exchanges, reference

LONGEST = 4096


def check(data: bytes) -> None:
    """All of it is a command set."""
    expected = reference.command_or_none(data)
    try:
        command = parse_command(1, data)
    except ProtocolViolation:
        assert expected is None, "a command set was refused"
        return
    assert expected is not None, "what is no command set was taken for one"
    message = reference.Message(1, expected, None, True)
    assert command.context_id == 1
    assert command.field == message.number(0x0100)
    assert command.message_id == message.number(0x0110)
    assert command.sop_class == message.text(0x0002, 0x0003)
    assert command.sop_instance == message.text(0x1000, 0x1001)
    assert command.has_data == (message.number(0x0800) != reference.NO_DATA_SET)
    ds = read_dataset(BytesIO(data), is_implicit_VR=True, is_little_endian=True)
    assert {tag.element: ds.get_item(tag).value or b"" for tag in ds._dict} == expected, "pydicom reads it otherwise"


def seeds() -> dict[str, bytes]:
    """The command sets of the services that a node may be asked for."""
    return exchanges.commands()


mutate = exchanges.mutate_command
HEADER = 0
