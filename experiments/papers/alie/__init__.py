"""Baruch, Baruch, Goldberg, A Little Is Enough, NeurIPS 2019: Tables 1 and 2."""
