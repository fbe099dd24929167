"""What the model computes with: INT8 matmul and paged attention, each with a plain reference."""
