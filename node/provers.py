"""Who asks each configured destination whether it holds what it took."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from node.copies import get_copy, have_copy_sent
from node.delivery import addresses
from node.ledger import Ledger
from node.operation import Operation, Outcome
from node.proof import Prover, dicom_destination, web_destination
from node.returns import Returns
from node.settings import Settings
from node.spool import Spool
from node.webservice import WebService


def provers(
    settings: Settings, ledger: Ledger, spool: Spool, report: Callable[[Operation], Outcome], returns: Returns
) -> dict[str, Prover]:
    """Return a prover for each destination by its name; `report` takes storage commitment reports.

    What comes back by C-MOVE arrives at our listener, which gives it to `returns`.

    Raises
    ------
    ConfigurationError
        A token cannot be read.
    """
    reached, timeout_s = addresses(settings), settings.delivery.timeout_s
    found = {}
    for one in settings.destinations:
        if one.url:
            asked = web_destination(one.name, one.proof, WebService.at(one), timeout_s)
        else:
            peer = reached[one.name]
            fetch = (
                partial(have_copy_sent, peer, settings.listener.ae_title, returns, timeout_s)
                if one.retrieve == "move"
                else partial(get_copy, peer, timeout_s)
            )
            asked = dicom_destination(one.name, one.proof, peer, timeout_s, report, fetch)
        found[one.name] = Prover(ledger, spool, asked, settings.delivery)
    return found
