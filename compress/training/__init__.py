"""The one training loop of compression: recovery after pruning and distillation both go through it."""
