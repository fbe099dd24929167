"""Every operation as its formula says, in plain torch; what the tests compare with."""
