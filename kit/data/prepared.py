"""Statements of frequent calls: built by SQLAlchemy once and sent by psycopg itself.

SQLAlchemy takes longer to send a statement and to read its rows than Postgres takes to answer. A prepared statement takes part in
the transaction that it is given, like all others, has the columns' types and raises the same errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast

import psycopg
from sqlalchemy import JSON, ClauseElement
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.sql.compiler import SQLCompiler

from .connections import Transaction

Row = Mapping[str, Any]
"""A row by the names of its columns."""


class Prepared:
    """A statement with parameters."""

    def __init__(self, statement: ClauseElement, *, columns: Sequence[str] | None = None) -> None:
        """`columns` names those of an INSERT whose values come with each execution."""
        dialect = PGDialect_psycopg()  # type: ignore[no-untyped-call]
        compiled = cast("SQLCompiler", statement.compile(dialect=dialect, column_keys=columns))
        self._given = frozenset(name for name, bound in compiled.binds.items() if bound.required)
        # Expanded, as the list of an IN is written out.
        expanded = compiled.construct_expanded_state(dict.fromkeys(self._given))
        convert = {name: each for name, each in expanded.processors.items() if callable(each)}
        self._sql = expanded.statement
        self._fixed = {
            name: convert[name](value) if name in convert else value
            for name, value in expanded.parameters.items()
            if name not in self._given
        }
        self._write = {name: each for name, each in convert.items() if name in self._given}
        results = [(column.keyname, column.type.dialect_impl(dialect)) for column in compiled._result_columns]
        if any(
            isinstance(kind, JSON)
            for kind in (*(each.type for each in compiled.binds.values()), *dict(results).values())
        ):
            raise ValueError(
                "JSON is read and written by a codec that each connection of SQLAlchemy has; send it by SQLAlchemy"
            )
        self._names = tuple(name for name, _ in results)
        if len(set(self._names)) < len(self._names):
            raise ValueError(f"two columns of one name: {', '.join(self._names)}")
        self._read = tuple((name, each) for name, kind in results if (each := kind.result_processor(dialect, None)))

    async def execute(self, tx: Transaction, values: Mapping[str, Any]) -> Sequence[Row]:
        """Sends it in the transaction and returns its rows. Raises DatabaseError, and TypeError for other values than it takes."""
        if values.keys() != self._given:
            raise TypeError(f"the statement takes {sorted(self._given)}, not {sorted(values)}")
        parameters = {**self._fixed, **values}
        for name, convert in self._write.items():
            parameters[name] = convert(parameters[name])
        try:
            cursor = await tx.driver.execute(self._sql, parameters)
            rows = [dict(zip(self._names, row, strict=True)) for row in await cursor.fetchall()] if self._names else []
        except asyncio.CancelledError:
            # Like SQLAlchemy: nobody knows what became of the statement.
            await tx.invalidate()
            raise
        except psycopg.Error as error:
            if tx.driver.closed:
                await tx.invalidate(error)
            raise tx.error(error, self._sql) from error
        for name, read in self._read:
            for row in rows:
                row[name] = read(row[name])
        return rows

    async def one_or_none(self, tx: Transaction, values: Mapping[str, Any]) -> Row | None:
        """The only row, if there is one. Raises like `execute`."""
        rows = await self.execute(tx, values)
        if len(rows) > 1:
            raise ValueError(f"{len(rows)} rows where there is one at most")
        return rows[0] if rows else None
