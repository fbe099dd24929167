"""When a near hit may be served without asking the model. Pure: no I/O, no clock, no randomness of its own."""
