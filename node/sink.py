"""A small storage SCP that keeps what it is sent: the demo's PACS, and a first stop when trying a node out."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

from pynetdicom import AE, evt
from pynetdicom import _config as pynetdicom_config
from pynetdicom.events import Event

from node.errors import ConfigurationError
from node.records import is_uid
from node.statuses import INVALID_SOP_INSTANCE, OUT_OF_RESOURCES, SUCCESS
from node.storage_classes import STORAGE_CLASSES, TRANSFER_SYNTAXES

# Nobody reads what pynetdicom would log of each message, and for that it decodes data sets.
pynetdicom_config.LOG_HANDLER_LEVEL = "none"


def serve(folder: Path, port: int, ae_title: str, ready: Callable[[int], None]) -> None:
    """Store objects as ``<SOP Instance UID>.dcm`` below `folder` until SIGTERM or SIGINT.

    Raises
    ------
    ConfigurationError
        The folder cannot be made or the port is taken.
    """

    def store(event: Event) -> int:
        sop_uid = str(event.request.AffectedSOPInstanceUID or "")
        if not is_uid(sop_uid):
            return INVALID_SOP_INSTANCE
        partial = folder / f"{sop_uid}.part"
        try:
            partial.write_bytes(event.encoded_dataset())
            partial.replace(folder / f"{sop_uid}.dcm")
        except OSError:
            return OUT_OF_RESOURCES
        return SUCCESS

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ae = AE(ae_title=ae_title)
    for sop_class in STORAGE_CLASSES:
        ae.add_supported_context(sop_class, TRANSFER_SYNTAXES)
    ae.add_supported_context("1.2.840.10008.1.1")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    except OSError as error:
        raise ConfigurationError(
            f"the sink cannot start ({error.strerror})", "check the folder and the port"
        ) from error
    if server is not None:
        ready(server.socket.getsockname()[1])
    stop.wait()
    ae.shutdown()
