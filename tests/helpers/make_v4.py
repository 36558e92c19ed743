"""
Make data/v4.db: what a user of the released app brings. The project's own steps 0001 to 0004, and
invented rows in the app's shapes.

Every value is fixed, so that a test can say that the shipped file is what this makes: python
tests/helpers/make_v4.py [PATH].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from outreach_vault.database.sqlite.database import SQLiteDatabase as Database
from outreach_vault.files import new_file
from outreach_vault.schema import migrator

ZURICH = "3f0c7a52-9d41-4c7e-8a63-0b9f5d2e1c11"
TOKYO = "b8e2d6f4-1c35-4a90-9e57-6d3a2f8b4c22"
ADA, JOSE, HANAKO = (f"{number}5d4a8c0-2b6e-4f13-9a7d-c1e0f3b2a{number}33" for number in (1, 2, 3))
BACKEND = "7c9e6679-7425-40de-944b-e07fc1f90a44"
DATA = "0e984725-c51c-4bf4-9960-e1c80e27ab55"


def at(second: int) -> str:
    return f"2026-02-06T09:30:{second:02d}.{second * 137 % 1000:03d}Z"


def compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def cv(
    row_id: str, project_id: str | None, name: str, mail: str, second: int, **more: Any
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": row_id,
        "file_path": f"/home/recruiter/CVs/{name} – CV.pdf",
        "file_name": f"{name} – CV.pdf",
        "created_at": at(second),
        "updated_at": at(second),
        "contact_json": compact({"name": name, "email": mail, "phone": "+15550100100"}),
        "contact_confidence": 0.9,
        "work_history_json": compact(
            [
                {
                    "company": "Acme & Sons",
                    "position": "Engineer",
                    "description": "Built things;\nback\\slash",
                }
            ]
        ),
        "skills_json": compact([{"category": "Core", "skills": ["Python", "SQL"]}]),
        "languages_json": compact(["en", "fr"]),
        "raw_text": f"{name}\n{mail}",
        "section_order_json": compact(["contact", "work_history"]),
        "parse_confidence": 0.93,
        "warnings_json": compact([]),
        "parse_time_ms": 1200,
        "project_id": project_id,
    }
    return row | more


def job(row_id: str, project_id: str, title: str, second: int, **more: Any) -> dict[str, Any]:
    row = {
        "id": row_id,
        "title": title,
        "raw_text": "We need Python.\nRemote – à distance",
        "created_at": at(second),
        "updated_at": at(second),
    }
    return row | {"project_id": project_id} | more


def project(row_id: str, name: str, second: int, **more: Any) -> dict[str, Any]:
    return {"id": row_id, "name": name, "created_at": at(second), "updated_at": at(second)} | more


def match(cv_id: str, jd_id: str, score: int, second: int) -> dict[str, Any]:
    row = {
        "cv_id": cv_id,
        "jd_id": jd_id,
        "match_score": score,
        "matched_skills_json": compact(["Python"]),
        "calculated_at": at(second),
    }
    return row | {
        "missing_required_json": compact([]),
        "missing_preferred_json": compact(["Kafka"]),
    }


def event(
    project_id: str, kind: str, mode: str, prompt: int, completion: int, second: int
) -> dict[str, Any]:
    tokens = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    model = {"model": "some-model"} if mode == "cloud" else {}
    return (
        {"project_id": project_id, "event_type": kind, "llm_mode": mode, "created_at": at(second)}
        | tokens
        | model
    )


ROWS = (
    ("app_meta", {"key": "initialized_at", "value": at(1)}),
    (
        "projects",
        project(
            ZURICH, "Backend – Zürich", 2, client_name="Møller & Søn A/S", is_pinned=1, pin_order=1
        ),
    ),
    (
        "projects",
        project(TOKYO, "データ採用", 3, description="zweite Zeile\nsecond line", is_archived=1),
    ),
    ("cvs", cv(ADA, ZURICH, "Ada Example", "ada@example.com", 4)),
    (
        "cvs",
        cv(
            JOSE,
            ZURICH,
            "José Exämple",
            "jose@example.com",
            5,
            status="failed",
            error_message="no text found",
            contact_confidence=0,
        ),
    ),
    (
        "cvs",
        cv(HANAKO, None, "例 花子", "hanako@example.com", 6, status="queued"),
    ),  # the app leaves some without a project
    (
        "job_descriptions",
        job(
            BACKEND,
            ZURICH,
            "Senior Backend Engineer",
            7,
            experience_min=5,
            matching_metadata_json=compact({"py": ["π"]}),
        ),
    ),
    (
        "job_descriptions",
        job(
            DATA,
            TOKYO,
            "データサイエンティスト",
            8,
            required_skills_json=compact([{"skill": "機械学習"}]),
        ),
    ),
    ("cv_jd_matches", match(ADA, BACKEND, 91, 9)),
    ("cv_jd_matches", match(HANAKO, DATA, 47, 10)),
    (
        "usage_events",
        event(ZURICH, "cv_extraction", "cloud", 1200, 340, 11),
    ),  # the trigger writes usage_daily
    ("usage_events", event(ZURICH, "jd_extraction", "local", 400, 90, 12)),
    ("usage_events", event(TOKYO, "cv_extraction", "cloud", 900, 210, 13)),
)


def make(path: Path) -> None:
    def fill(part: Path) -> None:
        database = Database(part)
        try:
            database.prepare()
            for step in migrator.steps()[:4]:
                migrator.apply(database, step)
            # The default project is one of them.
            database.change("UPDATE projects SET created_at = ?, updated_at = ?", (at(0), at(0)))
            for table, row in ROWS:
                names = ", ".join(row)
                database.change(
                    f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(row))})",
                    tuple(row.values()),
                )
            database.truncate_log()
        finally:
            database.close_all()

    new_file(path, fill)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parents[1] / "data" / "v4.db")
