"""Networks with BatchNorm: DAT's PreAct-ResNet-18, and a small one for toys and tests."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class PreActBlock(nn.Module):
    """BN, ReLU, 3x3 convolution, twice; a 1x1 convolution of the pre-activation as shortcut."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.first_norm = nn.BatchNorm2d(inner)
        self.first = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outer)
        self.second = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        widens = stride != 1 or inner != outer
        self.shortcut = nn.Conv2d(inner, outer, 1, stride=stride, bias=False) if widens else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inner, H, W) to (B, outer, H / stride, W / stride)."""
        active = F.relu(self.first_norm(x))
        beside = x if self.shortcut is None else self.shortcut(active)
        inside: Tensor = self.second(F.relu(self.second_norm(self.first(active))))
        return inside + beside


def preact_resnet18(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """PreAct-ResNet-18 without a last BatchNorm (11,171,146 parameters on 3x32x32).

    References
    ----------
    He et al., Identity Mappings in Deep Residual Networks, ECCV 2016; in the form of Zhang et al.,
    Distributed Adversarial Training, UAI 2022, released code.
    """
    blocks, inner = [], 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [PreActBlock(inner, width, stride), PreActBlock(width, width, 1)]
        inner = width
    return nn.Sequential(
        nn.Conv2d(shape[0], 64, 3, padding=1, bias=False),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, classes),
    )


def bn_cnn(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Two convolutions with BatchNorm and one hidden layer, for any image of 2x2 or more."""
    side = min(7, shape[1] // 2, shape[2] // 2)
    return nn.Sequential(
        nn.Conv2d(shape[0], 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(side),
        nn.Flatten(),
        nn.Linear(32 * side * side, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )
