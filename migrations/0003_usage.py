from outreach_vault.schema.migrator import Schema

TITLE = "Token usage by event and by day, and pinned projects."


def upgrade(schema: Schema) -> None:
    schema.execute("""
        CREATE TABLE IF NOT EXISTS usage_events (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            project_id TEXT NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
            event_type TEXT NOT NULL,
            prompt_tokens INTEGER NOT NULL DEFAULT 0,
            completion_tokens INTEGER NOT NULL DEFAULT 0,
            total_tokens INTEGER NOT NULL DEFAULT 0,
            llm_mode TEXT NOT NULL,
            model TEXT,
            created_at TEXT NOT NULL
        )""")
    schema.execute("""
        CREATE TABLE IF NOT EXISTS usage_daily (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            project_id TEXT NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
            date TEXT NOT NULL,
            total_tokens INTEGER DEFAULT 0,
            request_count INTEGER DEFAULT 0,
            UNIQUE (project_id, date)
        )""")
    # DATE() converts to UTC; so does this. Text that is no time makes the insert fail in both: to
    # PostgreSQL 'yesterday' is one.
    day = "to_char(NEW.created_at::timestamptz AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
    day = f"CASE WHEN NEW.created_at ~ '^[0-9]{{4}}-' THEN {day} END"
    schema.execute(
        """
        CREATE TRIGGER IF NOT EXISTS update_daily_usage AFTER INSERT ON usage_events
        BEGIN
            INSERT INTO usage_daily (project_id, date, total_tokens, request_count)
            VALUES (NEW.project_id, DATE(NEW.created_at), NEW.total_tokens, 1)
            ON CONFLICT (project_id, date) DO UPDATE SET
                total_tokens = total_tokens + NEW.total_tokens,
                request_count = request_count + 1;
        END""",
        on_postgres=f"""
        CREATE OR REPLACE FUNCTION update_daily_usage() RETURNS trigger LANGUAGE plpgsql
        SET timezone = 'UTC' AS $$
        BEGIN
            INSERT INTO usage_daily AS daily (project_id, date, total_tokens, request_count)
            VALUES (NEW.project_id, {day}, NEW.total_tokens, 1)
            ON CONFLICT (project_id, date) DO UPDATE SET
                total_tokens = daily.total_tokens + excluded.total_tokens,
                request_count = daily.request_count + 1;
            RETURN NULL;
        END $$;
        CREATE OR REPLACE TRIGGER update_daily_usage AFTER INSERT ON usage_events
        FOR EACH ROW EXECUTE FUNCTION update_daily_usage()""",
    )
    schema.execute(
        "CREATE INDEX IF NOT EXISTS idx_usage_events_project ON usage_events (project_id)"
    )
    schema.execute(
        "CREATE INDEX IF NOT EXISTS idx_usage_daily_project_date ON usage_daily (project_id, date)"
    )
    schema.add_column("projects", "is_pinned", "INTEGER NOT NULL DEFAULT 0")
    schema.add_column("projects", "pin_order", "INTEGER NOT NULL DEFAULT 0")
