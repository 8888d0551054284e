"""Benchmarks of nevstream: seeded, prepared before the clock starts, measured beside a baseline.

Not part of the wheel.  Run by ``nevstream bench``.
"""
