"""Rows as parameters of a statement: each column is one array, so that a statement built once serves any number of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import BindParameter, Column, FromClause, bindparam, func
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import TypeEngine


class GivenRows:
    """`rows` is what statements select from; `values` makes their parameters."""

    def __init__(self, name: str, **columns: type[TypeEngine[Any]] | TypeEngine[Any]) -> None:
        """The columns with their types. Parameters are named after both, so that a statement may be given several sorts of rows."""
        self._parameters = {column: f"{name}_{column}" for column in columns}
        self._arrays = {
            column: bindparam(self._parameters[column], type_=ARRAY(kind)) for column, kind in columns.items()
        }
        table = func.unnest(*self._arrays.values()).table_valued(
            *(Column(column, kind) for column, kind in columns.items())
        )
        self.rows: FromClause = table.render_derived(name=name)

    def parameter(self, column: str) -> BindParameter[Any]:
        """The column as one array, for a function that takes such."""
        return self._arrays[column]

    def values(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """The parameters that give these rows to a statement. Other keys of theirs are passed over."""
        listed = list(rows)
        return {parameter: [row[column] for row in listed] for column, parameter in self._parameters.items()}
