"""Perturbed inputs: white-box and transfer attacks, losses against them, and their measurement."""

from fedrobust.adversarial.apgd import apgd, apgd_both, apgd_targeted
from fedrobust.adversarial.criteria import CRITERIA
from fedrobust.adversarial.evaluation import (
    Robustness,
    attacks_at,
    auto_attack,
    catastrophic_overfitting,
    evaluate_attacks,
    masking_alarms,
    overfitting_probe,
    robustness,
)
from fedrobust.adversarial.federated import Calibrated, epochs_at, slack_weights
from fedrobust.adversarial.frozen import frozen, predict
from fedrobust.adversarial.images import quantise_images
from fedrobust.adversarial.objective import (
    LOSSES,
    PERTURBATIONS,
    TRANSFER_ATTACKS,
    adversarial_loss,
    adversarial_objective,
    check_perturbation,
    perturb,
    perturb_on_surrogates,
)
from fedrobust.adversarial.probes import (
    gradient_similarity,
    independent_vote_failure,
    input_curvature,
    loss_gradient,
)
from fedrobust.adversarial.robust_evaluation import EVALUATIONS, evaluation_names, examine
from fedrobust.adversarial.semi import FirstLogits, pseudo_labels, rotations, semi_batches
from fedrobust.adversarial.square import square
from fedrobust.adversarial.transfer import mi_cse, mi_cwa, mi_fgsm, mi_sam
from fedrobust.adversarial.white_box import fgsm, pgd, trades_kl

__all__ = [
    "CRITERIA",
    "EVALUATIONS",
    "LOSSES",
    "PERTURBATIONS",
    "TRANSFER_ATTACKS",
    "Calibrated",
    "FirstLogits",
    "Robustness",
    "adversarial_loss",
    "adversarial_objective",
    "apgd",
    "apgd_both",
    "apgd_targeted",
    "attacks_at",
    "auto_attack",
    "catastrophic_overfitting",
    "check_perturbation",
    "epochs_at",
    "evaluate_attacks",
    "evaluation_names",
    "examine",
    "fgsm",
    "frozen",
    "gradient_similarity",
    "independent_vote_failure",
    "input_curvature",
    "loss_gradient",
    "masking_alarms",
    "mi_cse",
    "mi_cwa",
    "mi_fgsm",
    "mi_sam",
    "overfitting_probe",
    "perturb",
    "perturb_on_surrogates",
    "pgd",
    "predict",
    "pseudo_labels",
    "quantise_images",
    "robustness",
    "rotations",
    "semi_batches",
    "slack_weights",
    "square",
    "trades_kl",
]
