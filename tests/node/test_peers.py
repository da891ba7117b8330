"""Who may come in, on both paths of the listener, and what the admin hears of who may not."""

from __future__ import annotations

import json
import socket
import time
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import statuses
from node.callers import MOST_CALLERS, Caller, Callers, Contact, latest
from node.errors import LedgerUnavailable
from node.ledger import Ledger
from node.listener import Door
from node.peers import Peers, is_title, plain_title
from node.settings import Listener, Peer, Settings
from tests import presend
from tests.harness import pennode
from tests.node.making import encoded, mr
from tests.peers import dcmtk
from tests.presend import Sent, connect, pdu, read_pdu, status_of
from tests.waiting import until

OpenDoor = Callable[..., tuple[Door, int]]
MR, EXPLICIT = b"1.2.840.10008.5.1.4.1.1.4", b"1.2.840.10008.1.2.1"
CONTEXTS = [(MR, EXPLICIT), (b"1.2.840.10008.1.1", b"1.2.840.10008.1.2")]
T0 = 1_700_000_000.0


@pytest.fixture
def open_door(open_door: OpenDoor, way: dict[str, bool]) -> OpenDoor:
    return partial(open_door, **way)


def peer(name: str, title: str, *networks: str, **values: Any) -> Peer:
    return Peer(name=name, ae_title=title, networks=networks, **values)  # type: ignore[arg-type]


def ask(port: int, calling: str = "PRESEND", host: str = "127.0.0.1", source: str = "127.0.0.1") -> tuple[int, bytes]:
    """Ask for an association, and return the kind and body of the answer."""
    with socket.create_connection((host, port), 5, source_address=(source, 0)) as connection:
        connection.sendall(presend.association_request(CONTEXTS, calling.encode()))
        return read_pdu(connection)


def rejected(triple: tuple[int, int, int]) -> tuple[int, bytes]:
    return 3, bytes([0, *triple])


# -- on the wire


def test_a_peer_is_let_in_from_its_addresses_alone(open_door: OpenDoor) -> None:
    listed = [peer("mr1", "MR1", "127.0.0.2/32"), peer("mr2", "MR1", "127.0.0.8/30"), peer("any", "ANYWHERE")]
    _, port = open_door(peers=listed)
    assert ask(port, "MR1", source="127.0.0.2")[0] == 2
    assert ask(port, "MR1", source="127.0.0.9")[0] == 2
    assert ask(port, "ANYWHERE", source="127.0.0.77")[0] == 2
    assert ask(port, "  MR1 ", source="127.0.0.2")[0] == 2, "spaces around a title mean nothing"
    for source in ("127.0.0.1", "127.0.0.3", "127.0.0.12"):
        assert ask(port, "MR1", source=source) == rejected(statuses.CALLING_AE_NOT_RECOGNISED)
    assert ask(port, "mr1", source="127.0.0.2")[0] == 2, "that is another title, which nobody has"


