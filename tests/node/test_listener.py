"""The DICOM front door, with DCMTK and with peers that behave badly on purpose."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_STORE
from sqlalchemy import select

from node import reception, statuses
from node.errors import ConfigurationError
from node.header import identify
from node.ledger import Ledger
from node.ledger.schema import metadata
from node.listener import Door
from node.settings import Listener
from node.spool import Spool
from tests.node.making import SERIES, data_set, encoded, files_below, mr, seal, write
from tests.peers import dcmtk, free_port, real_data
from tests.waiting import until

OpenDoor = Callable[..., tuple[Door, int]]
EXPLICIT = str(uid.ExplicitVRLittleEndian)


# pynetdicom leaves some sockets to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture
def open_door(open_door: OpenDoor, way: dict[str, bool]) -> OpenDoor:
    return partial(open_door, **way)


@pytest.fixture
def door(open_door: OpenDoor) -> tuple[Door, int]:
    return open_door()


@pytest.fixture
def port(door: tuple[Door, int]) -> int:
    return door[1]


def stored(spool: Spool) -> list[Path]:
    return sorted(files_below(spool.root))


@contextmanager
def associated(port: int, sop_class: str = uid.MRImageStorage, syntax: str = EXPLICIT, title: str = "SCANNER"):
    """An association of a pynetdicom SCU, through which any bytes can be sent."""
    ae = AE(ae_title=title)
    ae.add_requested_context(sop_class, syntax)
    assoc = ae.associate("127.0.0.1", port, ae_title="PENNODE")
    assert assoc.is_established
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()


def store(assoc, data: bytes, sop_uid: str = f"{SERIES}.1", sop_class: str = uid.MRImageStorage) -> int:
    """Send one C-STORE with these very UIDs and bytes; return the status."""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request._affected_sop_instance_uid = uid.UID(sop_uid, validation_mode=0)  # the setters would refuse a bad one
    request._affected_sop_class_uid = uid.UID(sop_class, validation_mode=0)
    request.DataSet = BytesIO(data)
    assoc._reactor_checkpoint.clear()
    while not assoc._is_paused:
        time.sleep(0.001)
    assoc.dimse.send_msg(request, 1)
    _, answer = assoc.dimse.get_msg(block=True)
    assoc._reactor_checkpoint.set()
    assert answer is not None
    return int(answer.Status)


# -- with DCMTK


def test_echo(port: int) -> None:
    done = dcmtk("echoscu", "-v", "-aec", "PENNODE", "127.0.0.1", str(port))
    assert done.returncode == 0, done.stderr
    assert "Echo Response (Success)" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("option", "syntax", "tool"),
    [
        ("-xe", uid.ExplicitVRLittleEndian, ""),
        ("-xi", uid.ImplicitVRLittleEndian, ""),
        ("-xb", uid.ExplicitVRBigEndian, ""),
        ("-xd", uid.DeflatedExplicitVRLittleEndian, ""),
        ("-xr", uid.RLELossless, "dcmcrle"),
        ("-xs", uid.JPEGLosslessSV1, "dcmcjpeg"),
    ],
)
def test_every_transfer_syntax_arrives_as_it_was_sent(
    option: str, syntax: str, tool: str, port: int, tmp_path: Path, ledger: Ledger, spool: Spool
) -> None:
    sent = write(mr(size=32), tmp_path / "a.dcm", EXPLICIT if tool else syntax)
    if tool:
        done = dcmtk(tool, sent, tmp_path / "b.dcm")
        assert done.returncode == 0, done.stderr
        sent = tmp_path / "b.dcm"
    done = dcmtk("storescu", "-R", option, "-aet", "SCANNER", "-aec", "PENNODE", "127.0.0.1", str(port), sent)
    assert done.returncode == 0, done.stderr
    (path,) = stored(spool)
    ds = pydicom.dcmread(path)
    (member,) = ledger.series_instances(SERIES)
    assert ds.file_meta.TransferSyntaxUID == member.transfer_syntax_uid == syntax
    assert ds.file_meta.MediaStorageSOPInstanceUID == member.sop_uid == ds.SOPInstanceUID
    assert (member.calling_ae, member.called_ae, member.peer) == ("SCANNER", "PENNODE", "127.0.0.1")
    assert spool.path(member.path) == path
    got, expected = data_set(path), data_set(sent)
    if syntax == uid.DeflatedExplicitVRLittleEndian:  # DCMTK deflates anew
        got, expected = zlib.decompress(got, -15), zlib.decompress(expected, -15)
    assert got == expected
    assert member.size == len(data_set(path))


def test_a_sender_that_could_convert_is_not_led_to_implicit_vr(port: int, tmp_path: Path, spool: Spool) -> None:
    """dcmsend converts to whatever is accepted; the value representations of private elements would be lost."""
    ds = mr()
    block = ds.private_block(0x0019, "MAKER", create=True)
    block.add_new(0x01, "DS", "1.25")
    sent = write(ds, tmp_path / "a.dcm")
    done = dcmtk("dcmsend", "-aec", "PENNODE", "127.0.0.1", str(port), sent)
    assert done.returncode == 0, done.stderr
    (path,) = stored(spool)
    assert data_set(path) == data_set(sent)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == EXPLICIT


def test_a_real_series_arrives_whole_over_two_associations(
    door: tuple[Door, int], ledger: Ledger, spool: Spool
) -> None:
    folder = real_data("dicom", "spine_t2_pt005")
    files = sorted(folder.glob("*.dcm"))
    for half in (files[::2], files[1::2]):
        done = dcmtk("dcmsend", "-aec", "PENNODE", "127.0.0.1", str(door[1]), *half)
        assert done.returncode == 0, done.stderr
    (series,) = ledger.receiving()
    members = ledger.series_instances(series.series_uid)
    assert series.instances == len(members) == len(files)
    sent = {str(pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID): data_set(f) for f in files}
    assert {m.sop_uid: data_set(spool.path(m.path)) for m in members} == sent
    until(lambda: not door[0].is_open(series.series_uid))


def test_a_class_we_do_not_take_gets_no_context(port: int, tmp_path: Path, spool: Spool) -> None:
    ds = mr(SOPClassUID=uid.RTPlanStorage, Modality="RTPLAN")
    done = dcmtk("storescu", "-aec", "PENNODE", "127.0.0.1", str(port), write(ds, tmp_path / "a.dcm"))
    assert done.returncode != 0
    assert "No presentation context for" in done.stdout + done.stderr
    assert stored(spool) == []


# -- objects that are not what they should be


@pytest.mark.parametrize(
    "sop_uid", ["../../../../tmp/evil", "1.2/../../3", "/etc/passwd", "1.2\\../3", "..\\..", "abc", ".", "1"]
)
def test_a_uid_that_could_be_a_path_is_refused_and_leaves_no_file(
    sop_uid: str, port: int, way: dict[str, bool], tmp_path: Path, spool: Spool, ledger: Ledger
) -> None:
    before = set(files_below(tmp_path))
    with associated(port) as assoc:
        # Of several values pynetdicom takes the first, which is then another object's UID.
        first_taken = sop_uid == "1.2\\../3" and not way["fast_path"]
        refused = statuses.DATA_SET_DOES_NOT_MATCH if first_taken else statuses.INVALID_SOP_INSTANCE
        assert store(assoc, encoded(mr()), sop_uid) == refused
        assert store(assoc, encoded(mr())) == statuses.SUCCESS, "the association lives on"
    new = {p for p in files_below(tmp_path) if p not in before and not p.name.startswith("ledger")}
    assert new == {spool.path(m.path) for m in ledger.series_instances(SERIES)}


def test_a_uid_of_65_characters_ends_the_association_at_most(port: int, way: dict[str, bool], spool: Spool) -> None:
    """pynetdicom itself cannot read such a command; it answers with an abort."""
    with associated(port) as assoc:
        if way["fast_path"]:
            assert store(assoc, encoded(mr()), "1." + "1" * 63) == statuses.INVALID_SOP_INSTANCE
        else:
            with pytest.raises(AssertionError):
                store(assoc, encoded(mr()), "1." + "1" * 63)
    assert stored(spool) == []
    with associated(port) as assoc:
        assert store(assoc, encoded(mr())) == statuses.SUCCESS


@pytest.mark.parametrize("name", ["SeriesInstanceUID", "StudyInstanceUID"])
def test_a_series_uid_that_could_be_a_path_is_refused_and_leaves_no_file(name: str, port: int, spool: Spool) -> None:
    data = encoded(mr())
    good, evil = {"SeriesInstanceUID": (b"1.2.3.10", b"../../ev"), "StudyInstanceUID": (b"1.2.3.1\0", b"../../e\0")}[
        name
    ]
    tag = pydicom.tag.Tag(name)
    element = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little") + b"UI\x08\x00"
    assert element + good in data
    with associated(port) as assoc:
        assert store(assoc, data.replace(element + good, element + evil)) == statuses.CANNOT_UNDERSTAND
    assert stored(spool) == []


def test_a_cut_data_set_is_refused_with_c000(port: int, spool: Spool, ledger: Ledger) -> None:
    whole = encoded(mr())
    with associated(port) as assoc, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for length in (len(whole) - 2, len(whole) // 2, 100, 10, 2):
            assert store(assoc, whole[:length]) == statuses.CANNOT_UNDERSTAND
    assert stored(spool) == []
    assert ledger.receiving() == []


def test_another_object_than_announced_is_refused_with_a900(port: int, spool: Spool) -> None:
    with associated(port) as assoc:
        assert store(assoc, encoded(mr()), "1.2.3.999") == statuses.DATA_SET_DOES_NOT_MATCH
        other_class = encoded(mr(SOPClassUID=uid.CTImageStorage))
        assert store(assoc, other_class) == statuses.DATA_SET_DOES_NOT_MATCH
    assert stored(spool) == []


def test_the_same_object_twice_is_success_and_one_row(port: int, spool: Spool, ledger: Ledger) -> None:
    for _ in range(2):
        with associated(port) as assoc:
            assert store(assoc, encoded(mr())) == statuses.SUCCESS
            assert store(assoc, encoded(mr())) == statuses.SUCCESS
    assert len(stored(spool)) == len(ledger.series_instances(SERIES)) == 1
    (series,) = ledger.receiving()
    assert series.instances == 1


def test_other_bytes_under_a_known_uid_are_0111_and_the_first_are_kept(port: int, spool: Spool, ledger: Ledger) -> None:
    first, second = encoded(mr()), encoded(mr(SeriesDescription="other"))
    with associated(port) as assoc:
        assert store(assoc, first) == statuses.SUCCESS
        assert store(assoc, second) == statuses.DUPLICATE_SOP_INSTANCE
    (path,) = stored(spool)
    assert data_set(path) == first
    job = seal(ledger)
    assert any(e.after == "conflict" and f"{SERIES}.1" in e.text for e in ledger.journal(job))


# -- peers that behave badly


def test_the_door_outlives_garbage_half_open_connections_and_aborts(
    door: tuple[Door, int], spool: Spool, ledger: Ledger
) -> None:
    _, port = door
    silent = socket.create_connection(("127.0.0.1", port))
    for garbage in (
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(100),
        b"\x01\x00\x00\x00\x00\x10short",
        b"\x04\x00\xff\xff\xff\xffxx",
    ):
        with closing(socket.create_connection(("127.0.0.1", port))) as raw:
            raw.sendall(garbage)
    # An abort in the middle of an object: the first P-DATA of two.
    with associated(port) as assoc:
        assoc.dul.socket.socket.sendall(half_an_object(encoded(mr())))
        assoc.abort()
    with associated(port) as assoc:
        assoc.dul.socket.socket.sendall(half_an_object(encoded(mr()))[:-20])
        assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)
    assert dcmtk("echoscu", "-aec", "PENNODE", "127.0.0.1", str(port)).returncode == 0
    with associated(port) as assoc:
        assert store(assoc, encoded(mr(2)), f"{SERIES}.2") == statuses.SUCCESS
    silent.close()
    until(lambda: door[0].associations() == 0)
    assert [m.sop_uid for m in ledger.series_instances(SERIES)] == [f"{SERIES}.2"]
    assert len(stored(spool)) == 1


def half_an_object(data: bytes) -> bytes:
    """A C-STORE-RQ whole, and then a first fragment of its data set that is not the last (PS3.8 9.3.5)."""
    from pynetdicom.dimse_messages import C_STORE_RQ

    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPInstanceUID, request.AffectedSOPClassUID = f"{SERIES}.1", uid.MRImageStorage
    request.DataSet = BytesIO(data)
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    fragments = list(message.encode_msg(1, 16382))

    def pdu(header: int, payload: bytes) -> bytes:
        item = (len(payload) + 2).to_bytes(4, "big") + bytes([1, header]) + payload
        return b"\x04\x00" + len(item).to_bytes(4, "big") + item

    _, command = fragments[0].presentation_data_value_list[0]
    return pdu(0x03, command[1:]) + pdu(0x00, data[: len(data) // 2])


def test_a_peer_that_leaves_before_its_answer_is_not_waited_for(
    open_door: OpenDoor, way: dict[str, bool], ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection closes while its last image is still being read."""
    door, port = open_door()

    def slow(*what):
        if way["fast_path"]:  # one thread reads and commits: it learns of the close when it comes to answer
            time.sleep(0.1)
        else:
            until(lambda: door.associations() == 0)
        return identify(*what)

    monkeypatch.setattr(reception, "identify", slow)
    with associated(port) as assoc:
        until(lambda: door.associations() == 1)
        whole = encoded(mr())
        half = half_an_object(whole)
        rest = whole[len(whole) // 2 :]
        item = (len(rest) + 2).to_bytes(4, "big") + b"\x01\x02" + rest
        raw = assoc.dul.socket.socket
        raw.sendall(half + b"\x04\x00" + len(item).to_bytes(4, "big") + item)
        raw.shutdown(socket.SHUT_RDWR)
        until(lambda: len(ledger.receiving()) == 1)
        until(lambda: door.associations() == 0)
    assert not door.is_open(SERIES)


def test_the_series_waits_for_the_association_that_brought_it(door: tuple[Door, int]) -> None:
    with associated(door[1]) as assoc:
        assert not door[0].is_open(SERIES)
        store(assoc, encoded(mr()))
        assert door[0].is_open(SERIES)
        assert door[0].associations() == 1
    until(lambda: not door[0].is_open(SERIES))


def test_who_only_repeats_images_does_not_hold_up_the_seal(door: tuple[Door, int]) -> None:
    with associated(door[1]) as first:
        store(first, encoded(mr()))
        assert store(first, encoded(mr())) == statuses.SUCCESS
        assert door[0].is_open(SERIES), "it brought the image, before it repeated it"
    until(lambda: not door[0].is_open(SERIES))
    with associated(door[1]) as second:
        assert store(second, encoded(mr())) == statuses.SUCCESS
        assert store(second, encoded(mr(PatientID="ANOTHER"))) == statuses.DUPLICATE_SOP_INSTANCE
        until(lambda: not door[0].is_open(SERIES))
        store(second, encoded(mr(2)), f"{SERIES}.2")
        assert door[0].is_open(SERIES)


def test_a_series_does_not_wait_for_an_association_that_went_on_to_another(door: tuple[Door, int]) -> None:
    other = "1.2.3.20"
    with associated(door[1]) as assoc:
        store(assoc, encoded(mr()))
        store(assoc, encoded(mr(1, other)), f"{other}.1")
        assert (door[0].is_open(SERIES), door[0].is_open(other)) == (False, True)
        store(assoc, encoded(mr(2)), f"{SERIES}.2")
        assert (door[0].is_open(SERIES), door[0].is_open(other)) == (True, False), "it returned"
        with associated(door[1]) as second:
            store(second, encoded(mr(2, other)), f"{other}.2")
            assert door[0].is_open(SERIES)
            assert door[0].is_open(other), "by the second association"
    until(lambda: not door[0].is_open(SERIES) and not door[0].is_open(other))


def test_associations_of_two_starts_do_not_look_like_one(open_door: OpenDoor, ledger: Ledger) -> None:
    for n in (1, 2):
        door, port = open_door()
        with associated(port) as assoc:
            store(assoc, encoded(mr(n)), f"{SERIES}.{n}")
        door.stop()
    numbers = [one.association for one in ledger.series_instances(SERIES)]
    assert len(set(numbers)) == 2
    assert all(0 < number < 2**31 for number in numbers), "they fit the column"


def test_more_associations_than_allowed_are_rejected_for_now(open_door: OpenDoor) -> None:
    _, port = open_door(max_associations=1)
    with associated(port):
        refused = dcmtk("echoscu", "-v", "-aec", "PENNODE", "127.0.0.1", str(port)).stderr
        assert "Rejected Transient" in refused
        assert "Local Limit Exceeded" in refused


def test_a_taken_port_is_a_configuration_error(port: int, way: dict[str, bool], ledger: Ledger, spool: Spool) -> None:
    said = ""
    try:
        Door(ledger, spool, Listener(port=port, **way), changed=lambda: None).start()
    except ConfigurationError as error:
        said = str(error)
    assert f"127.0.0.1:{port} (Address already in use)" in said
    assert "[listener]" in said


def test_a_closed_door_lets_nobody_in(way: dict[str, bool], ledger: Ledger, spool: Spool) -> None:
    port = free_port()
    door = Door(ledger, spool, Listener(port=port, **way), changed=lambda: None)
    door.start()
    door.stop()
    door.stop()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), 1)


