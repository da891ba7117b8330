"""A door on its own, as a process that tests may kill: prints its port and listens for ever.

``python -m tests.node.listening_child FOLDER [SETTINGS]``, the settings of the listener as JSON. SIGUSR1 closes the
files that are kept ready for objects to come.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from node.ledger import Ledger
from node.listener import Door
from node.settings import Listener
from node.spool import Spool


def main(folder: Path, files: int = 0, **settings: Any) -> None:
    """Listen; state below `folder`, whose ledger is migrated. `files`: how many this process may open; 0: as given."""
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    spool = Spool(folder / "spool")
    spool.prepare()
    ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite3'}")
    door = Door(ledger, spool, Listener(**{"port": 0, "free_floor_mb": 0, **settings}), changed=lambda: None)
    signal.signal(signal.SIGUSR1, lambda *_: spool.unnamed.close_spares())
    port = door.start()[1]
    if files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    print(port, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), **json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}"))
