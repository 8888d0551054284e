"""The durable log of raw frames: a PostgreSQL table, a Kafka topic, or memory in tests."""
