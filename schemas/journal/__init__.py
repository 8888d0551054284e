"""The journal record: many raw frames in one durable, self-describing block of bytes."""
