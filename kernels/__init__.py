"""What the model computes with: one reference per operation, one implementation per kind of machine."""
