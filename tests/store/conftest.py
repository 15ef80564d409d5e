"""What the tests of the store share: an empty database, and records with what they do not care about filled in."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from interpreter.store.database import Database, open_database
from interpreter.store.store import Store


@pytest.fixture
def database_path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "service.sqlite"


@pytest.fixture
async def database(database_path: Path) -> AsyncGenerator[Database]:
    async with open_database(database_path) as database:
        yield database


@pytest.fixture
def store(database: Database) -> Store:
    return Store(database)
