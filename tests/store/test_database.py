"""The database's file: who may read it, who waits for whom, and what is said when it cannot be used."""

import asyncio
import os
import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from interpreter.errors import DiskFull, HostError
from interpreter.store.database import Database, open_database

BESIDE = ("", "-wal", "-shm")


def modes(path: Path) -> list[int]:
    return [stat.S_IMODE(path.with_name(path.name + ending).stat().st_mode) for ending in BESIDE]


async def test_its_files_are_the_services_alone_from_the_first_moment(database_path: Path) -> None:
    before = os.umask(0)
    try:
        async with open_database(database_path) as database:
            await database.run(lambda connection: connection.execute("CREATE TABLE x (y)"))
            assert modes(database_path) == [0o600] * 3
    finally:
        os.umask(before)


async def test_files_that_others_could_read_are_closed_to_them(database_path: Path) -> None:
    database_path.parent.mkdir()
    killed = sqlite3.connect(database_path)
    killed.execute("PRAGMA journal_mode = WAL")
    killed.execute("CREATE TABLE x (y)")
    killed.commit()
    for ending in BESIDE:
        database_path.with_name(database_path.name + ending).chmod(0o644)
    async with open_database(database_path):
        assert modes(database_path) == [0o600] * 3
    killed.close()


async def test_who_reads_for_long_holds_up_neither_writers_nor_other_readers(database: Database) -> None:
    reads, may_end = threading.Event(), threading.Event()

    def slow(connection: sqlite3.Connection) -> int:
        (count,) = connection.execute("SELECT count(*) FROM sessions").fetchone()
        reads.set()
        assert may_end.wait(60)
        # One state throughout, whatever was written meanwhile.
        assert connection.execute("SELECT count(*) FROM sessions").fetchone()[0] == count
        return count

    reading = asyncio.create_task(database.read(slow))
    await asyncio.to_thread(reads.wait, 60)
    await database.run(
        lambda connection: connection.execute(
            "INSERT INTO sessions (id, tenant, template, state, created_at, record) VALUES ('s', 't', 'b', 'x', 1, '')"
        )
    )
    assert await database.read(lambda connection: connection.execute("SELECT id FROM sessions").fetchone()[0]) == "s"
    assert not reading.done()
    may_end.set()
    assert await reading == 0


async def test_a_reader_cannot_write(database: Database) -> None:
    with pytest.raises(HostError, match="readonly"):
        await database.read(lambda connection: connection.execute("DELETE FROM sessions"))


async def test_what_was_handed_in_is_written_though_nobody_waits_for_it(database_path: Path) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def write(connection: sqlite3.Connection) -> None:
        begun.set()
        assert may_go_on.wait(60)
        connection.execute("CREATE TABLE late (x)")

    async with open_database(database_path) as database:
        writing = asyncio.create_task(database.run(write))
        await asyncio.to_thread(begun.wait, 60)
        writing.cancel()
        may_go_on.set()
    async with open_database(database_path) as database:
        await database.read(lambda connection: connection.execute("SELECT * FROM late").fetchall())


async def test_a_read_that_is_under_way_at_the_end_is_finished_first(database_path: Path) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def read(connection: sqlite3.Connection) -> int:
        begun.set()
        assert may_go_on.wait(60)
        return connection.execute("SELECT count(*) FROM sessions").fetchone()[0]

    async with open_database(database_path) as database:
        reading = asyncio.create_task(database.read(read))
        await asyncio.to_thread(begun.wait, 60)
        # The end of the block waits; by then it has begun.
        threading.Timer(0.2, may_go_on.set).start()
    assert await reading == 0


async def test_a_full_disk_is_told_and_the_next_change_works(database: Database) -> None:
    def fill(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO big VALUES (zeroblob(4000000))")

    await database.run(lambda connection: connection.execute("CREATE TABLE big (x)"))
    pages = await database.run(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
    await database.run(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages + 10}").fetchall())
    with pytest.raises(DiskFull, match="INTERPRETER_HOME"):
        await database.run(fill)
    await database.run(lambda connection: connection.execute("INSERT INTO big VALUES (1)"))
    assert await database.read(lambda connection: connection.execute("SELECT x FROM big").fetchone()[0]) == 1


async def test_a_damaged_file_is_told_with_what_to_do(database_path: Path) -> None:
    async with open_database(database_path) as database:
        await database.run(lambda connection: connection.execute("CREATE TABLE big AS SELECT zeroblob(200000) AS x"))
    content = bytearray(database_path.read_bytes())
    # Everything but the first pages, which hold the schema.
    content[8 * 4096 :] = b"\xff" * (len(content) - 8 * 4096)
    database_path.write_bytes(content)
    async with open_database(database_path) as database:
        for ask in (database.read, database.run):
            with pytest.raises(HostError, match=r"is damaged.*put a backup"):
                await ask(lambda connection: connection.execute("SELECT * FROM big").fetchall())
