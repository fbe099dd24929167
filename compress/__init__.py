"""Making models smaller and faster: the commands that quantize, prune, distil, evaluate and tune (not built yet)."""