# -- what is not there


def test_below_the_floor_of_free_disk_nothing_is_taken(
    open_door: OpenDoor, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, port = open_door(free_floor_mb=1)
    with associated(port) as assoc:
        monkeypatch.setattr(spool, "free_bytes", lambda: 999_999)
        time.sleep(0.2)  # many small objects share one look at the disk
        assert store(assoc, encoded(mr())) == statuses.OUT_OF_RESOURCES
        refused = dcmtk(
            "storescu", "-v", "-aec", "PENNODE", "127.0.0.1", str(port), write(mr(), tmp_path / "a.dcm")
        ).stderr
        assert "Rejected Transient" in refused
        assert "Temporary Congestion" in refused
        assert dcmtk("echoscu", "-aec", "PENNODE", "127.0.0.1", str(port)).returncode == 0, (
            "who only asks may still come in"
        )
        assert stored(spool) == []
        monkeypatch.setattr(spool, "free_bytes", lambda: 1_000_000)
        assert store(assoc, encoded(mr())) == statuses.SUCCESS


@pytest.fixture
def tiny_spool(tmp_path: Path) -> Iterator[Spool]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here (needs root)")
    spool = Spool(folder)
    spool.prepare()
    yield spool
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_a700_and_the_association_lives_on(
    way: dict[str, bool], tiny_spool: Spool, ledger: Ledger
) -> None:
    door = Door(ledger, tiny_spool, Listener(port=0, free_floor_mb=0, **way), changed=lambda: None)
    _, port = door.start()
    ballast = tiny_spool.root / "ballast"
    ballast.write_bytes(bytes(200_000))
    big = encoded(mr(size=256))
    try:
        with associated(port) as assoc:
            for _ in range(3):
                assert store(assoc, big) == statuses.OUT_OF_RESOURCES
            assert stored(tiny_spool) == [ballast]
            assert ledger.receiving() == []
            ballast.unlink()
            assert store(assoc, big) == statuses.SUCCESS
    finally:
        door.stop()
    (path,) = stored(tiny_spool)
    assert data_set(path) == big


def test_a_ledger_that_does_not_answer_is_a700(open_door: OpenDoor, ledger: Ledger) -> None:
    _, port = open_door()
    with ledger._db.write() as connection:
        connection.exec_driver_sql("ALTER TABLE instance RENAME TO elsewhere")
    with associated(port) as assoc:
        assert store(assoc, encoded(mr())) == statuses.OUT_OF_RESOURCES
        with ledger._db.write() as connection:
            connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO instance")
        assert store(assoc, encoded(mr())) == statuses.SUCCESS


# -- what must not be known


def test_no_patient_reaches_the_log_or_the_ledger(
    port: int, ledger: Ledger, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="node")
    ds: Dataset = mr(OtherPatientIDs="OTHER-9", PatientAddress="Secretstreet 1")
    whole = encoded(ds)
    assert b"Secretname^Zoe" in whole
    with associated(port) as assoc, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert store(assoc, whole) == statuses.SUCCESS
        assert store(assoc, encoded(mr(SeriesDescription="changed"))) == statuses.DUPLICATE_SOP_INSTANCE
        assert store(assoc, whole[:-2]) == statuses.CANNOT_UNDERSTAND
        assert store(assoc, whole, "1.2.3.4") == statuses.DATA_SET_DOES_NOT_MATCH
    seal(ledger)
    with ledger._db.read() as connection:
        rows = [[list(row) for row in connection.execute(select(table))] for table in metadata.tables.values()]
    assert f"{SERIES}.1" in json.dumps(rows)
    assert len(caplog.records) >= 3
    for text in (json.dumps(rows), caplog.text):
        for secret in ("Secretname", "Zoe", "PID-73519", "19700101", "OTHER-9", "Secretstreet"):
            assert secret not in text


def test_a_callers_title_cannot_fake_a_line_of_the_log(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with associated(port, title="A B") as assoc:
        assert store(assoc, encoded(mr()), "no\nuid 0123 forged") == statuses.INVALID_SOP_INSTANCE
    refused = [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]
    assert len(refused) == 1
    assert "\n" not in refused[0]
