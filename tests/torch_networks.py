"""The networks of the papers from PyTorch's layers, each from its definition: the oracle of `dmjax.networks`.

Every module is registered under the name that our parameters have, so that they can be copied by name.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

VGG_STAGES = {"VGG11": (1, 1, 2, 2, 2), "VGG13": (2, 2, 2, 2, 2), "VGG16": (2, 2, 3, 3, 3), "VGG19": (2, 2, 4, 4, 4)}


def norm(kind, channels):
    makers = {"none": nn.Identity, "batch": nn.BatchNorm2d}
    groups = {"instance": channels, "group": 4}
    return nn.GroupNorm(groups[kind], channels) if kind in groups else makers[kind](*[channels][: kind != "none"])


def flat(x):
    """[n, D, H, W] -> [n, H * W * D], the order of our features."""
    return x.permute(0, 2, 3, 1).flatten(1) if x.ndim == 4 else x


class Oracle(nn.Module):
    """`embed` in NCHW, and the classifier."""

    def __init__(self, kind, classes, shape):
        super().__init__()
        self.kind, self.shape = kind, shape
        self.build(shape[2])
        features = self.embed(torch.zeros(2, shape[2], *shape[:2])).shape[1]
        self.classifier = nn.Linear(features, classes)

    def forward(self, x):
        return self.classifier(self.embed(x))


class MLP(Oracle):
    def build(self, channels):
        self.linear0 = nn.Linear(channels * self.shape[0] * self.shape[1], 128)
        self.linear1 = nn.Linear(128, 128)

    def embed(self, x):
        return F.relu(self.linear1(F.relu(self.linear0(flat(x)))))


class LeNet(Oracle):
    def build(self, channels):
        self.conv0 = nn.Conv2d(channels, 6, 5, padding=2 if channels == 1 else 0)
        self.conv1 = nn.Conv2d(6, 16, 5)
        side = [((s + (4 if channels == 1 else 0) - 4) // 2 - 4) // 2 for s in self.shape[:2]]
        self.linear0 = nn.Linear(16 * side[0] * side[1], 120)
        self.linear1 = nn.Linear(120, 84)

    def embed(self, x):
        for conv in (self.conv0, self.conv1):
            x = F.max_pool2d(F.relu(conv(x)), 2)
        return F.relu(self.linear1(F.relu(self.linear0(flat(x)))))


class AlexNet(Oracle):
    def build(self, channels):
        self.conv0 = nn.Conv2d(channels, 128, 5, padding=4 if channels == 1 else 2)
        self.conv1 = nn.Conv2d(128, 192, 5, padding=2)
        self.conv2 = nn.Conv2d(192, 256, 3, padding=1)
        self.conv3 = nn.Conv2d(256, 192, 3, padding=1)
        self.conv4 = nn.Conv2d(192, 192, 3, padding=1)
        for i, width in enumerate((128, 192, 256, 192, 192)):
            setattr(self, f"norm{i}", norm(self.kind, width))

    def embed(self, x):
        for i in range(5):
            x = F.relu(getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x)))
            if i in (0, 1, 4):
                x = F.max_pool2d(x, 2)
        return flat(x)


class AlexCifarNet(Oracle):
    def build(self, channels):
        self.conv0 = nn.Conv2d(channels, 64, 5, padding=2)
        self.conv1 = nn.Conv2d(64, 64, 5, padding=2)
        side = [-(-s // 4) for s in self.shape[:2]]
        self.linear0 = nn.Linear(64 * side[0] * side[1], 384)
        self.linear1 = nn.Linear(384, 192)

    def embed(self, x):
        normalised = lambda x: F.local_response_norm(x, 4, alpha=0.001 / 9, beta=0.75, k=1)  # noqa: E731
        x = normalised(F.max_pool2d(F.relu(self.conv0(x)), 3, 2, 1))
        x = F.max_pool2d(normalised(F.relu(self.conv1(x))), 3, 2, 1)
        return F.relu(self.linear1(F.relu(self.linear0(flat(x)))))


class VGG(Oracle):
    name = "VGG11"

    def build(self, channels):
        padding, i = (3 if channels == 1 else 1), 0
        for width, convolutions in zip((64, 128, 256, 512, 512), VGG_STAGES[self.name], strict=True):
            for _ in range(convolutions):
                setattr(self, f"conv{i}", nn.Conv2d(channels, width, 3, padding=padding))
                setattr(self, f"norm{i}", norm(self.kind, width))
                channels, padding, i = width, 1, i + 1

    def embed(self, x):
        i = 0
        for convolutions in VGG_STAGES[self.name]:
            for _ in range(convolutions):
                x = F.relu(getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x)))
                i += 1
            x = F.max_pool2d(x, 2)
        return flat(x)


class ResNet18(Oracle):
    average_pooling = False

    def build(self, channels):
        self.stem_conv = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.stem_norm = norm(self.kind, 64)
        channels = 64
        for stage, width in enumerate((64, 128, 256, 512)):
            for block in range(2):
                halve = stage > 0 and block == 0
                stride = 2 if halve and not self.average_pooling else 1
                name = f"stage{stage}_block{block}"
                setattr(self, f"{name}_conv0", nn.Conv2d(channels, width, 3, stride, 1, bias=False))
                setattr(self, f"{name}_conv1", nn.Conv2d(width, width, 3, 1, 1, bias=False))
                for part in ("norm0", "norm1"):
                    setattr(self, f"{name}_{part}", norm(self.kind, width))
                if halve:
                    setattr(self, f"{name}_shortcut_conv", nn.Conv2d(channels, width, 1, stride, bias=False))
                    setattr(self, f"{name}_shortcut_norm", norm(self.kind, width))
                channels = width

    def embed(self, x):
        x = F.relu(self.stem_norm(self.stem_conv(x)))
        for stage in range(4):
            for block in range(2):
                conv0, norm0, conv1, norm1 = (
                    getattr(self, f"stage{stage}_block{block}_{p}") for p in ("conv0", "norm0", "conv1", "norm1")
                )
                pooled = self.average_pooling and stage > 0 and block == 0
                main = F.relu(norm0(conv0(x)))
                main = norm1(conv1(F.avg_pool2d(main, 2) if pooled else main))
                if stage > 0 and block == 0:
                    x = getattr(self, f"stage{stage}_block{block}_shortcut_conv")(x)
                    x = F.avg_pool2d(x, 2) if pooled else x
                    x = getattr(self, f"stage{stage}_block{block}_shortcut_norm")(x)
                x = F.relu(main + x)
        return flat(x if self.average_pooling else F.avg_pool2d(x, 4))


class ResNet18AP(ResNet18):
    average_pooling = True


def create(family, kind, classes, shape):
    """The oracle of a family."""
    if family in VGG_STAGES:
        return type(family, (VGG,), {"name": family})(kind, classes, shape)
    made = {
        "MLP": MLP,
        "LeNet": LeNet,
        "AlexNet": AlexNet,
        "AlexCifarNet": AlexCifarNet,
        "ResNet18": ResNet18,
        "ResNet18_AP": ResNet18AP,
    }
    return made[family](kind, classes, shape)


def activations(oracle, images):
    """The features of an oracle, and the outputs of its relus in the order of computation, [n, H, W, D] or [n, F]."""
    outputs, relu = [], F.relu

    def noted(x):
        outputs.append(relu(x))
        return outputs[-1]

    F.relu = noted
    try:
        features = oracle.embed(images)
    finally:
        F.relu = relu
    return features, [x.permute(0, 2, 3, 1) if x.ndim == 4 else x for x in outputs]


def load(oracle, params):
    """Copies our parameters; every one of ours and every one of PyTorch's is used once."""
    names = set()
    for name, wrapped in params.items():
        module = getattr(oracle, name)
        ((kind, values),) = wrapped.items()
        with torch.no_grad():
            weight = torch.tensor(np.asarray(values["scale" if kind == "norm" else "kernel"]))
            order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[weight.ndim]
            module.weight.copy_(weight.permute(*order))
            names.add(f"{name}.weight")
            if "bias" in values:
                module.bias.copy_(torch.tensor(np.asarray(values["bias"])))
                names.add(f"{name}.bias")
    assert names == {name for name, _ in oracle.named_parameters()}
    return oracle
