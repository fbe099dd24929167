"""The engine: sequences, blocks, scheduling, batches, sampling. Token ids only; no HTTP."""
