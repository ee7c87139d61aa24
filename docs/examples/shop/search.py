"""A full-text index of the titles of pictures, in a file of its own."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path


class SearchIndex:
    """Finds pictures by the words of their titles. Its methods block, so plain functions call them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with closing(self._connect()) as connection:
            connection.execute("create virtual table if not exists pictures using fts5(title, image_id unindexed)")

    def add(self, image_id: str, title: str) -> None:
        """Add the title of a picture."""
        with closing(self._connect()) as connection, connection:
            connection.execute("insert into pictures (title, image_id) values (?, ?)", (title, image_id))

    def rebuild(self, titles: list[tuple[str, str]]) -> None:
        """Replace the whole index by these ids and titles."""
        with closing(self._connect()) as connection, connection:
            connection.execute("delete from pictures")
            connection.executemany("insert into pictures (image_id, title) values (?, ?)", titles)

    def find(self, words: str) -> list[str]:
        """Return the ids of the pictures that have all of the words in their title, best first."""
        query = " ".join(f'"{word}"' for word in words.replace('"', " ").split())
        if not query:
            return []
        with closing(self._connect()) as connection:
            found = connection.execute("select image_id from pictures where pictures match ? order by rank", (query,))
            return [image_id for (image_id,) in found]

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path)
