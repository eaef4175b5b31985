"""The twelve architectures of the transfer-attack paper, for 3x32x32 and 1x28x28 images.

The CIFAR variants of the public zoo kuangliu/pytorch-cifar, by their published structure; images of
28x28 are padded to 32x32. Without the dropout and the stochastic depth of EfficientNet (the paper
fixes dropout at 0). They keep running statistics: members of an ensemble may, averaged models not.

References
----------
Andreina, Zimmer, Karame, AAAI 2025, released code (which twelve). Each network names its own paper.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fedrobust.models.blocks import Cat, Chain, DualPath, Gate, PreAct, Sum

Shape = tuple[int, int, int]


def conv(i: int, o: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Convolution without bias that keeps the size at stride 1."""
    # Without bias: the BatchNorm that follows would subtract it again.
    return nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False)


def unit(
    i: int,
    o: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    act: type[nn.Module] = nn.ReLU,
) -> list[nn.Module]:
    """Convolution, BatchNorm, activation."""
    return [conv(i, o, kernel, stride, groups), nn.BatchNorm2d(o), act()]


def biased(i: int, o: int, kernel: int = 3) -> list[nn.Module]:
    """Convolution with bias, BatchNorm, ReLU."""
    # The zoo's VGG and GoogLeNet keep a bias before BatchNorm: it counts among their parameters.
    return [nn.Conv2d(i, o, kernel, padding=kernel // 2), nn.BatchNorm2d(o), nn.ReLU()]


def projection(i: int, o: int, stride: int) -> nn.Module:
    """Identity where the shape stays, else a 1x1 convolution with BatchNorm."""
    if stride == 1 and i == o:
        return nn.Identity()
    return nn.Sequential(conv(i, o, 1, stride), nn.BatchNorm2d(o))


def head(channels: int, classes: int) -> list[nn.Module]:
    """Average over the image, then classify."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def network(shape: Shape, *layers: nn.Module) -> nn.Module:
    """Put the padding of images below 32 pixels first, height and width each by itself."""
    # Rounded up, since the strides and pools below need 32 at least.
    high, wide = (max(0, (32 - side + 1) // 2) for side in shape[1:])
    padding = [nn.ZeroPad2d((wide, wide, high, high))] if high or wide else []
    return nn.Sequential(*padding, *layers)


def vgg19(shape: Shape, classes: int) -> nn.Module:
    """Sixteen 3x3 convolutions with BatchNorm in five stages (Simonyan and Zisserman, 2015)."""
    layers, i = [], shape[0]
    for o, count in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(count):
            layers += biased(i, o)
            i = o
        layers.append(nn.MaxPool2d(2))
    return network(shape, *layers, *head(512, classes))


def basic(i: int, o: int, stride: int) -> nn.Module:
    """Two 3x3 convolutions and a shortcut."""
    body = nn.Sequential(*unit(i, o, stride=stride), conv(o, o), nn.BatchNorm2d(o))
    return nn.Sequential(Sum(body, projection(i, o, stride)), nn.ReLU())


def stages(block: Callable[[int, int, int], nn.Module]) -> list[nn.Module]:
    """Eight blocks of 64 to 512 channels: the 18-layer layout."""
    plan = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1),
            (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]  # fmt: skip
    return [block(*settings) for settings in plan]


def resnet18(shape: Shape, classes: int) -> nn.Module:
    """Residual network of 18 layers (He et al., CVPR 2016)."""
    return network(shape, *unit(shape[0], 64), *stages(basic), *head(512, classes))


def _pre_activated(i: int, o: int, stride: int, gate: nn.Module | None = None) -> nn.Module:
    before = nn.Sequential(nn.BatchNorm2d(i), nn.ReLU())
    body = [conv(i, o, stride=stride), nn.BatchNorm2d(o), nn.ReLU(), conv(o, o)]
    # A bare convolution: its input is normalised already.
    shortcut = None if stride == 1 and i == o else conv(i, o, 1, stride)
    return PreAct(before, nn.Sequential(*body, *([gate] if gate else [])), shortcut)


def preactresnet18(shape: Shape, classes: int) -> nn.Module:
    """Residual network with activation first (He et al., ECCV 2016)."""
    return network(shape, conv(shape[0], 64), *stages(_pre_activated), *head(512, classes))


def senet18(shape: Shape, classes: int) -> nn.Module:
    """Pre-activated residual network with squeeze and excitation (Hu et al., CVPR 2018)."""

    def block(i: int, o: int, stride: int) -> nn.Module:
        return _pre_activated(i, o, stride, Gate(o, o // 16, nn.ReLU))

    return network(shape, *unit(shape[0], 64), *stages(block), *head(512, classes))


def _inception(i: int, a: int, b0: int, b: int, c0: int, c: int, d: int) -> nn.Module:
    return Cat(
        nn.Sequential(*biased(i, a, 1)),
        nn.Sequential(*biased(i, b0, 1), *biased(b0, b)),
        nn.Sequential(*biased(i, c0, 1), *biased(c0, c), *biased(c, c)),
        nn.Sequential(nn.MaxPool2d(3, 1, 1), *biased(i, d, 1)),
    )


def googlenet(shape: Shape, classes: int) -> nn.Module:
    """Nine inception modules, 5x5 as two 3x3 (Szegedy et al., CVPR 2015)."""
    return network(
        shape,
        *biased(shape[0], 192),
        _inception(192, 64, 96, 128, 16, 32, 32),
        _inception(256, 128, 128, 192, 32, 96, 64),
        nn.MaxPool2d(3, 2, 1),
        _inception(480, 192, 96, 208, 16, 48, 64),
        _inception(512, 160, 112, 224, 24, 64, 64),
        _inception(512, 128, 128, 256, 24, 64, 64),
        _inception(512, 112, 144, 288, 32, 64, 64),
        _inception(528, 256, 160, 320, 32, 128, 128),
        nn.MaxPool2d(3, 2, 1),
        _inception(832, 256, 160, 320, 32, 128, 128),
        _inception(832, 384, 192, 384, 48, 128, 128),
        *head(1024, classes),
    )


def densenet121(shape: Shape, classes: int) -> nn.Module:
    """Four dense blocks, growth 32 (Huang et al., CVPR 2017)."""

    def layer(i: int) -> nn.Module:
        body = [nn.BatchNorm2d(i), nn.ReLU(), conv(i, 128, 1), nn.BatchNorm2d(128), nn.ReLU()]
        # The new channels first, as the zoo puts them.
        return Cat(nn.Sequential(*body, conv(128, 32)), nn.Identity())

    layers, width = [conv(shape[0], 64)], 64
    for place, count in enumerate((6, 12, 24, 16)):
        for _ in range(count):
            layers.append(layer(width))  # type: ignore[arg-type]
            width += 32
        if place < 3:
            half = width // 2
            layers += [nn.BatchNorm2d(width), nn.ReLU(), conv(width, half, 1), nn.AvgPool2d(2)]  # type: ignore[list-item]
            width = half
    return network(shape, *layers, nn.BatchNorm2d(width), nn.ReLU(), *head(width, classes))


def _grouped(i: int, middle: int, o: int, stride: int, groups: int) -> nn.Module:
    body = [*unit(i, middle, 1), *unit(middle, middle, 3, stride, groups)]
    body += [conv(middle, o, 1), nn.BatchNorm2d(o)]
    return nn.Sequential(Sum(nn.Sequential(*body), projection(i, o, stride)), nn.ReLU())


def resnext29_2x64d(shape: Shape, classes: int) -> nn.Module:
    """Residual network with two groups of 64 channels (Xie et al., CVPR 2017)."""
    layers, i = unit(shape[0], 64, 1), 64
    for stage in range(3):
        middle = 128 * 2**stage
        for block in range(3):
            stride = 2 if stage and not block else 1
            layers.append(_grouped(i, middle, 2 * middle, stride, 2))
            i = 2 * middle
    return network(shape, *layers, *head(i, classes))


def mobilenet_v2(shape: Shape, classes: int) -> nn.Module:
    """Inverted residuals with linear bottlenecks (Sandler et al., CVPR 2018)."""

    def block(i: int, o: int, expand: int, stride: int) -> nn.Module:
        m = expand * i
        body = [*unit(i, m, 1), *unit(m, m, 3, stride, m), conv(m, o, 1), nn.BatchNorm2d(o)]
        whole = nn.Sequential(*body)
        # A projection where the width changes, as in the zoo; the paper has no shortcut there.
        return Sum(whole, projection(i, o, 1)) if stride == 1 else whole

    layers, i = unit(shape[0], 32), 32
    # Stem and second stage with stride 1, where the paper's have 2: the images are small.
    for expand, o, count, stride in ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2),
                                     (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)):  # fmt: skip
        for k in range(count):
            layers.append(block(i, o, expand, stride if k == 0 else 1))
            i = o
    return network(shape, *layers, *unit(320, 1280, 1), *head(1280, classes))


def dpn92(shape: Shape, classes: int) -> nn.Module:
    """Dual path network (Chen et al., NeurIPS 2017)."""
    layers, i = unit(shape[0], 64), 64
    for stage, (middle, width, count, grow) in enumerate(
        ((96, 256, 3, 16), (192, 512, 4, 32), (384, 1024, 20, 24), (768, 2048, 3, 128))
    ):
        for k in range(count):
            stride = 2 if stage and not k else 1
            body = [*unit(i, middle, 1), *unit(middle, middle, 3, stride, 32)]
            body += [conv(middle, width + grow, 1), nn.BatchNorm2d(width + grow)]
            first = nn.Sequential(conv(i, width + grow, 1, stride), nn.BatchNorm2d(width + grow))
            kept: nn.Module = nn.Identity() if k else first
            layers.append(DualPath(nn.Sequential(*body), kept, width))
            # One grow comes with the stage's first shortcut, one with each of its k + 1 blocks.
            i = width + (k + 2) * grow
    return network(shape, *layers, *head(i, classes))


def efficientnet_b0(shape: Shape, classes: int) -> nn.Module:
    """Scaled inverted residuals with gates (Tan and Le, ICML 2019)."""

    def block(i: int, o: int, expand: int, kernel: int, stride: int) -> nn.Module:
        m = expand * i
        body = unit(i, m, 1, act=nn.SiLU) if expand > 1 else []
        body += unit(m, m, kernel, stride, m, nn.SiLU)
        # A quarter of the block's input, not of the expanded channels.
        body += [Gate(m, i // 4, nn.SiLU), conv(m, o, 1), nn.BatchNorm2d(o)]
        whole = nn.Sequential(*body)
        return Sum(whole, nn.Identity()) if stride == 1 and i == o else whole

    layers, i = unit(shape[0], 32, act=nn.SiLU), 32
    for expand, o, count, kernel, stride in (
        (1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2), (6, 80, 3, 3, 2),
        (6, 112, 3, 5, 1), (6, 192, 4, 5, 2), (6, 320, 1, 3, 1),
    ):  # fmt: skip
        for k in range(count):
            layers.append(block(i, o, expand, kernel, stride if k == 0 else 1))
            i = o
    return network(shape, *layers, *head(320, classes))


def regnetx_200mf(shape: Shape, classes: int) -> nn.Module:
    """Residual network of a designed family, groups of 8 (Radosavovic et al., CVPR 2020)."""
    layers, i = unit(shape[0], 64), 64
    for o, count, stride in ((24, 1, 1), (56, 1, 1), (152, 4, 2), (368, 7, 2)):
        for k in range(count):
            # Groups are 8 channels wide; o // 8 is how many.
            layers.append(_grouped(i, o, o, stride if k == 0 else 1, o // 8))
            i = o
    return network(shape, *layers, *head(368, classes))


def simpledla(shape: Shape, classes: int) -> nn.Module:
    """Deep layer aggregation, simplified (Yu et al., CVPR 2018)."""

    def tree(i: int, o: int, level: int, stride: int) -> nn.Module:
        root = nn.Sequential(*unit(2 * o, o, 1))
        if level == 1:
            return Chain(basic(i, o, stride), basic(o, o, 1), root)
        return Chain(tree(i, o, level - 1, stride), tree(o, o, level - 1, 1), root)

    return network(
        shape,
        *unit(shape[0], 16), *unit(16, 16), *unit(16, 32),
        tree(32, 64, 1, 1), tree(64, 128, 2, 2), tree(128, 256, 2, 2), tree(256, 512, 1, 2),
        *head(512, classes),
    )  # fmt: skip


CIFAR_ZOO: dict[str, Callable[[Shape, int], nn.Module]] = {
    "vgg19": vgg19,
    "resnet18": resnet18,
    "preactresnet18": preactresnet18,
    "googlenet": googlenet,
    "densenet121": densenet121,
    "resnext29_2x64d": resnext29_2x64d,
    "mobilenet_v2": mobilenet_v2,
    "dpn92": dpn92,
    "senet18": senet18,
    "efficientnet_b0": efficientnet_b0,
    "regnetx_200mf": regnetx_200mf,
    "simpledla": simpledla,
}
