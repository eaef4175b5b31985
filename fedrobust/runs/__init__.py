"""What a run writes: its folder and its checkpoints."""
