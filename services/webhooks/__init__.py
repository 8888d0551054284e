"""News of alarms, sent to the webhooks of the settings.  See README.md in this folder."""
