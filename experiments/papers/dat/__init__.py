"""Zhang et al., Distributed Adversarial Training to Robustify Deep Neural Networks, UAI 2022."""
