"""What a GPU is worth here: ``make gpu`` measures, in order of worth, within a budget."""
