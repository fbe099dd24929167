"""A router between a small and a large tier: answers collected, a judge fitted, promises calibrated, and a report on what it
would save."""
