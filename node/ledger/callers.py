"""Peers as last seen, and callers that are none; the notes of `node.callers`, kept."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from node.callers import Caller, Contact, joined, latest
from node.ledger.database import Database
from node.ledger.schema import caller, peer

_FIELDS = tuple(Caller.__dataclass_fields__)


class CallerNotes:
    """The part of the ledger that knows who called."""

    _db: Database

    def callers(self) -> list[Caller]:
        """Return the latest callers that were rejected, or let in without being listed; latest first."""
        with self._db.read() as connection:
            return _held(connection)

    def contacts(self) -> dict[str, Contact]:
        """Return when peers were last seen, by name."""
        query = select(peer.c.name, peer.c.address, peer.c.associations, peer.c.seen_at)
        with self._db.read() as connection:
            return {row.name: Contact(*row) for row in connection.execute(query)}

    def note_callers(self, callers: Sequence[Caller], contacts: Sequence[Contact]) -> None:
        """Add notes to those held; of callers only the latest stay, and of those none that is let in as a peer now."""
        with self._db.write() as connection:
            held = {c.key: c for c in _held(connection)}
            whole = dict(held)
            for one in callers:
                whole[one.key] = joined(whole.get(one.key), one)
            for contact in contacts:
                whole.pop((contact.calling_ae, contact.called_ae, contact.address), None)
                _see(connection, contact)
            kept = {c.key: c for c in latest(whole.values())}
            for key in held.keys() - kept.keys():
                connection.execute(delete(caller).where(_is(key)))
            for key, one in kept.items():
                values = {name: getattr(one, name) for name in _FIELDS}
                if key not in held:
                    connection.execute(insert(caller).values(**values))
                elif one != held[key]:
                    connection.execute(update(caller).where(_is(key)).values(**values))


def _held(connection: Connection) -> list[Caller]:
    query = select(*(caller.c[name] for name in _FIELDS)).order_by(caller.c.last_at.desc())
    return [Caller(*row) for row in connection.execute(query)]


def _is(key: tuple[str, str, str]) -> ColumnElement[bool]:
    calling, called, address = key
    return (caller.c.calling_ae == calling) & (caller.c.called_ae == called) & (caller.c.address == address)


def _see(connection: Connection, contact: Contact) -> None:
    changed = connection.execute(
        update(peer)
        .where(peer.c.name == contact.peer)
        .values(
            address=contact.address, seen_at=contact.seen_at,
            associations=peer.c.associations + contact.associations,
        )
    ).rowcount  # fmt: skip
    if not changed:
        connection.execute(
            insert(peer).values(
                name=contact.peer, address=contact.address, seen_at=contact.seen_at, associations=contact.associations
            )
        )
