"""Brings storage commitment reports to peers on associations of our own, and insists until each is told or given up."""

from __future__ import annotations

import ipaddress
import json
import logging
import re
from collections.abc import Sequence
from itertools import groupby

from node.commitment import SOP_CLASS_UID, SOP_INSTANCE_UID, StorageCommitment
from node.errors import PeerRefused, PeerUnavailable
from node.scu import Address, associate_as_scp, send_event_report
from node.settings import Peer

log = logging.getLogger(__name__)

_ROUND_S = 1.0


class Reporter:
    """Sends what is due, one association per peer and round.

    Parameters
    ----------
    ae_title
        By which we call.
    """

    def __init__(self, commitment: StorageCommitment, peers: Sequence[Peer], ae_title: str) -> None:
        self._commitment = commitment
        self._peers = peers
        self._ae_title = ae_title

    def tick(self, now: float) -> float:
        """Do one round; return the seconds until the next."""
        due = sorted(self._commitment.due(now), key=lambda found: (found.calling_ae, found.peer, found.number))
        for (calling_ae, peer), group in groupby(due, key=lambda found: (found.calling_ae, found.peer)):
            address = self._address(calling_ae, peer)
            if address is not None:
                self._report(address, [found.number for found in group])
                continue
            name = re.sub("[^a-z0-9_.-]", "_", calling_ae.lower()) or "peer"
            for found in group:
                self._commitment.postpone(
                    found.number,
                    f"it is not known where {calling_ae} listens, and its association is closed",
                    f'add to the settings: [[peers]] name = "{name}", ae_title = {json.dumps(calling_ae)}, '
                    f'host = "{peer}", port = 104 (as it is set up there), and restart',
                )
        return _ROUND_S

    def _address(self, calling_ae: str, peer: str) -> Address | None:
        """Return where the peer of that AE title, which called from the address `peer`, listens itself."""
        for known in self._peers:
            if known.ae_title.strip() == calling_ae and known.host and _may_come(known, peer):
                return Address(known.ae_title, known.host, known.port, self._ae_title)
        return None

    def _report(self, address: Address, numbers: Sequence[int]) -> None:
        waiting = list(numbers)
        try:
            with associate_as_scp(address, SOP_CLASS_UID, self._commitment.rules.timeout_s) as association:
                for number in numbers:
                    report = self._commitment.report(number)
                    if report is not None:
                        status = send_event_report(
                            association, SOP_CLASS_UID, SOP_INSTANCE_UID, report.event_type, report.data_set()
                        )
                        self._commitment.settle(number, report, status, f"to {address}")
                    waiting.remove(number)
        except (PeerRefused, PeerUnavailable) as error:
            for number in waiting:
                self._commitment.postpone(number, error.reason, error.next_step)


def _may_come(peer: Peer, address: str) -> bool:
    if not peer.networks:
        return True
    try:
        return any(ipaddress.ip_address(address) in network for network in peer.networks)
    except ValueError:  # no address: it came over something else than a network
        return False
