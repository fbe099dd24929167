"""What serves on machines without a GPU, through torch's own INT8 and matrix operators."""
