"""
Django's ORM with an `EncryptedTextField` of django-fernet-encrypted-fields.

"read" is `objects.get(...)`, and "reencrypt" what the library's documentation says: put a new key
before the old one, then load and re-save each object, here all in one transaction. "read fastest"
selects the one column with `values_list`, which builds no object; "reencrypt fastest" is a bulk
insert that updates on conflict. The library derives a process's keys once, from SALT_KEY, when it
first needs them; they are derived before the timing, and put in place of the field's cached ones as
a restart with the new setting would do.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from itertools import cycle, pairwise
from pathlib import Path

import django
from contender import Row, repeated, rows, serve
from django.conf import settings
from django.db import connection, models, transaction

FOLDER, COUNT = Path(sys.argv[1]), int(sys.argv[2])
PRAGMAS = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL"
settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": FOLDER / "django.db",
            "OPTIONS": {"init_command": PRAGMAS},
        }
    },
    SECRET_KEY=secrets.token_urlsafe(48),
    SALT_KEY=secrets.token_urlsafe(48),
)
django.setup()

from encrypted_fields.fields import EncryptedTextField  # noqa: E402 (it needs the settings)


class Credential(models.Model):
    project_id = models.TextField()
    provider = models.TextField()
    credential_type = models.TextField()
    value = EncryptedTextField()

    class Meta:
        app_label = "peer"
        constraints = [
            models.UniqueConstraint(
                fields=["project_id", "provider", "credential_type"], name="place"
            )
        ]


def derived_key() -> bytes:
    """The key that the library derives from another SALT_KEY."""
    settings.SALT_KEY = secrets.token_urlsafe(48)
    return EncryptedTextField().keys[0]


def use_keys(*keys: bytes) -> None:
    field = Credential._meta.get_field("value")
    field.keys = list(keys)
    field.__dict__.pop("f", None)


def place_of(row: Row) -> dict[str, str | None]:
    return {
        "project_id": row.project_id,
        "provider": row.provider,
        "credential_type": row.credential_type,
    }


def read(row: Row) -> str:
    return Credential.objects.get(**place_of(row)).value


def read_column(row: Row) -> str:
    return Credential.objects.values_list("value", flat=True).get(**place_of(row))


def save_each(credentials: models.QuerySet) -> None:
    for credential in credentials:
        credential.save()


def insert_anew(credentials: models.QuerySet) -> None:
    Credential.objects.bulk_create(
        list(credentials), update_conflicts=True, update_fields=["value"], unique_fields=["id"]
    )


def reencrypt(store: Callable[[models.QuerySet], None], old: bytes, new: bytes) -> int:
    use_keys(new, old)
    with transaction.atomic():
        credentials = Credential.objects.all()
        store(credentials)
    use_keys(new)
    return len(credentials)


def main() -> None:
    turns = pairwise(cycle([derived_key() for _ in range(8)]))
    old, new = next(turns)
    use_keys(old)
    with connection.schema_editor() as editor:
        editor.create_model(Credential)
    everything = list(rows(COUNT))
    Credential.objects.bulk_create([Credential(**row._asdict()) for row in everything])
    assert read(everything[-1]) == everything[-1].value
    assert reencrypt(save_each, old, new) == COUNT
    assert reencrypt(insert_anew, *next(turns)) == COUNT
    assert [read(row) for row in (everything[0], everything[-1])] == [
        everything[0].value,
        everything[-1].value,
    ]
    serve(
        {
            "read": repeated(lambda: read(everything[-1])),
            "read fastest": repeated(lambda: read_column(everything[-1])),
        }
        | {
            "reencrypt": lambda _: reencrypt(save_each, *next(turns)),
            "reencrypt fastest": lambda _: reencrypt(insert_anew, *next(turns)),
        }
    )


if __name__ == "__main__":
    main()
