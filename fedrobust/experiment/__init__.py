"""One experiment: its schema, how it is loaded, and how it is validated."""
