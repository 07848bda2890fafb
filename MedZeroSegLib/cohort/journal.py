"""The journal of a cohort: SQLite in the results' folder, written by the coordinating process alone.

It keeps SQLite's rollback journal: the write-ahead log needs memory that all readers share, which network file systems
don't have. A second database beside it is held locked during a run; the system frees the lock however the run ends."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from MedZeroSegLib.errors import InputError, InstallationError

if TYPE_CHECKING:
    from MedZeroSegLib.cohort.case import Case
    from MedZeroSegLib.cohort.case_record import CaseRecord
    from MedZeroSegLib.cohort.settings import CaseMarks

FILE, LOCK_FILE = "journal.sqlite", ".running.sqlite"
BUSY_S = 30.0  # how long a reader or the writer waits for the other
LOCK_S = 1.0  # somebody may just be asking whether the folder is held

Status = Literal["waiting", "running", "done", "failed"]

TABLES = """
CREATE TABLE IF NOT EXISTS cases (
    name TEXT PRIMARY KEY,
    image TEXT NOT NULL,
    status TEXT NOT NULL,
    sentence TEXT NOT NULL DEFAULT '',  -- why it failed, or why it waits
    attempts INTEGER NOT NULL DEFAULT 0,
    seconds REAL,
    run INTEGER,                        -- the run that it was finished in
    signature TEXT,                     -- sizes and times of the image's files
    image_sha256 TEXT,
    settings TEXT,
    weights TEXT,
    record TEXT                         -- JSON of CaseRecord
);
CREATE INDEX IF NOT EXISTS cases_by_status ON cases (status, name);
CREATE TABLE IF NOT EXISTS outputs (
    name TEXT NOT NULL, file TEXT NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL, PRIMARY KEY (name, file)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (
    run INTEGER PRIMARY KEY, started REAL NOT NULL, latest REAL NOT NULL, finished INTEGER NOT NULL DEFAULT 0,
    workers INTEGER NOT NULL, threads INTEGER NOT NULL, settings TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class Entry:
    """What the journal says of a case."""

    name: str
    image: str
    status: Status
    sentence: str
    attempts: int
    seconds: float | None
    signature: str | None
    image_sha256: str | None
    settings: str | None
    weights: str | None


class Journal:
    """The open journal of a results' folder.

    Parameters
    ----------
    folder
        Where it lies.
    make
        Whether to make it where there is none.

    Raises
    ------
    InputError
        When there is none and none is to be made.
    InstallationError
        When it can't be opened or written.
    """

    def __init__(self, folder: Path, make: bool = False) -> None:
        self.file = folder / FILE
        if not make and not self.file.is_file():
            raise InputError(f"'{folder}' holds no journal of a cohort; give the folder named with --output.")
        with self._telling():
            self._database = sqlite3.connect(self.file, timeout=BUSY_S, isolation_level=None)
            if make:
                self._database.executescript(TABLES)
            self._database.execute("SELECT 1 FROM cases LIMIT 1").fetchall()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    # Written during a run

    def start_run(self, workers: int, threads: int, settings: Mapping[str, Any]) -> int:
        """Number of a new run. Cases that an earlier run left in the middle wait again."""
        now = time.time()
        with self._transaction() as database:
            database.execute("UPDATE cases SET status = 'waiting' WHERE status = 'running'")
            return int(
                database.execute(
                    "INSERT INTO runs (started, latest, workers, threads, settings) VALUES (?, ?, ?, ?, ?)",
                    (now, now, workers, threads, json.dumps(settings, default=str)),
                ).lastrowid
                or 0
            )

    def await_turns(self, cases: Iterable[tuple[Case, str]]) -> None:
        """Note cases that are to be computed, each with the reason; what was known of their results is forgotten."""
        with self._transaction() as database:
            for case, reason in cases:
                database.execute("DELETE FROM outputs WHERE name = ?", (case.name,))
                database.execute(
                    "INSERT INTO cases (name, image, status, sentence) VALUES (?, ?, 'waiting', ?) ON CONFLICT (name) "
                    "DO UPDATE SET image = excluded.image, status = 'waiting', sentence = excluded.sentence, "
                    "seconds = NULL, run = NULL, record = NULL",
                    (case.name, str(case.image), reason),
                )

    def begin(self, name: str) -> int:
        """Note that a case is handed to a worker, and return the number of this attempt, over all runs."""
        with self._transaction() as database:
            database.execute("UPDATE cases SET status = 'running', attempts = attempts + 1 WHERE name = ?", (name,))
            return int(database.execute("SELECT attempts FROM cases WHERE name = ?", (name,)).fetchone()[0])

    def finish(self, answer: Mapping[str, Any], run: int) -> None:
        """Note a case that is done and whose files lie in their place; ``answer`` as `work.run_case` gives it."""
        from MedZeroSegLib.cohort.case_record import CaseRecord

        record = CaseRecord.from_json(answer["record"])
        with self._transaction() as database:
            database.execute(
                "UPDATE cases SET status = 'done', sentence = '', seconds = ?, run = ?, signature = ?, "
                "image_sha256 = ?, settings = ?, weights = ?, record = ? WHERE name = ?",
                (record.seconds, run, answer["signature"], answer["image_sha256"], answer["settings"],
                 answer["weights"], _json(record), record.case),
            )  # fmt: skip
            database.execute("DELETE FROM outputs WHERE name = ?", (record.case,))
            database.executemany(
                "INSERT INTO outputs VALUES (?, ?, ?, ?)",
                [(record.case, file, sha256, size) for file, (sha256, size) in answer["outputs"].items()],
            )
            self._count(run)

    def fail(self, record: CaseRecord, signature: str, marks: CaseMarks, run: int) -> None:
        """Note a case that failed, with its sentence."""
        with self._transaction() as database:
            database.execute(
                "UPDATE cases SET status = 'failed', sentence = ?, seconds = ?, run = ?, signature = ?, "
                "image_sha256 = NULL, settings = ?, weights = ?, record = ? WHERE name = ?",
                (record.sentence, record.seconds, run, signature, marks.settings, marks.weights, _json(record),
                 record.case),
            )  # fmt: skip
            self._count(run)

    def touch(self, entries: Iterable[tuple[CaseRecord, str]]) -> None:
        """Note new columns of the table, a new place and a new signature of images whose content is the same."""
        with self._transaction() as database:
            database.executemany(
                "UPDATE cases SET image = ?, record = ?, signature = ? WHERE name = ?",
                [(record.image, _json(record), signature, record.case) for record, signature in entries],
            )

    def put(self, record: CaseRecord) -> None:
        """Note the record of masks that a person changed."""
        with self._transaction() as database:
            database.execute("UPDATE cases SET record = ? WHERE name = ?", (_json(record), record.case))

    def _count(self, run: int) -> None:
        self._database.execute("UPDATE runs SET latest = ?, finished = finished + 1 WHERE run = ?", (time.time(), run))

    # Read at any time

    def entries(self) -> dict[str, Entry]:
        """All cases by name."""
        columns = "name, image, status, sentence, attempts, seconds, signature, image_sha256, settings, weights"
        with self._telling():
            return {row[0]: Entry(*row) for row in self._database.execute(f"SELECT {columns} FROM cases")}

    def outputs(self) -> dict[str, dict[str, tuple[str, int]]]:
        """For each case that is done its files, with SHA-256 and size."""
        listed: dict[str, dict[str, tuple[str, int]]] = {}
        with self._telling():
            for name, file, sha256, size in self._database.execute("SELECT name, file, sha256, size FROM outputs"):
                listed.setdefault(name, {})[file] = (sha256, size)
        return listed

    def records(self) -> Iterator[CaseRecord]:
        """The records of all cases that are done or failed, in the order of their names."""
        from MedZeroSegLib.cohort.case_record import CaseRecord

        with self._telling():
            rows = self._database.execute(
                "SELECT record FROM cases WHERE status IN ('done', 'failed') AND record IS NOT NULL ORDER BY name"
            )
            for (record,) in rows:
                yield CaseRecord.from_json(json.loads(record))

    def counts(self) -> dict[str, int]:
        """Number of cases by status."""
        with self._telling():
            return dict(self._database.execute("SELECT status, count(*) FROM cases GROUP BY status").fetchall())

    def failures(self, most: int) -> list[tuple[str, str]]:
        """Names and sentences of failed cases."""
        query = "SELECT name, sentence FROM cases WHERE status = 'failed' ORDER BY name LIMIT ?"
        with self._telling():
            return self._database.execute(query, (most,)).fetchall()

    def seconds_a_case(self) -> float | None:
        """Wall-clock seconds from one finished case to the next in the latest run; None until one was finished."""
        query = "SELECT latest - started, finished FROM runs ORDER BY run DESC LIMIT 1"
        with self._telling():
            row = self._database.execute(query).fetchone()
        return row[0] / row[1] if row and row[1] else None

    def mean_seconds(self) -> float | None:
        """Mean seconds that a worker took for a case that is done; None without one."""
        with self._telling():
            row = self._database.execute("SELECT avg(seconds) FROM cases WHERE status = 'done'").fetchone()
        return row[0]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._telling():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                with suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as problem:
            raise InstallationError(
                f"The journal '{self.file}' can't be used ({problem}); see that its folder has room and may be written "
                "to, or give another output folder."
            ) from problem


def is_running(folder: Path) -> bool:
    """Whether a run holds the folder at this moment."""
    if not (folder / LOCK_FILE).is_file():
        return False
    with closing(sqlite3.connect(folder / LOCK_FILE, timeout=0)) as lock:
        try:
            lock.execute("SELECT count(*) FROM sqlite_master").fetchall()
        except sqlite3.OperationalError as problem:
            return "locked" in str(problem)
    return False


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder for this run alone.

    Raises
    ------
    InputError
        When another run works on it.
    InstallationError
        When the folder can't be written to.
    """
    with closing(sqlite3.connect(folder / LOCK_FILE, timeout=LOCK_S, isolation_level=None)) as lock:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as problem:
            if "locked" in str(problem):
                raise InputError(f"Another run is working on '{folder}'; wait until it ends, or stop it.") from problem
            raise InstallationError(
                f"'{folder}' can't be written to ({problem}); give another output folder."
            ) from problem
        yield


def _json(record: CaseRecord) -> str:
    return json.dumps(record.to_json(), ensure_ascii=False)
