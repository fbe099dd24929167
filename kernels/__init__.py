"""What the model computes with: INT8 matmul and paged attention, each with a plain reference."""

import os

# Before torch loads OpenMP: let threads sleep at a barrier instead of spinning for long. With spinning, a parallel
# region costs 8 ms instead of 30 us as soon as any other busy process shares the cores (measured, GNU OpenMP on 2 cores).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
