"""The durable log of raw frames: a PostgreSQL table, or memory in tests."""
