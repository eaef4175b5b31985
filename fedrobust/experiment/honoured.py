"""Which keys each of the three modes honours; every other key, given in a file, is an error.

Each tuple follows from what the mode's strategy and clients read. A key stands for all below it.
"""

from __future__ import annotations

from collections.abc import Iterable

MODES = ("federated", "redundancy", "ensemble")
_EVERYWHERE = (
    "data", "model", "clients", "byzantine", "rounds", "seed", "rule", "attack", "placement",
    "transfer", "server.evaluate_every", "server.deadline",
)  # fmt: skip
HONOURED: dict[str, tuple[str, ...]] = {
    "federated": (
        *_EVERYWHERE,
        "pre", "weights", "partition", "loss", "metrics", "training", "server", "adversarial",
        "adapters", "worker_momentum", "participation", "groups", "batchnorm", "compression",
        "semi", "pretrain",
        "ensemble",  # with the paradigm "fedavg" only: the baseline that averages one model
    ),
    "redundancy": (  # a file's gradient and the server's step; workers hold all data
        *_EVERYWHERE,
        "pre", "loss", "metrics", "redundancy",
        "training.mode", "training.weight_decay", "training.clip", "training.augment",
        "training.precision",
        "server.lr", "server.momentum", "server.largest", "server.optimizer", "server.schedule",
        "server.warmup", "server.min_replies",
        "adversarial.perturbation", "adversarial.loss", "adversarial.fraction", "adversarial.eps",
        "adversarial.eval_steps", "adversarial.eval_images", "adversarial.eval_restarts",
        "adversarial.eval_attacks", "adversarial.probe_images",
    ),
    # [ensemble] says how members train
    "ensemble": (*_EVERYWHERE, "partition", "loss", "metrics", "ensemble"),
}  # fmt: skip
ONLY_FEDERATED = (
    "weights", "adapters", "worker_momentum", "participation", "groups", "batchnorm",
    "compression", "semi", "pretrain",
)  # fmt: skip
# What the commands and ``simulate`` offer beside an experiment's keys -> the modes that honour it.
RESUME, MODEL, STOCK = "--resume", "keeping the final model", "a stock Flower strategy"
FEATURES: dict[str, tuple[str, ...]] = {
    RESUME: MODES,  # an ensemble in one process only: its models stay with its nodes
    MODEL: ("federated", "redundancy"),  # an ensemble's models stay with its nodes
    STOCK: ("federated",),  # it averages updates
}


def honours(mode: str, key: str) -> bool:
    """Whether a mode honours a dotted key."""
    return any(key == own or key.startswith(f"{own}.") for own in HONOURED[mode])


def refused(mode: str, keys: Iterable[str]) -> list[str]:
    """Return a sentence for each dotted key that a mode does not honour."""
    return [
        f"{key} is not honoured in {mode} mode, only in {listing(others)} mode"
        for key in keys
        if not honours(mode, key) and (others := [m for m in MODES if honours(m, key)])
    ]


def refused_feature(mode: str, feature: str) -> list[str]:
    """Return the sentence for a feature that a mode does not honour, if it does not."""
    if mode in FEATURES[feature]:
        return []
    return [f"{feature} is not honoured in {mode} mode, only in {listing(FEATURES[feature])} mode"]


def listing(modes: Iterable[str]) -> str:
    """Write modes as "federated and redundancy"."""
    return " and ".join(modes)
