"""Members of an ensemble: each trains its own model and answers queries with predictions."""
