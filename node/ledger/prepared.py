"""Statements for where thousands run each minute: compiled once, then given to the driver's own cursor.

SQLAlchemy takes several times longer to prepare such a statement than SQLite to run it. What it compiles is used as it
is, and its errors are raised, so that nothing else of the ledger knows the difference.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Dialect, Executable
from sqlalchemy.exc import DBAPIError
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
        text, order = self._compiled.get(connection.dialect.name) or self._compile(connection.dialect)
        cursor = connection.connection.cursor()
        try:
            for values in many:
                cursor.execute(text, values if order is None else tuple(values[name] for name in order))
            return list(cursor.fetchall()) if cursor.description else []
        except connection.dialect.loaded_dbapi.Error as error:
            raise DBAPIError.instance(
                text, None, error, connection.dialect.loaded_dbapi.Error, hide_parameters=True,
                dialect=connection.dialect,
            ) from error  # fmt: skip
        finally:
            cursor.close()

    def _compile(self, dialect: Dialect) -> tuple[str, tuple[str, ...] | None]:
        assert isinstance(self._statement, ClauseElement)
        compiled: Any = self._statement.compile(dialect=dialect)
        order = tuple(compiled.positiontup) if compiled.positional else None
        self._compiled[dialect.name] = (str(compiled), order)
        return self._compiled[dialect.name]
