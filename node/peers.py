"""Who may come in: an association is judged by its AE titles and its address before anything else of it is.

A title that ``[[peers]]`` lists belongs to its peer, from the peer's addresses alone. Of titles that nobody lists,
``listener.unknown_peers`` decides: as it is set by default, who speaks from this machine may come in and nobody else,
so that one machine needs no configuration and a network gives nobody access by itself.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from node.callers import Caller, Contact
from node.settings import AE_PATTERN, Listener, Peer
from node.statuses import CALLED_AE_NOT_RECOGNISED, CALLING_AE_NOT_RECOGNISED

# Stands for a character that no AE title may have, and is none itself: such a title never passes for a good one.
_NO_AE_CHARACTER = "\ufffd"
_LONGEST_TITLE = 16


@dataclass(frozen=True)
class Verdict:
    """What became of a request: the peer, if one is listed, or how it is rejected (PS3.8 table 9-21) and why.

    `group` is what associations are counted under, and `most` how many of it there may be at the same time.
    """

    peer: str = ""
    rejection: tuple[int, int, int] | None = None
    reason: str = ""
    group: str = ""
    most: int | None = None


@dataclass(frozen=True)
class Listing:
    """Peers with when they were last seen, and callers that are none, with the settings that would let each in."""

    peers: list[tuple[Peer, Contact | None]]
    callers: list[tuple[Caller, str]]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        peers = [
            {
                "name": peer.name,
                "ae_title": peer.ae_title,
                "networks": [str(network) for network in peer.networks],
                "enabled": peer.enabled,
                "associations": contact.associations if contact else 0,
                "address": contact.address if contact else "",
                "seen_at": contact.seen_at if contact else None,
            }
            for peer, contact in self.peers
        ]
        return {"peers": peers, "callers": [caller.to_json() | {"lines": lines} for caller, lines in self.callers]}


class Peers:
    """The rules by which callers are let in."""

    def __init__(self, listener: Listener, listed: Sequence[Peer]) -> None:
        self._listener = listener
        self._listed = listed

    def judge(self, calling: str, called: str, address: str) -> Verdict:
        """Say whether an association may be opened; titles as they were sent, address as the kernel tells it."""
        origin = _address(address)
        peer, claimed = self._find(calling, origin)
        reason = ""
        if peer is not None:
            reason = "" if peer.enabled else f"peer {peer.name} has enabled = false"
        elif claimed is not None:
            reason = f"peer {claimed.name} has this AE title, and not this address"
        elif self._listener.unknown_peers == "reject":
            reason = "no peer has this AE title"
        elif self._listener.unknown_peers == "loopback" and not (origin and origin.is_loopback):
            reason = "no peer has this AE title, and it comes from another machine"
        if reason:
            return Verdict(rejection=CALLING_AE_NOT_RECOGNISED, reason=reason)
        if self._listener.check_called_ae and not self._is_us(called, peer):
            return Verdict(rejection=CALLED_AE_NOT_RECOGNISED, reason=f"we are not called {plain_title(called)}")
        if peer is not None and peer.max_associations is not None:
            return Verdict(peer.name, group=f"peer {peer.name}", most=peer.max_associations)
        name = peer.name if peer is not None else ""
        return Verdict(name, group=address, most=self._listener.max_associations_per_peer)

    def listing(self, callers: Sequence[Caller], contacts: Mapping[str, Contact]) -> Listing:
        """Put what the ledger remembers beside what is configured."""
        return Listing(
            [(peer, contacts.get(peer.name)) for peer in self._listed],
            [(c, self.lines(c.calling_ae, c.called_ae, c.address)) for c in callers],
        )

    def lines(self, calling: str, called: str, address: str) -> str:
        """Return the settings, as TOML, by which this caller is let in as a peer; empty: its titles can be nobody's."""
        if not (is_title(calling) and is_title(called)):
            return ""
        origin = _address(address)
        peer, claimed = self._find(calling, origin)
        at = address.partition("%")[0]
        blocks = []
        if peer is not None and not peer.enabled:
            blocks.append(f"# of peer {peer.name}\nenabled = true")
        elif peer is None and claimed is not None:
            networks = _toml([*map(str, claimed.networks), at])
            blocks.append(f"# of peer {claimed.name}\nnetworks = {networks}")
        elif peer is None:
            name = _toml(self._new_name(calling))
            blocks.append(f"[[peers]]\nname = {name}\nae_title = {_toml(calling)}\nnetworks = {_toml([at])}")
        if self._listener.check_called_ae and not self._is_us(called, peer or claimed):
            own = peer or claimed
            if own is not None and own.called_ae_titles:
                titles = _toml([*own.called_ae_titles, called])
                blocks.append(f"# of peer {own.name}\ncalled_ae_titles = {titles}")
            else:
                blocks.append(f"[listener]\nalso_called = {_toml([*self._listener.also_called, called])}")
        return "\n\n".join(blocks)

    def _find(self, calling: str, origin: IPv4Address | IPv6Address | None) -> tuple[Peer | None, Peer | None]:
        """Return the peer that calls, and else one that has its AE title and not its address."""
        calling = plain_title(calling)
        claimed = [p for p in self._listed if plain_title(p.ae_title) == calling]
        return next((p for p in claimed if _comes_from(p, origin)), None), claimed[0] if claimed else None

    def _is_us(self, called: str, peer: Peer | None) -> bool:
        ours = (self._listener.ae_title, *self._listener.also_called)
        if peer is not None and peer.called_ae_titles:
            ours = peer.called_ae_titles
        return plain_title(called) in map(plain_title, ours)

    def _new_name(self, calling: str) -> str:
        taken = {peer.name for peer in self._listed}
        wanted = re.sub(r"[^A-Za-z0-9_.-]", "-", calling).lower()
        numbered = (f"{wanted}-{number}" for number in range(2, len(taken) + 3))
        return next(name for name in (wanted, *numbered) if name not in taken)


def plain_title(title: str) -> str:
    """Return an AE title as sent without the spaces around it, which mean nothing (PS3.5 table 6.2-1).

    What no AE title may hold is shown as U+FFFD, so that the result fits a log line, a page and the ledger.
    """
    clean = title.strip(" \0")[:_LONGEST_TITLE].rstrip()
    return "".join(c if " " <= c <= "~" and c != "\\" else _NO_AE_CHARACTER for c in clean)


def is_title(title: str) -> bool:
    """Tell whether this can be an AE title."""
    return len(title) <= _LONGEST_TITLE and re.fullmatch(AE_PATTERN, title) is not None


def _comes_from(peer: Peer, origin: IPv4Address | IPv6Address | None) -> bool:
    return not peer.networks or (origin is not None and any(origin in network for network in peer.networks))


def _address(text: str) -> IPv4Address | IPv6Address | None:
    with contextlib.suppress(ValueError):
        return ip_address(text.removeprefix("::ffff:"))  # IPv4 on a port of both kinds
    return None


def _toml(value: str | Sequence[str]) -> str:
    """Return text, or a list of texts, as TOML writes it; of printable ASCII, that is as JSON does."""
    return json.dumps(value)
