"""Stores images for ever and prints each one it has acknowledged: the child that test_spool kills."""

from __future__ import annotations

import hashlib
import itertools
import sys
from pathlib import Path

from node.ledger import Ledger
from node.spool import Spool
from tests.node.making import instance


def content(number: int) -> bytes:
    """The bytes of image `number`."""
    return hashlib.sha256(str(number).encode()).digest() * 1500


def main(folder: Path) -> None:
    """Store, commit, print; as the listener does before it answers 0x0000."""
    spool, ledger = Spool(folder / "spool"), Ledger(f"sqlite:///{folder / 'ledger.sqlite3'}")
    spool.prepare()
    for number in itertools.count():
        data = content(number)
        received = instance(number, f"1.2.{number // 5}", sha256=hashlib.sha256(data).hexdigest())
        path = spool.store_instance(received.series_uid, received.sop_uid, (data[:100], data[100:]))
        ledger.record(instance(number, received.series_uid, sha256=received.sha256, path=path, size=len(data)))
        print(number, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
