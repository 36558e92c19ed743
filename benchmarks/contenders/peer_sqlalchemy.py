"""
SQLAlchemy's ORM with a column of SQLAlchemy-Utils' `StringEncryptedType`, engine Fernet.

"read" and "reencrypt" are as the documentation writes them: a session for each unit of work, a
select written where it is needed, and objects that are loaded, changed and committed. "read
fastest" executes a select of the one column, built once, in a session that stays open; "reencrypt
fastest" is the ORM's bulk UPDATE by primary key. The library has no rotation of its own, but its
key may be a callable. All of a run is one transaction.
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Any

from contender import Row, repeated, rows, serve
from sqlalchemy import (
    Engine,
    UniqueConstraint,
    bindparam,
    create_engine,
    event,
    insert,
    select,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.orm.attributes import flag_modified
from sqlalchemy_utils import StringEncryptedType
from sqlalchemy_utils.types.encrypted.encrypted_type import FernetEngine


class Key:
    """The key in force, which the column asks for at each value."""

    current = secrets.token_hex(32)


class Base(DeclarativeBase):
    pass


class Credential(Base):
    __tablename__ = "credential"
    __table_args__ = (UniqueConstraint("project_id", "provider", "credential_type"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[str]
    provider: Mapped[str]
    credential_type: Mapped[str]
    value: Mapped[str] = mapped_column(
        StringEncryptedType(key=lambda: Key.current, engine=FernetEngine)
    )


OF_PLACE = select(Credential.value).where(
    Credential.project_id == bindparam("project_id"),
    Credential.provider == bindparam("provider"),
    Credential.credential_type == bindparam("credential_type"),
)


def set_pragmas(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA journal_mode = WAL").close()
    connection.execute("PRAGMA synchronous = FULL").close()


def read(session: Session, row: Row) -> str | None:
    return session.scalar(
        OF_PLACE,
        {
            "project_id": row.project_id,
            "provider": row.provider,
            "credential_type": row.credential_type,
        },
    )


def read_object(engine: Engine, row: Row) -> str:
    with Session(engine) as session:
        place = {
            "project_id": row.project_id,
            "provider": row.provider,
            "credential_type": row.credential_type,
        }
        return session.scalars(select(Credential).filter_by(**place)).one().value


def reencrypt(session: Session) -> int:
    values = [
        {"id": id_, "value": value}
        for id_, value in session.execute(select(Credential.id, Credential.value))
    ]
    Key.current = secrets.token_hex(32)
    session.execute(update(Credential), values)
    session.commit()
    return len(values)


def reencrypt_objects(engine: Engine) -> int:
    with Session(engine) as session:
        credentials = session.scalars(select(Credential)).all()
        Key.current = secrets.token_hex(32)
        for credential in credentials:
            flag_modified(credential, "value")
        session.commit()
        return len(credentials)


def main(folder: Path, count: int) -> None:
    engine = create_engine(f"sqlite:///{folder / 'sqlalchemy.db'}")
    event.listen(engine, "connect", set_pragmas)
    Base.metadata.create_all(engine)
    everything = list(rows(count))
    with Session(engine) as session:
        session.execute(insert(Credential), [row._asdict() for row in everything])
        session.commit()
        assert read(session, everything[-1]) == everything[-1].value
        assert reencrypt(session) == count
        assert [read(session, row) for row in (everything[0], everything[-1])] == [
            everything[0].value,
            everything[-1].value,
        ]
        assert reencrypt_objects(engine) == count
        assert read_object(engine, everything[-1]) == everything[-1].value
        session.rollback()
        serve(
            {
                "read": repeated(lambda: read_object(engine, everything[-1])),
                "read fastest": repeated(lambda: read(session, everything[-1])),
            }
            | {
                "reencrypt": lambda _: reencrypt_objects(engine),
                "reencrypt fastest": lambda _: reencrypt(session),
            }
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
