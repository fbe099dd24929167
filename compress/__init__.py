"""Making models smaller and faster, and measuring what that costs in accuracy."""
