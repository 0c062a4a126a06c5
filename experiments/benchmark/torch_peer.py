"""The same algorithm in PyTorch, written as its users write it: the peer that `python -m dmjax.benchmark` times.

    python -m dmjax.benchmark --case cifar10-ipc10 --peer torch

Distribution matching class by class, with a fresh network at every step, Siamese augmentation and SGD; gradient
matching likewise; and the training that evaluates a set. A process of its own: it is started with a case as JSON, says
what it is, and answers every number of iterations that it reads from standard input with the seconds that they took.
Networks go through `torch.compile` where that is faster, which is tried first; it cannot differentiate twice, so that
gradient matching does without. Only PyTorch is needed.
"""

import json
import math
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

GROUPS = ("color", "crop", "cutout", "flip", "scale", "rotate")


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, instance norm, relu and 2x2 average pooling; images [n, D, H, W]."""

    def __init__(self, channels, height, width, num_classes, features=128, depth=3):
        super().__init__()
        layers = []
        for block in range(depth):
            one_channel = block == 0 and channels == 1
            height, width = height + 4 * one_channel, width + 4 * one_channel
            layers += [
                nn.Conv2d(channels, features, 3, padding=3 if one_channel else 1),
                nn.GroupNorm(features, features),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2),
            ]
            channels, height, width = features, height // 2, width // 2
        self.features = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.classifier = nn.Linear(channels * height * width, num_classes)

    def embed(self, x):
        # Faster by a tenth on a CPU than PyTorch's default layout.
        return self.features(x.contiguous(memory_format=torch.channels_last)).flatten(1)

    def forward(self, x):
        return self.classifier(self.embed(x))

    def renew(self):
        """Draws all parameters anew: a fresh network, whose compiled code stays."""
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()


def augment(x, group, u):
    """Applies one group to images [n, D, H, W]; u [n or 1, 3] are uniform numbers, one row an image or one for all."""
    n, _, height, width = x.shape
    u = u.to(x.device)
    zero, one = torch.zeros(len(u), device=x.device), torch.ones(len(u), device=x.device)
    if group == "color":
        brightness, saturation, contrast = (u[:, i].view(-1, 1, 1, 1) for i in range(3))
        x = x + (brightness - 0.5)
        mean = x.mean(1, keepdim=True)
        x = (x - mean) * (2 * saturation) + mean
        mean = x.mean((1, 2, 3), keepdim=True)
        return (x - mean) * (contrast + 0.5) + mean
    if group == "flip":
        return torch.where((u[:, 0] < 0.5).view(-1, 1, 1, 1), x.flip(3), x)
    if group in ("scale", "rotate"):
        if group == "scale":
            low, high = 1 / 1.2, 1.2
            rows = [[low + (high - low) * u[:, 0], zero, zero], [zero, low + (high - low) * u[:, 1], zero]]
        else:
            angle = (u[:, 0] - 0.5) * 2 * 15 * math.pi / 180
            rows = [[angle.cos(), -angle.sin(), zero], [angle.sin(), angle.cos(), zero]]
        theta = torch.stack([torch.stack(row, 1) for row in rows], 1).expand(n, 2, 3)
        return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=True), align_corners=True)
    row, column = torch.arange(height, device=x.device).view(1, -1, 1), torch.arange(width, device=x.device)
    if group == "crop":
        reach = [int(side * 0.125 + 0.5) for side in (height, width)]
        shift = [(u[:, i] * (2 * reach[i] + 1)).floor().long() - reach[i] for i in range(2)]
        row = (row + shift[0].view(-1, 1, 1) + reach[0]).expand(n, height, width)
        column = (column.view(1, 1, -1) + shift[1].view(-1, 1, 1) + reach[1]).expand(n, height, width)
        padded = F.pad(x, (reach[1], reach[1], reach[0], reach[0])).permute(0, 2, 3, 1)
        return padded[torch.arange(n, device=x.device).view(-1, 1, 1), row, column].permute(0, 3, 1, 2)
    assert group == "cutout"
    keep = one.view(-1, 1, 1)
    start, side = [], [int(s * 0.5 + 0.5) for s in (height, width)]
    for i, s in enumerate((height, width)):
        start.append(((u[:, i] * (s + 1 - side[i] % 2)).floor() - side[i] // 2).view(-1, 1, 1))
    inside_rows = (row >= start[0]) & (row < start[0] + side[0])
    inside_columns = (column.view(1, 1, -1) >= start[1]) & (column.view(1, 1, -1) < start[1] + side[1])
    return x * (keep - (inside_rows & inside_columns).float()).unsqueeze(1)


def class_loss(embed, real, synthetic, group, u):
    """Squared distance between the mean embeddings of augmented real and synthetic images; one function for each."""
    with torch.no_grad():
        target = embed[0](augment(real, group, u)).float().mean(0)
    return ((target - embed[1](augment(synthetic, group, u)).float().mean(0)) ** 2).sum()


def condense_loop(case, device, compiled):
    """Returns `run(iterations)`: the loop of the paper's Algorithm 1 on random data."""
    classes, ipc, images = case["num_classes"], case["ipc"], case["images_per_class"]
    height, width, channels = case["image_shape"]
    real = [torch.randint(0, 256, (images, channels, height, width), dtype=torch.uint8) for _ in range(classes)]
    real = [r.to(device) for r in real]
    synthetic = torch.randn(classes, ipc, channels, height, width, device=device, requires_grad=True)
    optimizer = torch.optim.SGD([synthetic], lr=1.0, momentum=0.5)
    network = ConvNet(channels, height, width, classes, case["width"], case["depth"]).to(device)
    network.requires_grad_(False)
    embed = [torch.compile(network.embed, dynamic=False) if compiled else network.embed for _ in range(2)]

    def run(iterations):
        for _ in range(iterations):
            network.renew()
            loss = torch.zeros((), device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=case["precision"] == "bfloat16"):
                for c in range(classes):
                    chosen = torch.randperm(images, device=device)[: case["batch_real"]]
                    batch = (real[c][chosen].float() / 255 - 0.5) / 0.25
                    group = GROUPS[int(torch.randint(len(GROUPS), ()))]
                    loss = loss + class_loss(embed, batch, synthetic[c], group, torch.rand(1, 3))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def gradient_distance(network, real, synthetic, label):
    """Sum over layers and their outputs of one minus the cosine between the gradients on real and synthetic images."""
    parameters = list(network.parameters())

    def gradients(images, **options):
        loss = F.cross_entropy(network(images), torch.full((len(images),), label, device=images.device))
        return torch.autograd.grad(loss, parameters, **options)

    total = 0.0
    for target, own in zip(gradients(real), gradients(synthetic, create_graph=True), strict=True):
        if target.dim() > 1:  # biases and norms do not count
            a, b = target.detach().flatten(1), own.flatten(1)
            total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    return total


