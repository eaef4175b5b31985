"""Workers that compute gradients of assigned files."""
