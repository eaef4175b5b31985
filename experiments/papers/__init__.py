"""The papers' experiments: configuration, published values, comparison."""
