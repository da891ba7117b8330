"""Statements for where thousands run each minute: compiled once, then given to the driver's own cursor.

SQLAlchemy takes several times longer to prepare such a statement than SQLite to run it. What it compiles is used as it
is, and its errors are raised, so that nothing else of the ledger knows the difference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, Executable
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.sql.elements import ClauseElement


class Prepared:
    """One statement with named parameters. Values are numbers and text: no type of SQLAlchemy's is applied."""

    def __init__(self, statement: Executable) -> None:
        self._statement = statement
        self._compiled: dict[str, tuple[str, tuple[str, ...] | None]] = {}

    def run(self, connection: Connection, *many: dict[str, Any]) -> list[Any]:
        """Run it once for each of `many` within the connection's transaction; return the rows of the last.

        Raises
        ------
        sqlalchemy.exc.DBAPIError
            The one that SQLAlchemy itself would raise.
        """
        cursor = connection.connection.cursor()
        try:
            return self.run_on(cursor, connection.dialect, *many)
        except connection.dialect.loaded_dbapi.Error as error:
            text, _ = self._compiled[connection.dialect.name]
            raise DBAPIError.instance(
                text, None, error, connection.dialect.loaded_dbapi.Error, hide_parameters=True,
                dialect=connection.dialect,
            ) from error  # fmt: skip
        finally:
            cursor.close()

    def run_on(self, cursor: Any, dialect: Dialect, *many: dict[str, Any]) -> list[Any]:
        """Do the same with a cursor of the driver, whose errors are raised as they are."""
        text, order = self._compiled.get(dialect.name) or self._compile(dialect)
        for values in many:
            cursor.execute(text, values if order is None else [values[name] for name in order])
        return list(cursor.fetchall()) if cursor.description else []

    def _compile(self, dialect: Dialect) -> tuple[str, tuple[str, ...] | None]:
        assert isinstance(self._statement, ClauseElement)
        compiled: Any = self._statement.compile(dialect=dialect)
        order = tuple(compiled.positiontup) if compiled.positional else None
        self._compiled[dialect.name] = (str(compiled), order)
        return self._compiled[dialect.name]


class Unsettled(Exception):
    """Raised when a transaction of a `Lane` did not go as meant; it may or may not have been committed."""


class Lane:
    """One connection of the driver's, kept open for the transaction that every image needs.

    To take one from the pool, begin and give it back costs as much as the statements. As a context it is one
    transaction, committed at the end and rolled back on any exception, for one thread at a time and for what succeeds
    as a rule: for any error of the driver it raises `Unsettled`, and the caller goes the long way.
    """

    def __init__(self, engine: Engine, begin: str, opened: Callable[[Any], None]) -> None:
        self._engine = engine
        self._begin = begin
        self._opened = opened  # called with the cursor of each new connection
        self._errors = (engine.dialect.loaded_dbapi.Error, SQLAlchemyError)
        self._connection: Any = None
        self._cursor: Any = None

    def __enter__(self) -> Lane:
        """Begin a transaction."""
        try:
            if self._connection is None:
                self._connection = self._engine.raw_connection()
                self._cursor = self._connection.cursor()
                self._opened(self._cursor)
            if self._begin:
                self._cursor.execute(self._begin)
        except self._errors as error:
            self._roll_back()
            raise Unsettled from error
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Commit, or roll back."""
        if error is None:
            try:
                self._connection.commit()
            except self._errors as failure:
                error = failure
        if error is not None:
            self._roll_back()
            if isinstance(error, self._errors):
                raise Unsettled from error

    def run(self, statement: Prepared, *many: dict[str, Any]) -> list[Any]:
        """Run `statement` once for each of `many`; return the rows of the last."""
        return statement.run_on(self._cursor, self._engine.dialect, *many)

    def close(self) -> None:
        """Close the connection; what is open in it is rolled back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.invalidate()

    def _roll_back(self) -> None:
        try:
            if self._connection is not None:
                self._connection.rollback()
        except Exception:  # noqa: BLE001 - whatever it is: the next transaction begins with another connection
            self.close()
