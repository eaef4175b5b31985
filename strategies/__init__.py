"""What the server runs."""
