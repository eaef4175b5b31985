"""fedrobust: Byzantine-robust and adversarially robust federated learning on Flower."""
