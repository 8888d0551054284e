"""JSON samples: what the topics ``telemetry`` and ``bms`` carry.  See ``schemas/mqtt/README.md``."""
