"""A STOW-RS port on its own, as a process that tests may kill: prints its URL and serves for ever."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from node.ledger import Ledger
from node.spool import Spool
from tests.node.stowing import served


def main(folder: Path) -> None:
    """Serve; state below `folder`, whose ledger is migrated."""
    spool = Spool(folder / "spool")
    spool.prepare()
    with served(Ledger(f"sqlite:///{folder / 'ledger.sqlite3'}"), spool) as site:
        print(site.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
