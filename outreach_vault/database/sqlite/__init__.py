"""SQLite: the application's own file, on this machine."""
