# torch leaves parts of its interface untyped, and scikit-learn all of it: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false, reportUnknownVariableType=false
"""scikit-learn's digits, and which small networks are trained on them: `ARCHITECTURES`.

models/ holds each one trained and exported, under the same name; what they are is in networks.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .networks import (
    Autoencoder,
    ConvNet,
    DenseNet,
    PostActivationNet,
    ResidualNet,
    RowLSTM,
    SeparableNet,
    SigmoidMLP,
    TokenNet,
    freeze,
)

TEST_IMAGES = 450

Module = TypeVar("Module", bound=nn.Module)


class Digits(NamedTuple):
    """Images float32 [n, 1, 8, 8] from 0 to 1 and their labels int64 [n], split into two parts."""

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]


def load_digits() -> Digits:
    """scikit-learn's 1,797 digits, always split alike: 1,347 to train on, 450 held out with every class in its share.

    Raises ModuleNotFoundError without scikit-learn, which brings the data along.
    """
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    pixels, labels = datasets.load_digits(return_X_y=True)
    images = (np.asarray(pixels, np.float32) / 16).reshape(-1, 1, 8, 8)  # a pixel counts from 0 to 16
    parts: list[Any] = train_test_split(
        images, np.asarray(labels, np.int64), test_size=TEST_IMAGES, stratify=labels, random_state=0
    )
    train_images, test_images, train_labels, test_labels = parts
    return Digits(train_images, train_labels, test_images, test_labels)


def roughen(model: Module) -> Module:
    """`model` with BNs far from the identity at the start: scales from .5 to 1.5, one in eight of them negative.

    Networks this small train for seconds, and their BNs would stay close to where torch starts them (1 and 0). Rows of
    the weights get unequal lengths too. Draws from torch's global generator.
    """
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            sign = torch.where(torch.rand(layer.num_features) < 1 / 8, -1.0, 1.0)
            layer.weight.data.copy_(sign * (0.5 + torch.rand(layer.num_features)))
            layer.bias.data.normal_(std=0.3)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            rows = torch.exp(torch.randn(layer.weight.shape[0]) / 3)
            layer.weight.data *= rows.reshape(-1, *[1] * (layer.weight.dim() - 1))
    return model


@dataclass(frozen=True)
class Architecture:
    """A network in two states: as it is trained, and as it is exported.

    `what` says in words how it places BN, and `folding` where those BNs go. `build` makes it with fresh weights from
    torch's global generator; `deploy` turns the trained one, in place, into what is exported.
    """

    what: str
    folding: str
    build: Callable[[], nn.Module]
    deploy: Callable[[nn.Module], nn.Module] = lambda model: model
    output: str = "logits"  # "reconstruction" where the image is the target

    def deployed(self) -> nn.Module:
        """The module that is exported, in evaluation mode with fresh weights; a file in models/ has its names."""
        return self.deploy(self.build().eval())


ARCHITECTURES = {
    "conv": Architecture("plain: conv, BN, relu; one conv is grouped", "all 3 up, into the convs", ConvNet),
    "residual": Architecture(
        "residual: conv, BN on both branches of an Add", "all 9 up, into the convs of both branches", ResidualNet
    ),
    "postact": Architecture(
        "post-activation: conv, relu, BN, conv",
        "2 of 3 down: into the conv without padding, through the pool into the classifier; "
        "before the padded conv it stays, `PADDED`",
        PostActivationNet,
    ),
    "dense": Architecture(
        "pre-activation: BN, relu, conv over concatenated layers",
        "4 of 7 up: those between two convs, and one of the four after a Concat, through it into the convs "
        "and its inverse into the other three; these stay, for a relu reads the same value",
        DenseNet,
    ),
    "mlp": Architecture("Linear, BN, sigmoid", "both up, into the Linears", SigmoidMLP),
    "tokens": Architecture(
        "Linear on [B, L, C], BN on [B*L, C]", "both up, through the Reshape into the Linears", TokenNet
    ),
    "autoencoder": Architecture(
        "conv, Linear or ConvTranspose, BN; one ConvTranspose is grouped",
        "all 5 up, into convs, Linear and ConvTransposes",
        Autoencoder,
        output="reconstruction",
    ),
    "lstm": Architecture(
        "BN before and after an LSTM",
        "both down: through Transposes into the LSTM, through the mean into the classifier",
        RowLSTM,
    ),
    "frozen": Architecture(
        "decomposed: conv, Mul, Add, relu", "all 3 pairs up, into the convs", lambda: ConvNet((8, 16, 24)), freeze
    ),
    "float16": Architecture(
        "in float16: depthwise or pointwise conv, BN, relu6", "all 5 up, into the convs", SeparableNet, nn.Module.half
    ),
}
