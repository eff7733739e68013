"""The word indexes: external-content tables of FTS5, told of each row that comes and goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localmem.db import Tx


def insert_fts(tx: Tx, table: str, rowid: int, owner: str, text: str, grams: str | None) -> None:
    tx.execute(f"insert into {table} (rowid, owner, text, grams) values (?, ?, ?, ?)", (rowid, owner, text, grams))


def delete_fts(tx: Tx, table: str, rowid: int, owner: str, text: str, grams: str | None) -> None:
    """An external-content index forgets a row only when told its old columns exactly."""
    tx.execute(
        f"insert into {table} ({table}, rowid, owner, text, grams) values ('delete', ?, ?, ?, ?)",
        (rowid, owner, text, grams),
    )
