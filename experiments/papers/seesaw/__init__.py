"""Yang, Luo, Dong, Li, Seesaw, arXiv 2410.05161: our interpretations, measured."""
