"""Fourier transforms: DFT and STFT. Complex numbers are a last axis of two; a last axis of one is real.

DFT   X[k] = Σ x[n]·exp(−2πi·k·n/N), with N in the denominator and the other sign for the inverse
"""

import numpy as np

from bnfold.reference.node import Array, Kernel, Node


def _complex(x: Array) -> Array:
    return x[..., 0] + 1j * x[..., 1] if x.shape[-1] == 2 else x[..., 0]


def _pairs(x: Array, like: Array) -> Array:
    return np.stack([np.real(x), np.imag(x)], axis=-1).astype(like.dtype, copy=False)


def dft(node: Node, x: Array, length: Array | None = None, axis: Array | None = None) -> tuple[Array]:
    """`axis` is an attribute before opset 20, 1 by default, then an input, -2 by default."""
    default = node.get("axis", 1) if node.since < 20 else -2
    along = (default if axis is None else int(axis.reshape(-1)[0])) % x.ndim
    onesided, signal = bool(node["onesided"]), _complex(x)
    count = None if length is None else int(length.reshape(-1)[0])
    if node["inverse"]:
        if onesided:
            return (np.fft.irfft(signal, n=count, axis=along)[..., None].astype(x.dtype, copy=False),)
        return (_pairs(np.fft.ifft(signal, n=count, axis=along), x),)
    spectrum = np.fft.fft(signal, n=count, axis=along)
    if onesided:
        spectrum = spectrum[(slice(None),) * along + (slice(0, spectrum.shape[along] // 2 + 1),)]
    return (_pairs(spectrum, x),)


def stft(node: Node, x: Array, step: Array, window: Array | None = None, length: Array | None = None) -> tuple[Array]:
    """x [N, T, 1 or 2], or [N, T], as [N, frames, frequencies, 2]."""
    signal = _complex(x) if x.ndim == 3 else x
    if length is not None:
        size = int(length.reshape(-1)[0])
    else:
        size = signal.shape[1] if window is None else len(window)
    by = int(step.reshape(-1)[0])
    frames = np.stack([signal[:, k : k + size] for k in range(0, signal.shape[1] - size + 1, by)], axis=1)
    spectrum = np.fft.fft(frames if window is None else frames * window, axis=-1)
    return (_pairs(spectrum[..., : size // 2 + 1] if node["onesided"] else spectrum, x),)


KERNELS: dict[str, Kernel] = {"DFT": dft, "STFT": stft}
