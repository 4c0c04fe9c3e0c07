"""What is written back to the cluster."""
