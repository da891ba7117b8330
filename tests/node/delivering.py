"""A courier on a real ledger and spool that brings results of any form to destinations."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from node.delivery import Carrier, Courier, carriers, ladders
from node.forms import SOP_CLASSES, Recipe, demanded
from node.ledger import Ledger
from node.records import Result
from node.settings import Delivery, Destination, Settings
from node.spool import Spool
from node.states import DeliveryState
from tests.node.making import SERIES, T0, claim, sealed
from tests.node.results import result

RULES = Delivery(timeout_s=5, backoff_first_s=5, backoff_max_s=60, max_refusals=2)


class Couriers:
    """A courier, its clock, and jobs whose results are real files in the spool."""

    def __init__(self, ledger: Ledger, spool: Spool, *destinations: Destination, rules: Delivery = RULES) -> None:
        self.ledger, self.spool, self.now, self.destinations = ledger, spool, T0 + 100, destinations
        settings = Settings(destinations=destinations)
        self.peers: dict[str, Carrier] = carriers(settings)
        self.ladders: Mapping[str, Sequence[Sequence[str]]] = ladders(settings)
        self.courier = Courier(ledger, spool, self.peers, rules, clock=lambda: self.now, ladders=self.ladders)

    def segmented(self, series: str = SERIES, **contents: bytes) -> str:
        """A job with one result of each form that the destinations get; their UIDs are ``2.25.7.N``, by `uids`."""
        job = sealed(self.ledger, series)
        held = claim(self.ledger, job)
        results = []
        for key, sop in self.uids(series).items():
            of = self.uids(series).get(Recipe.parse(key).of, "")
            source = self.spool.scratch() / "a.dcm"
            source.write_bytes(contents.get(key) or result(key, sop, series=series, of=of))
            digest = hashlib.sha256(source.read_bytes()).hexdigest()
            size = source.stat().st_size
            path = self.spool.store_result(job, held.fence, sop, digest, source)
            results.append(Result(sop, SOP_CLASSES[Recipe.parse(key).form], job, path, size, digest, key))
        first = {name: ladder[0] for name, ladder in self.ladders.items()}
        self.ledger.finish(job, held.fence, results, first, model="m", note="n", now=T0)
        return job

    def uids(self, series: str = SERIES) -> dict[str, str]:
        """The SOP Instance UID of each form."""
        of_series = series.rpartition(".")[2]
        return {r.key: f"2.25.7{of_series}.{n}" for n, r in enumerate(demanded(self.destinations))}

    def tick(self, seconds: float = 0.0) -> None:
        """Let time pass, and do one round."""
        self.now += seconds
        self.courier.tick(self.now)

    def rows(self, job: str) -> list[tuple[str, DeliveryState]]:
        """Form and state of each delivery."""
        return [(d.form, d.state) for d in self.ledger.deliveries(job)]
