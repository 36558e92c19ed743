"""
Apache Airflow's connections, in its metadata database as `airflow db migrate` makes it.

"read" is `Connection.get_connection_from_secrets` and then `.password`; the secrets cache stays
off, as it is by default. "reencrypt" is the body of `airflow rotate-fernet-key` with "new,old" as
the Fernet key, without the command line's own work around it (checking migrations, loading
providers, logging the command).

Airflow adds each password that it loads to its log masker, and compiles that anew each time, which
makes the first load of n connections quadratic in n. The setting `min_length_masked_secret` keeps
that out of both. "command" is the whole `airflow rotate-fernet-key`, a process of its own, with the
masker as it is by default.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from argparse import Namespace
from contextlib import redirect_stdout
from pathlib import Path

from contender import Row, repeated, rows, serve
from cryptography.fernet import Fernet

FOLDER, COUNT = Path(sys.argv[1]).resolve(), int(sys.argv[2])
FERNET_KEY, MASKS = "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__LOGGING__MIN_LENGTH_MASKED_SECRET"


def new_key() -> str:
    return Fernet.generate_key().decode()


os.environ |= {
    "AIRFLOW_HOME": str(FOLDER),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{FOLDER / 'airflow.db'}",
    "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
    MASKS: "1000",
    FERNET_KEY: new_key(),
}

with redirect_stdout(sys.stderr):  # Airflow reads the environment, and may log, when it is imported
    from airflow import settings
    from airflow.cli.commands.rotate_fernet_key_command import rotate_fernet_key
    from airflow.models import Connection
    from airflow.models.crypto import get_fernet
    from airflow.utils.db import upgradedb
    from airflow.utils.session import create_session


def conn_id(row: Row) -> str:
    return f"{row.project_id}.{row.provider}.{row.credential_type}"


def use_key(key: str) -> None:
    os.environ[FERNET_KEY] = key
    get_fernet.cache_clear()


def read(row: Row) -> str | None:
    return Connection.get_connection_from_secrets(conn_id(row)).password


def reencrypt() -> int:
    old, new = os.environ[FERNET_KEY], new_key()
    use_key(f"{new},{old}")
    inspect.unwrap(rotate_fernet_key)(Namespace())
    use_key(new)
    return COUNT


def command() -> int:
    new = new_key()
    variables = {name: value for name, value in os.environ.items() if name != MASKS} | {
        FERNET_KEY: f"{new},{os.environ[FERNET_KEY]}"
    }
    airflow = Path(sys.executable).with_name("airflow")
    subprocess.run([airflow, "rotate-fernet-key"], env=variables, check=True, stdout=sys.stderr)
    use_key(new)
    return COUNT


def prepare(everything: list[Row]) -> None:
    upgradedb()
    with create_session() as session:
        session.add_all(
            Connection(conn_id=conn_id(row), conn_type="generic", password=row.value)
            for row in everything
        )
    with (
        settings.engine.connect() as connection
    ):  # Airflow sets WAL itself, and leaves FULL as it is by default
        pragmas = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous")
        ]
    assert pragmas == ["wal", 2]
    assert read(everything[-1]) == everything[-1].value
    reencrypt()
    assert [read(row) for row in (everything[0], everything[-1])] == [
        everything[0].value,
        everything[-1].value,
    ]


if __name__ == "__main__":
    everything = list(rows(COUNT))
    with redirect_stdout(sys.stderr):
        prepare(everything)
    serve(
        {
            "read": repeated(lambda: read(everything[-1])),
            "reencrypt": lambda _: reencrypt(),
            "command": lambda _: command(),
        }
    )
