"""The ledger's connection: durable transactions on SQLite or PostgreSQL, and its migrations."""

from __future__ import annotations

import contextlib
import fcntl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    InterfaceError,
    InternalError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)

from node.errors import ConfigurationError, LedgerUnavailable
from node.ledger.prepared import Lane
from node.urls import masked

_WRITE = "pennode_write"
# Any number will do; it must stay the same for ever.
_ADVISORY_LOCK = 7266363
# In bytes: what SQLite lets its log grow to before it writes it back, a thousand pages.
_LOG_LENGTH = 1000 * 4096
# A connection whose other end has gone without a word, in s and ms: without these a C-STORE waits for hours.
_KEEPALIVE = {
    "keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}  # fmt: skip
# What a database raises when it is away or broken; anything else is a fault of ours.
_AWAY = (OperationalError, InterfaceError, InternalError)


class Database:
    """Opens connections; `write` and `read` are one transaction each, and so is `lane`, which `lock` goes with.

    SQLite runs with a write-ahead log and ``synchronous=FULL``: a committed row survives a power cut. It must lie on a
    disk of this host (no network file system). One process writes at a time; the lock saves its threads from
    polling for the database's own.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
            if parsed.drivername == "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            self.is_sqlite = parsed.get_backend_name() == "sqlite"
            if self.is_sqlite and parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            options: dict[str, Any] = {"connect_args": {"timeout": 30}}
            if not self.is_sqlite:
                chosen = {name: value for name, value in _KEEPALIVE.items() if name not in parsed.query}
                options = {"connect_args": {"connect_timeout": 10, **chosen}, "pool_pre_ping": True}
            # Values of a statement are headers: they stay out of error texts.
            self.engine: Engine = create_engine(parsed, hide_parameters=True, **options)
        except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
            raise ConfigurationError(
                f"ledger.url {masked(url)!r} cannot be used: {error}",
                "sqlite:///path or postgresql://user:password@host/database (pip install 'pennode[postgresql]')",
            ) from error
        except OSError as error:
            raise ConfigurationError(
                f"the ledger's folder cannot be made: {error.strerror}", "check state_dir and who owns it"
            ) from error
        # Of `write` on SQLite, and of `lane` always.
        self.lock = threading.Lock()
        begin, opened = ("BEGIN IMMEDIATE", _grow_log) if self.is_sqlite else ("", lambda _cursor: None)
        self.lane = Lane(self.engine, begin, opened)
        self._held: Any = None
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction that may write; committed at the end, rolled back on any exception."""
        with (
            self.lock if self.is_sqlite else contextlib.nullcontext(),
            _translated(),
            self.engine.connect().execution_options(**{_WRITE: True}) as connection,
            connection.begin(),
        ):
            yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """One transaction that only reads."""
        with _translated(), self.engine.connect() as connection, connection.begin():
            yield connection

    def migrate(self) -> None:
        """Bring the tables to this version; an empty database gets them all.

        Raises
        ------
        ConfigurationError
            The ledger was written by a newer pennode.
        """
        # Alembic is imported here: commands that only look never need it.
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent.parent / "migrations"))
        try:
            with self.write() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as error:
            raise ConfigurationError(
                f"the ledger cannot be migrated: {error}", "a newer pennode wrote it: install that version"
            ) from error

    def claim_alone(self) -> None:
        """Make this database ours alone, for as long as the process lives.

        Raises
        ------
        ConfigurationError
            Another node works on it: two would take each other's deliveries.
        """
        database = self.engine.url.database
        if self.is_sqlite and database:
            self._held = lock = Path(f"{database}.lock").open("w")  # noqa: SIM115 - kept open until the process ends
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _taken() from None
        elif not self.is_sqlite:
            with _translated():
                self._held = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                if not self._held.execute(select(func.pg_try_advisory_lock(_ADVISORY_LOCK))).scalar():
                    raise _taken()

    def close(self) -> None:
        """Close all connections."""
        with self.lock:
            self.lane.close()
        self.engine.dispose()


def _taken() -> ConfigurationError:
    return ConfigurationError("another node runs on this ledger", "stop it, or give this one another ledger.url")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if isinstance(error, _AWAY) or type(error) is DatabaseError or error.connection_invalidated:
            raise LedgerUnavailable(
                f"the ledger does not answer ({type(error.orig).__name__})", "check the database and its disk"
            ) from error
        raise
    except SQLAlchemyError as error:
        if "QueuePool limit" in str(error):
            raise LedgerUnavailable("the ledger has no free connection", "try again") from error
        raise


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _grow_log(cursor: Any) -> None:
    """Give SQLite's log its full length at once: what only overwrites is flushed in half the time of what grows a file.

    A transaction that does not fit into the cache goes into the log before its end, and leaves its room there.
    """
    cursor.execute("PRAGMA cache_size=10")
    cursor.execute("BEGIN IMMEDIATE")
    cursor.execute("CREATE TABLE room (filled BLOB)")
    cursor.execute("INSERT INTO room VALUES (zeroblob(?))", (_LOG_LENGTH,))
    cursor.execute("ROLLBACK")
    cursor.execute("PRAGMA cache_size=-2000")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITE)
    # Taking the write lock at once spares the read-then-write deadlock that SQLite answers with an error.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
