"""The outbox and everything else that lives in PostgreSQL. Only this package speaks to the database."""
