"""The soak: the whole system with a fleet, faults on a seeded schedule, and the reckoning at the end."""
