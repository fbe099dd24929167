"""From logged traffic to a cheaper model in service: `penstock flywheel`."""
