"""A package of somebody else's that brings a model, a data set, a rule, an attack and a loss."""
