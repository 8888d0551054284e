"""A load tool: many vehicles at a given rate against a platform of one's own, and what became of every frame."""
