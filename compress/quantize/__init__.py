"""Weights in 8 or 4 bits that compute nearly what the model's own do: calibrated, measured, reported layer by layer."""
