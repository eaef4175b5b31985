"""What happens to a Flower app when some of its clients are Byzantine: an audit and its card."""
