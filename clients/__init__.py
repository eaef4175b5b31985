"""What a node runs."""
