"""Bring your own signals: a TOML file (and a DBC it names) to kernel tables, and from those to ``extra``."""
