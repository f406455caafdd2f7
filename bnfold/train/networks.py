# torch leaves parts of its interface untyped: what comes from it is unknown to pyright.
# pyright: reportUnknownMemberType=false
"""Small networks for the digits, one for each way that people place BatchNormalization.

All take `image`, float [batch, 1, 8, 8] with values from 0 to 1, and give logits [batch, 10]; the autoencoder gives
the image back.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10

Module = TypeVar("Module", bound=nn.Module)


class ConvNet(nn.Module):
    """conv, BN, relu, three times, the last one grouped: each BN directly after the convolution that can take it in."""

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 48)) -> None:
        super().__init__()
        a, b, c = widths
        self.conv1 = nn.Conv2d(1, a, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(a)
        self.conv2 = nn.Conv2d(a, b, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(b)
        self.conv3 = nn.Conv2d(b, c, 3, padding=1, groups=4, bias=False)
        self.bn3 = nn.BatchNorm2d(c)
        self.classifier = nn.Linear(c, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(image)))
        x = functional.max_pool2d(functional.relu(self.bn2(self.conv2(x))), 2)
        x = functional.relu(self.bn3(self.conv3(x)))
        return self.classifier(x.mean((2, 3)))


class ResidualBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)); the shortcut is x, or conv and BN where sizes change."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(branch + self.shortcut(x))


class ResidualNet(nn.Module):
    """He et al. 2015 in small: a stem and three blocks, two of which halve the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.block1 = ResidualBlock(16, 16, stride=1)
        self.block2 = ResidualBlock(16, 32, stride=2)
        self.block3 = ResidualBlock(32, 32, stride=2)
        self.classifier = nn.Linear(32, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.relu(self.bn(self.conv(image)))
        x = self.block3(self.block2(self.block1(x)))
        return self.classifier(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class PostActivationNet(nn.Module):
    """conv, relu, BN: the BN can only move on, into a padded convolution, an unpadded one and through a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)  # the border of zeros is not a border of shifts
        self.bn2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 40, 3)
        self.bn3 = nn.BatchNorm2d(40)
        self.classifier = nn.Linear(40, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.bn1(functional.relu(self.conv1(image)))
        x = self.bn2(functional.relu(self.conv2(x)))
        x = self.bn3(functional.relu(self.conv3(x)))
        return self.classifier(functional.avg_pool2d(x, 6).flatten(1))


class DenseLayer(nn.Module):
    """x and, concatenated to it, conv2(relu(bn2(conv1(relu(bn1(x)))))): `growth` channels more."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 2 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * growth)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(functional.relu(self.bn1(x)))
        new = self.conv2(functional.relu(self.bn2(new)))
        return torch.cat([x, new], 1)


class DenseNet(nn.Module):
    """Huang et al. 2016 in small: BN, relu, conv, where every layer's BN reads all that the layers before it made."""

    def __init__(self, growth: int = 12) -> None:
        super().__init__()
        self.wide = nn.Conv2d(1, 8, 5, padding=2, bias=False)
        self.narrow = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.layer1 = DenseLayer(24, growth)
        self.layer2 = DenseLayer(24 + growth, growth)
        self.layer3 = DenseLayer(24 + 2 * growth, growth)
        self.bn = nn.BatchNorm2d(24 + 3 * growth)
        self.classifier = nn.Linear(24 + 3 * growth, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.cat([self.wide(image), self.narrow(image)], 1)
        x = functional.avg_pool2d(self.layer1(x), 2)
        x = self.layer3(self.layer2(x))
        return self.classifier(functional.relu(self.bn(x)).mean((2, 3)))


class SigmoidMLP(nn.Module):
    """Linear, BN, sigmoid, twice: Ioffe & Szegedy's own first example (2015, section 4.1) has this form."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.linear1 = nn.Linear(64, width)
        self.bn1 = nn.BatchNorm1d(width)
        self.linear2 = nn.Linear(width, width, bias=False)
        self.bn2 = nn.BatchNorm1d(width)
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.sigmoid(self.bn1(self.linear1(image.flatten(1))))
        x = torch.sigmoid(self.bn2(self.linear2(x)))
        return self.classifier(x)


class TokenNet(nn.Module):
    """The image's rows as 8 tokens: Linear on [B, L, C], BN on [B*L, C], a position added, the mean over tokens."""

    def __init__(self, tokens: int = 8, width: int = 48) -> None:
        super().__init__()
        self.linear1 = nn.Linear(8, width)
        self.bn1 = nn.BatchNorm1d(width)
        self.position = nn.Parameter(torch.randn(tokens, width) / 2)
        self.linear2 = nn.Linear(width, width, bias=False)
        self.bn2 = nn.BatchNorm1d(width)
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = image.flatten(1, 2)
        x = functional.relu(_over_tokens(self.bn1, self.linear1(x)) + self.position)
        x = functional.relu(_over_tokens(self.bn2, self.linear2(x)))
        return self.classifier(x.mean(1))


def _over_tokens(bn: nn.BatchNorm1d, x: Tensor) -> Tensor:
    return bn(x.reshape(-1, x.shape[2])).reshape(-1, x.shape[1], x.shape[2])


class Autoencoder(nn.Module):
    """8x8 pixels to 12 numbers and back, with BN after Conv, Linear and ConvTranspose, one of which is grouped."""

    def __init__(self, code: int = 12) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.encode = nn.Linear(32 * 2 * 2, code)
        self.bn3 = nn.BatchNorm1d(code)
        self.decode = nn.Linear(code, 32 * 2 * 2)
        self.up1 = nn.ConvTranspose2d(32, 24, 3, stride=2, padding=1, output_padding=1, groups=4, bias=False)
        self.bn4 = nn.BatchNorm2d(24)
        self.up2 = nn.ConvTranspose2d(24, 16, 4, stride=2, padding=1)
        self.bn5 = nn.BatchNorm2d(16)
        self.pixel = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(image)))
        x = functional.relu(self.bn2(self.conv2(x)))
        code = self.bn3(self.encode(x.flatten(1)))
        x = functional.relu(self.decode(code)).reshape(-1, 32, 2, 2)
        x = functional.relu(self.bn4(self.up1(x)))
        x = functional.relu(self.bn5(self.up2(x)))
        return torch.sigmoid(self.pixel(x))


class RowLSTM(nn.Module):
    """An LSTM that reads the image row by row, with BN on the pixels of a row before it and on its units after it."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm1d(8)
        self.lstm = nn.LSTM(8, width, batch_first=True)
        self.bn2 = nn.BatchNorm1d(width)
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        rows = image.flatten(1, 2)
        rows = self.bn1(rows.transpose(1, 2)).transpose(1, 2)  # BatchNorm1d has the channel in axis 1
        states, _ = self.lstm(rows)
        return self.classifier(self.bn2(states.transpose(1, 2)).mean(2))


class SeparableNet(nn.Module):
    """Howard et al. 2017 in small: depthwise conv, BN, relu6, pointwise conv, BN, relu6."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.depthwise1 = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.pointwise1 = nn.Conv2d(16, 32, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.depthwise2 = nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=32, bias=False)
        self.bn3 = nn.BatchNorm2d(32)
        self.pointwise2 = nn.Conv2d(32, 64, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(64)
        self.classifier = nn.Linear(64, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.relu6(self.bn(self.conv(image)))
        x = functional.relu6(self.bn1(self.depthwise1(x)))
        x = functional.relu6(self.bn2(self.pointwise1(x)))
        x = functional.relu6(self.bn3(self.depthwise2(x)))
        x = functional.relu6(self.bn4(self.pointwise2(x)))
        return self.classifier(x.mean((2, 3)))


class FrozenBatchNorm2d(nn.Module):
    """A BatchNorm2d in inference as arithmetic, x*scale + shift, with both of shape [1, C, 1, 1] and no parameters."""

    scale: Tensor
    shift: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1, channels, 1, 1))
        self.register_buffer("shift", torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def freeze(model: Module) -> Module:
    """`model` with each BatchNorm2d among its children replaced by the FrozenBatchNorm2d of its statistics."""
    for name, bn in list(model.named_children()):
        if not isinstance(bn, nn.BatchNorm2d):
            continue
        if bn.running_mean is None or bn.running_var is None:
            raise ValueError(f"{name} keeps no statistics (track_running_stats=False): there is nothing to freeze")
        frozen = FrozenBatchNorm2d(bn.num_features)
        scale = bn.weight.detach().double() / torch.sqrt(bn.running_var.double() + bn.eps)
        frozen.scale.copy_(scale.reshape(1, -1, 1, 1))
        frozen.shift.copy_((bn.bias.detach() - scale * bn.running_mean).reshape(1, -1, 1, 1))
        setattr(model, name, frozen)
    return model
