"""Simulated vehicles that speak both protocols and know the truth about themselves."""
