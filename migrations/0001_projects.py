from outreach_vault.schema.migrator import Schema

TITLE = "Projects, and every CV and job description in one of them."


def upgrade(schema: Schema) -> None:
    # The app makes these four at every start, before it counts versions.
    schema.execute("CREATE TABLE IF NOT EXISTS app_meta (key TEXT PRIMARY KEY, value TEXT)")
    schema.execute("""
        CREATE TABLE IF NOT EXISTS cvs (
            id TEXT PRIMARY KEY,
            file_path TEXT NOT NULL,
            file_name TEXT NOT NULL,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL,
            contact_json TEXT NOT NULL,
            contact_confidence REAL NOT NULL,
            work_history_json TEXT,
            education_json TEXT,
            skills_json TEXT,
            certifications_json TEXT,
            languages_json TEXT,
            other_sections_json TEXT,
            raw_text TEXT,
            section_order_json TEXT,
            parse_confidence REAL NOT NULL,
            warnings_json TEXT,
            parse_time_ms INTEGER
        )""")
    schema.execute("""
        CREATE TABLE IF NOT EXISTS job_descriptions (
            id TEXT PRIMARY KEY,
            title TEXT NOT NULL,
            company TEXT,
            raw_text TEXT NOT NULL,
            required_skills_json TEXT,
            preferred_skills_json TEXT,
            experience_min INTEGER,
            experience_max INTEGER,
            education_level TEXT,
            certifications_json TEXT,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL
        )""")
    schema.execute("""
        CREATE TABLE IF NOT EXISTS cv_jd_matches (
            cv_id TEXT NOT NULL REFERENCES cvs (id) ON DELETE CASCADE,
            jd_id TEXT NOT NULL REFERENCES job_descriptions (id) ON DELETE CASCADE,
            match_score INTEGER NOT NULL,
            matched_skills_json TEXT,
            missing_required_json TEXT,
            missing_preferred_json TEXT,
            calculated_at TEXT NOT NULL,
            PRIMARY KEY (cv_id, jd_id)
        )""")
    schema.execute("CREATE INDEX IF NOT EXISTS idx_matches_jd ON cv_jd_matches (jd_id)")
    by_score = "CREATE INDEX IF NOT EXISTS idx_matches_score ON cv_jd_matches"
    schema.execute(f"{by_score} (jd_id, match_score DESC)")

    schema.execute("""
        CREATE TABLE IF NOT EXISTS projects (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            client_name TEXT,
            description TEXT,
            is_archived INTEGER DEFAULT 0,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL
        )""")
    schema.add_column("cvs", "project_id", "TEXT")
    schema.add_column("job_descriptions", "project_id", "TEXT")
    schema.execute("CREATE INDEX IF NOT EXISTS idx_cvs_project ON cvs (project_id)")
    schema.execute("CREATE INDEX IF NOT EXISTS idx_jds_project ON job_descriptions (project_id)")
    schema.execute(
        "INSERT INTO projects (id, name, description, created_at, updated_at) VALUES"
        " ('default-project', 'Default Project', 'Auto-created for existing CVs and JDs', ?, ?)"
        " ON CONFLICT DO NOTHING",
        (schema.now, schema.now),
    )
    schema.execute("UPDATE cvs SET project_id = 'default-project' WHERE project_id IS NULL")
    schema.execute(
        "UPDATE job_descriptions SET project_id = 'default-project' WHERE project_id IS NULL"
    )
