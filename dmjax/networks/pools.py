"""Pools of networks on which a synthetic set is tried, by the literature's short names.

`cross` is the authors' for cross-architecture evaluation (batch norm throughout; Table 3 of Zhao & Bilen leaves out its
second network), `mixed` that of the papers before it, and the others vary one option of the ConvNet each.
"""

from collections.abc import Mapping, Sequence

POOLS: Mapping[str, Sequence[str]] = {
    "cross": ("ConvNetBN", "ConvNetASwishBN", "AlexNetBN", "VGG11BN", "ResNet18BN"),
    "mixed": ("MLP", "ConvNet", "LeNet", "AlexNet", "VGG11", "ResNet18"),
    "width": ("ConvNetW32", "ConvNetW64", "ConvNetW128", "ConvNetW256"),
    "depth": ("ConvNetD1", "ConvNetD2", "ConvNetD3", "ConvNetD4"),
    "activation": ("ConvNetAS", "ConvNetAR", "ConvNetAL", "ConvNetASwish"),
    "pooling": ("ConvNetNP", "ConvNetMP", "ConvNetAP"),
    "norm": ("ConvNetNN", "ConvNetBN", "ConvNetLN", "ConvNetIN", "ConvNetGN"),
}