def own_address() -> str:
    """An address of this machine that is none of loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.77", 9))
        except OSError:
            pytest.skip("this machine has no network")
        return str(probe.getsockname()[0])


def test_nobody_is_let_in_from_elsewhere_who_is_not_listed(open_door: OpenDoor) -> None:
    address = own_address()
    _, port = open_door(host="0.0.0.0")
    assert ask(port)[0] == 2
    assert ask(port, host=address, source=address) == rejected(statuses.CALLING_AE_NOT_RECOGNISED)
    _, port = open_door(host="0.0.0.0", peers=[peer("here", "PRESEND", f"{address}/32")])
    assert ask(port, host=address, source=address)[0] == 2


def test_unknown_peers_may_all_be_let_in_or_none(open_door: OpenDoor) -> None:
    address, listed = own_address(), [peer("mr1", "MR1", "203.0.113.1")]
    _, port = open_door(host="0.0.0.0", unknown_peers="accept", peers=listed)
    assert ask(port, host=address, source=address)[0] == 2
    assert ask(port, "MR1") == rejected(statuses.CALLING_AE_NOT_RECOGNISED), "that title is somebody else's"
    _, port = open_door(unknown_peers="reject", peers=[peer("mr1", "MR1")])
    assert ask(port) == rejected(statuses.CALLING_AE_NOT_RECOGNISED)
    assert ask(port, "MR1")[0] == 2


def test_a_called_title_must_be_one_of_ours(open_door: OpenDoor) -> None:
    own = peer("old", "OLD", called_ae_titles=("SEGMENT",))
    _, port = open_door(ae_title="NODE", also_called=("PENNODE", "STORE SCP"), peers=[own])
    for title, code in (("NODE", 0), ("STORE SCP", 0), ("node", 1), ("ANY-SCP", 1), ("SEGMENT", 1)):
        done = dcmtk("echoscu", "-v", "-aec", title, "127.0.0.1", str(port))
        assert (done.returncode != 0) == bool(code), done.stderr
        assert ("Called AE Title Not Recognized" in done.stderr) == bool(code)
        assert ("Rejected Permanent, Source: Service User" in done.stderr) == bool(code)
    assert dcmtk("echoscu", "-aet", "OLD", "-aec", "SEGMENT", "127.0.0.1", str(port)).returncode == 0
    assert dcmtk("echoscu", "-aet", "OLD", "-aec", "NODE", "127.0.0.1", str(port)).returncode != 0
    _, port = open_door(ae_title="NODE", check_called_ae=False)
    assert dcmtk("echoscu", "-aec", "WHATEVER", "127.0.0.1", str(port)).returncode == 0


def test_a_peer_that_is_not_enabled_is_rejected(open_door: OpenDoor) -> None:
    _, port = open_door(peers=[peer("mr1", "MR1", enabled=False)], unknown_peers="accept")
    assert (
        "Calling AE Title Not Recognized"
        in dcmtk("echoscu", "-v", "-aet", "MR1", "-aec", "PENNODE", "127.0.0.1", str(port)).stderr
    )


def test_a_peers_own_number_of_associations_counts_over_all_its_addresses(open_door: OpenDoor, ledger: Ledger) -> None:
    door, port = open_door(peers=[peer("mr1", "PRESEND", max_associations=2)], max_associations_per_peer=1)
    with presend.associate(port, CONTEXTS, "127.0.0.2"), presend.associate(port, CONTEXTS, "127.0.0.3"):
        assert ask(port, "PRESEND", source="127.0.0.4") == rejected(statuses.LOCAL_LIMIT_EXCEEDED)
        with connect(port, "127.0.0.4") as other:
            other.sendall(presend.association_request(CONTEXTS, b"OTHER"))
            assert read_pdu(other)[0] == 2
            assert ask(port, "OTHER", source="127.0.0.4") == rejected(statuses.LOCAL_LIMIT_EXCEEDED)
    until(lambda: door.associations() == 0)
    assert ask(port, "PRESEND", source="127.0.0.4")[0] == 2
    until(lambda: door.associations() == 0)
    door.callers.tick(T0)
    assert ledger.contacts()["mr1"].associations == 3, "those that were turned away are none"


def test_who_is_turned_away_for_any_reason_holds_no_place(open_door: OpenDoor) -> None:
    door, port = open_door(max_associations=1, max_associations_per_peer=3)
    with presend.associate(port, CONTEXTS, "127.0.0.2"):
        for _ in range(5):
            assert ask(port, source="127.0.0.3") == rejected(statuses.LOCAL_LIMIT_EXCEEDED)
            with connect(port, "127.0.0.3") as hasty:
                hasty.sendall(presend.association_request(CONTEXTS) + pdu(7, bytes(4)))
    until(lambda: door.associations() == 0)
    until(lambda: ask(port, source="127.0.0.3")[0] == 2)


@pytest.mark.parametrize("last", [512, 440], ids=["longer than a buffer", "that may come in one read"])
def test_an_association_that_brings_too_much_is_aborted(
    open_door: OpenDoor, spool: Any, caplog: pytest.LogCaptureFixture, last: int
) -> None:
    door, port = open_door(max_association_mb=1)
    with presend.associate(port, CONTEXTS, timeout=5) as guest:
        for number, size in enumerate((400, 400, last), start=1):
            sent = Sent(MR, f"1.2.3.10.{number}".encode(), EXPLICIT, encoded(mr(number, size=size)))
            guest.sendall(presend.message(sent, 1, 16384))
            kind, answer = read_pdu(guest)
            if size == 400:
                assert (kind, status_of(answer)) == (4, statuses.SUCCESS)
        assert kind == 7
    until(lambda: door.associations() == 0)
    assert len(list(spool.root.rglob("*.dcm"))) == 2
    assert list((spool.root / "tmp").iterdir()) == []
    assert sum("listener.max_association_mb came over it" in r.getMessage() for r in caplog.records) == 1
    assert ask(port)[0] == 2


# -- what the admin hears


def test_who_was_rejected_is_remembered_with_the_lines_that_let_it_in(open_door: OpenDoor, ledger: Ledger) -> None:
    door, port = open_door(unknown_peers="reject")
    for _ in range(3):
        ask(port, 'MR "1"', source="127.0.0.5")
    ask(port, "CT1", source="127.0.0.6")
    door.callers.tick(T0)
    first, second = ledger.callers()
    assert (first.calling_ae, first.called_ae, first.address, first.times) == ("CT1", "PENNODE", "127.0.0.6", 1)
    assert (second.calling_ae, second.address, second.times) == ('MR "1"', "127.0.0.5", 3)
    rules = Peers(Listener(unknown_peers="reject"), ())
    blocks = [lines for _, lines in rules.listing(ledger.callers(), {}).callers]
    settings = Settings(**tomllib.loads("\n".join(blocks)), listener=Listener(port=0))
    assert [p.ae_title for p in settings.peers] == ["CT1", 'MR "1"']
    door, port = open_door(unknown_peers="reject", peers=settings.peers)
    assert ask(port, 'MR "1"', source="127.0.0.5")[0] == 2
    door.callers.tick(T0)
    assert [c.calling_ae for c in ledger.callers()] == ["CT1"], "who is let in is nobody to be told of"
    contact = ledger.contacts()["mr--1-"]
    assert (contact.address, contact.associations) == ("127.0.0.5", 1)


def test_who_is_let_in_without_being_listed_is_remembered_as_such(open_door: OpenDoor, ledger: Ledger) -> None:
    door, port = open_door()
    ask(port)
    door.callers.tick(T0)
    (caller,) = ledger.callers()
    assert (caller.calling_ae, caller.rejected) == ("PRESEND", "")


def test_a_title_that_is_none_can_fake_neither_a_line_nor_a_setting(
    open_door: OpenDoor, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    door, port = open_door(unknown_peers="reject", host="127.0.0.1")
    for title in (b"A\nB", b"<script>", b'"]\n[log]\nx=1', b"\xc3\xa4\xff", b"a\\b", b"\x1b[31m"):
        with connect(port, timeout=5) as hostile:
            hostile.sendall(presend.association_request(CONTEXTS, title))
            assert read_pdu(hostile)[0] in (3, 7)
    door.callers.tick(T0)
    listed = Peers(Listener(), ()).listing(ledger.callers(), {}).callers
    assert [c.calling_ae for c, _ in listed] == ["<script>"], "what is no title at all is aborted, and not noted"
    assert set(tomllib.loads(listed[0][1])) == {"peers"}
    assert all(r.getMessage().isprintable() for r in caplog.records if r.name.startswith("node"))


@given(st.text(max_size=20), st.text(max_size=20))
def test_lines_are_toml_that_lets_the_caller_in_or_there_are_none(calling: str, called: str) -> None:
    calling, called = plain_title(calling), plain_title(called)
    listener = Listener(unknown_peers="reject", also_called=("OTHER",))
    lines = Peers(listener, ()).lines(calling, called, "fe80::1%eth0")
    assert bool(lines) == (is_title(calling) and is_title(called))
    if lines:
        given_settings = tomllib.loads(lines)
        more = {"unknown_peers": "reject", **given_settings.pop("listener", {"also_called": ["OTHER"]})}
        settings = Settings(**given_settings, listener=more)
        assert Peers(settings.listener, settings.peers).judge(calling, called, "fe80::1").rejection is None
        assert "OTHER" in settings.listener.also_called


def test_lines_for_one_who_has_a_peers_title_are_that_peers() -> None:
    listed = [peer("mr1", "MR1", "192.0.2.0/24"), peer("off", "OFF", enabled=False, called_ae_titles=("SEG",))]
    rules = Peers(Listener(), listed)
    assert rules.lines("MR1", "PENNODE", "203.0.113.9") == '# of peer mr1\nnetworks = ["192.0.2.0/24", "203.0.113.9"]'
    assert rules.lines("MR1", "PENNODE", "192.0.2.9") == ""
    assert (
        rules.lines("OFF", "X", "::1")
        == '# of peer off\nenabled = true\n\n# of peer off\ncalled_ae_titles = ["SEG", "X"]'
    )


# -- bounded


def caller(number: int, address: str = "", at: float = T0, rejected: str = "no") -> Caller:
    return Caller(f"C{number}", "PENNODE", address or f"10.0.{number // 256}.{number % 256}", rejected, 1, at, at)


def test_a_scanner_pushes_out_itself_first(any_ledger: Ledger) -> None:
    any_ledger.note_callers([caller(n, "10.9.9.9", T0 + n) for n in range(5)], [])
    honest = caller(1, "10.1.1.1", T0)
    any_ledger.note_callers([honest], [])
    for start in range(0, 400, 40):
        any_ledger.note_callers([caller(n, "10.9.9.9", T0 + 10 + n) for n in range(start, start + 40)], [])
    held = any_ledger.callers()
    assert honest in held
    assert len(held) == 11
    any_ledger.note_callers([caller(n, at=T0 + 500 + n) for n in range(MOST_CALLERS + 50)], [])
    assert len(any_ledger.callers()) == MOST_CALLERS
    assert any_ledger.callers() == latest(any_ledger.callers())


def test_notes_are_added_to_those_held(any_ledger: Ledger) -> None:
    any_ledger.note_callers([caller(1)], [Contact("mr1", "10.0.0.1", 2, T0)])
    any_ledger.note_callers([caller(1, at=T0 + 5, rejected="other")], [Contact("mr1", "10.0.0.2", 3, T0 + 5)])
    (held,) = any_ledger.callers()
    assert (held.times, held.first_at, held.last_at, held.rejected) == (2, T0, T0 + 5, "other")
    contact = any_ledger.contacts()["mr1"]
    assert (contact.address, contact.associations, contact.seen_at) == ("10.0.0.2", 5, T0 + 5)


def test_callers_of_long_ago_are_forgotten(any_ledger: Ledger) -> None:
    any_ledger.note_callers([caller(1)], [])
    any_ledger.note_callers([caller(2, at=T0 + 31 * 86400)], [])
    assert [c.calling_ae for c in any_ledger.callers()] == ["C2"]


def test_notes_wait_in_bounded_memory_for_a_ledger_that_is_away() -> None:
    written: list[tuple[int, int]] = []
    away = [True]

    def write(callers: Any, contacts: Any) -> None:
        if away[0]:
            raise LedgerUnavailable("away")
        written.append((sum(c.times for c in callers), sum(c.associations for c in contacts)))

    notes = Callers(write)
    for number in range(1000):
        notes.note_caller(f"C{number}", "PENNODE", "10.0.0.1", "no", T0 + number)
    for _ in range(7):
        notes.note_caller("X", "PENNODE", "10.0.0.2", "no", T0 + 2000)
        notes.note_peer("mr1", "MR1", "PENNODE", "10.0.0.3", T0)
    with pytest.raises(LedgerUnavailable):
        notes.tick(T0)
    away[0] = False
    notes.tick(T0)
    notes.tick(T0)
    assert len(written) == 1, "nothing to write, nothing written"
    assert written[0][0] <= MOST_CALLERS + 7
    assert written[0][1] == 7


# -- on the command line


def test_the_command_line_lists_them(tmp_path: Path, sqlite_url: str, ledger: Ledger) -> None:
    settings = tmp_path / "pennode.toml"
    settings.write_text('[[peers]]\nname = "mr1"\nae_title = "MR1"\n[[peers]]\nname = "mr2"\nae_title = "MR2"\n')
    ledger.note_callers([caller(7, "10.7.7.7", time.time() - 120)], [Contact("mr1", "10.0.0.1", 2, time.time() - 60)])
    environment = {"PENNODE_CONFIG": str(settings), "PENNODE_LEDGER_URL": sqlite_url}
    said = pennode("peers", "list", environment=environment)
    assert said.returncode == 0, said.stderr
    assert "mr1\tMR1\tlast seen 1 min ago at 10.0.0.1" in said.stdout
    assert "mr2\tMR2\tnever seen" in said.stdout
    assert "C7 called PENNODE from 10.7.7.7, 1 time(s), last 2 min ago; rejected: no" in said.stdout
    assert '[[peers]]\nname = "c7"\nae_title = "C7"\nnetworks = ["10.7.7.7"]' in said.stdout
    listed = json.loads(pennode("peers", "list", "--json", environment=environment).stdout)
    assert [(p["name"], p["associations"]) for p in listed["peers"]] == [("mr1", 2), ("mr2", 0)]
    (one,) = listed["callers"]
    assert (one["calling_ae"], one["times"]) == ("C7", 1)
    assert one["lines"].startswith("[[peers]]")
    shown = json.loads(pennode("config", "show", environment=environment).stdout)
    assert shown["peers"][0]["networks"] == []
