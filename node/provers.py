"""Who asks each configured destination whether it holds what it took."""

from __future__ import annotations

from collections.abc import Callable

from node.delivery import addresses
from node.ledger import Ledger
from node.operation import Operation, Outcome
from node.proof import Prover, dicom_destination, web_destination
from node.settings import Settings
from node.spool import Spool
from node.webservice import WebService


def provers(
    settings: Settings, ledger: Ledger, spool: Spool, report: Callable[[Operation], Outcome]
) -> dict[str, Prover]:
    """Return a prover for each destination by its name; `report` takes storage commitment reports.

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
            asked = dicom_destination(one.name, one.proof, reached[one.name], timeout_s, report)
        found[one.name] = Prover(ledger, spool, asked, settings.delivery)
    return found