def matching_loop(case, device, compiled):
    """Returns `run(iterations)`: gradient matching (DC, DSA) on random data; an iteration is one network."""
    classes, ipc, images = case["num_classes"], case["ipc"], case["images_per_class"]
    height, width, channels = case["image_shape"]
    outer, inner = (case["method_settings"][f"gradient.{name}"] for name in ("outer", "inner"))
    real = [torch.randint(0, 256, (images, channels, height, width), dtype=torch.uint8) for _ in range(classes)]
    real = [r.to(device) for r in real]
    synthetic = torch.randn(classes, ipc, channels, height, width, device=device, requires_grad=True)
    optimizer = torch.optim.SGD([synthetic], lr=0.1, momentum=0.5)
    labels = torch.arange(classes, device=device).repeat_interleave(ipc)

    def augmented(n):
        if case["method"] == "dc":
            return lambda x: x
        group, u = GROUPS[int(torch.randint(len(GROUPS), ()))], torch.rand(n, 3)
        return lambda x: augment(x, group, u)

    def train(network, learner):
        own = synthetic.detach().flatten(0, 1)
        for _ in range(inner):
            for chosen in torch.randperm(len(own), device=device).split(case["batch_size"]):
                loss = F.cross_entropy(network(augmented(len(chosen))(own[chosen])), labels[chosen])
                learner.zero_grad()
                loss.backward()
                learner.step()

    def run(iterations):
        for _ in range(iterations):
            network = ConvNet(channels, height, width, classes, case["width"], case["depth"]).to(device)
            learner = torch.optim.SGD(network.parameters(), lr=0.01)
            for step in range(outer):
                loss = torch.zeros((), device=device)
                for c in range(classes):
                    chosen = torch.randperm(images, device=device)[: case["batch_real"]]
                    batch = (real[c][chosen].float() / 255 - 0.5) / 0.25
                    siamese = augmented(1)
                    loss = loss + gradient_distance(network, siamese(batch), siamese(synthetic[c]), c)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if step < outer - 1:
                    train(network, learner)

    return run


def training_loop(case, device, compiled):
    """Returns `run(steps)`: training of a network on the small set, with a new network at the start."""
    classes, ipc = case["num_classes"], case["ipc"]
    height, width, channels = case["image_shape"]
    n, batch = classes * ipc, min(case["batch_size"], classes * ipc)
    images = torch.randn(n, channels, height, width, device=device)
    labels = torch.arange(classes, device=device).repeat_interleave(ipc)
    network = ConvNet(channels, height, width, classes, case["width"], case["depth"]).to(device)
    forward = torch.compile(network, dynamic=False) if compiled else network

    def run(steps):
        network.renew()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        order = torch.zeros(0, dtype=torch.long)
        for _ in range(steps):
            if not len(order):
                order = torch.randperm(n, device=device)
            chosen, order = order[:batch], order[batch:]
            group = GROUPS[int(torch.randint(len(GROUPS), ()))]
            with torch.autocast(device.type, torch.bfloat16, enabled=case["precision"] == "bfloat16"):
                logits = forward(augment(images[chosen], group, torch.rand(len(chosen), 3)))
                loss = F.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def main():
    case = json.loads(sys.argv[1])
    device = torch.device("cuda" if torch.cuda.is_available() and case["backend"] != "cpu" else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = case["precision"] == "tf32"
    loops = {"dm": condense_loop, "dc": matching_loop, "dsa": matching_loop}
    make = training_loop if case["kind"] == "evaluate" else loops[case["method"]]
    run, compiled = make(case, device, False), make is not matching_loop
    eager = min(seconds(run, 1, device) for _ in range(3))
    if compiled:
        try:
            other = make(case, device, True)
            compiled = min(seconds(other, 1, device) for _ in range(3)) < eager
        except Exception:  # without a compiler of C++ or a GPU that is new enough, of many kinds
            compiled = False
    run = other if compiled else run
    print(json.dumps({"torch": torch.__version__, "device": str(device), "compiled": compiled}), flush=True)
    for line in sys.stdin:
        print(seconds(run, int(line), device), flush=True)


def seconds(run, iterations, device):
    """How long so many iterations take."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(iterations)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
