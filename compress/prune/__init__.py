"""A model with less in it, and the same kind of folder: what matters least is cut out, and what that cost is won back."""
