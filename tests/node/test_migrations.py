"""What migrations make of a ledger that an earlier version left, on both databases."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config

import node
from node.ledger import Ledger
from node.states import JobState
from tests.node.making import T0, claim, instance, seal


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'old.sqlite3'}"
    url = request.getfixturevalue("postgresql")
    name = f"old_{tmp_path.name}"[:60].lower().replace("-", "_").replace("[", "_").replace("]", "_")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return f"{url.rpartition('/')[0]}/{name}"


def to(ledger: Ledger, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(node.__file__).parent / "migrations"))
    with ledger._db.write() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def test_results_of_before_are_segmentations_in_the_frame_of_reference_of_their_images(empty: str) -> None:
    ledger = Ledger(empty)
    try:
        to(ledger, "0004")
        header = '{"modality": "MR", "frame_of_reference_uid": "1.2.3.99"}'
        values = {
            "instance": f"('1.2.1', 'c', '1.2', 's', 't', 1, 'd', 1, 'p', 'a', 'b', 'h', 1.0, '{header}', 0)",
            "series": "('1.2', 's', 'SEALED', 1, 'a', 1, 1.0, 1.0, 'r')",
            "job": "('j1', '1.2', 's', 1, 'DELIVERED', '', '', '', 0, 1, 1, 'a', '', 1, '', '', '', 1,"
            " 0, 0, 0, 5, 6, 1, 0)",
            "result": "('j1', '2.25.1', 'c', 'results/1.dcm', 1, 'd')",
            "delivery": "(1, 'j1', '2.25.1', 'pacs', 'results/1.dcm', 'SENT', 1, 0, 0, 'stored', 6)",
        }
        with ledger._db.write() as connection:
            for table, row in values.items():
                connection.exec_driver_sql(f"INSERT INTO {table} VALUES {row}")
        ledger.migrate()
        (item,) = ledger.deliveries("j1")
        assert (item.form, item.rung) == ("SEG", 0)
        assert ledger.job("j1").state is JobState.DELIVERED
        ledger.record(instance(1, "1.3", header={"frame_of_reference_uid": "1.2.3.99"}))
        job = seal(ledger, "1.3", now=T0 + 10)
        held = claim(ledger, job, now=T0 + 20)
        assert ledger.earlier_result(job, held.fence) == "results/1.dcm"
    finally:
        ledger.close()
