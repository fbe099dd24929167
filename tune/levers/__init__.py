"""Which settings of a server are worth it together, found by serving a workload with them."""
