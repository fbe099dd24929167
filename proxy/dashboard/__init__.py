"""The dashboard: one page that needs nothing else, and the figures that it is sent once a second."""
