"""Telemetry to statistics: trips, charges, energy, battery, alarms, completeness."""
