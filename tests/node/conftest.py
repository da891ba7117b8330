"""The ledger on both databases, the spool, and a door that listens."""

from __future__ import annotations

import gc
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from node.ledger import Ledger
from node.ledger.schema import metadata
from node.listener import Door
from node.settings import Listener, Peer
from node.spool import Spool
from tests import peers


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """pynetdicom leaves sockets to the garbage collector, whose word on them belongs to no test that comes later."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def empty_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite ledger without rows, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "ledger.sqlite3"
    ledger = Ledger(f"sqlite:///{path}")
    ledger.migrate()
    ledger.close()
    return path


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an empty PostgreSQL database."""
    with peers.postgresql_server(tmp_path_factory.mktemp("postgresql")) as url:
        yield url


@pytest.fixture(scope="session")
def migrated_postgresql(postgresql: str) -> str:
    """The URL of a migrated PostgreSQL ledger."""
    ledger = Ledger(postgresql)
    ledger.migrate()
    ledger.close()
    return postgresql


@pytest.fixture
def sqlite_url(tmp_path: Path, empty_sqlite: Path) -> str:
    shutil.copy(empty_sqlite, tmp_path / "ledger.sqlite3")
    return f"sqlite:///{tmp_path / 'ledger.sqlite3'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def any_ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """A ledger without rows, on each database."""
    if request.param == "sqlite":
        ledger = Ledger(request.getfixturevalue("sqlite_url"))
    else:
        url = request.getfixturevalue("migrated_postgresql")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY")
        ledger = Ledger(url)
    yield ledger
    ledger.close()


@pytest.fixture
def ledger(sqlite_url: str) -> Iterator[Ledger]:
    """A ledger without rows, on SQLite."""
    ledger = Ledger(sqlite_url)
    yield ledger
    ledger.close()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    return spool


@pytest.fixture(params=["fast", "stock"])
def way(request: pytest.FixtureRequest) -> dict[str, bool]:
    """The settings that choose one of the listener's two paths; what asks for this runs on both."""
    return {"fast_path": request.param == "fast"}


@pytest.fixture(scope="session")
def closing() -> Iterator[ThreadPoolExecutor]:
    """Closes servers while the next test runs: they take up to half a second to notice."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def open_door(ledger: Ledger, spool: Spool, closing: ThreadPoolExecutor) -> Iterator[Callable[..., tuple[Door, int]]]:
    """Opens doors on free ports; they close with the test."""
    doors: list[Door] = []

    def make(*, peers: Sequence[Peer] = (), **values: object) -> tuple[Door, int]:
        settings = Listener(**{"port": 0, "free_floor_mb": 0, "network_timeout_s": 5.0, **values})  # type: ignore[arg-type]
        door = Door(ledger, spool, settings, changed=lambda: None, peers=peers)
        doors.append(door)
        return door, door.start()[1]

    yield make
    for door in doors:
        closing.submit(door.stop)
