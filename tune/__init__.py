"""Finding out, by measuring on one's own traffic, which settings pay: what `penstock tune` does."""
