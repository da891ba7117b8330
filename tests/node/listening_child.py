"""A door on its own, as a process that tests may kill: prints its port and listens for ever."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from node.ledger import Ledger
from node.listener import Door
from node.settings import Listener
from node.spool import Spool


def main(folder: Path) -> None:
    """Listen; state below `folder`, whose ledger is migrated."""
    spool = Spool(folder / "spool")
    spool.prepare()
    ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite3'}")
    door = Door(ledger, spool, Listener(port=0, free_floor_mb=0), changed=lambda: None)
    print(door.start()[1], flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
