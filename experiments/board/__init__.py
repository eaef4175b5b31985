"""The board: one measured row per defence, made by ``fedrobust benchmark`` by a fixed protocol."""
