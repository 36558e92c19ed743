"""PostgreSQL: one database for a team of hosts."""
