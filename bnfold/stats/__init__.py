"""The statistics that a fold relies on, in ONNX files: how far they are from the data's, and the data's for theirs.

drift("model.onnx", ["samples.npz"]).layers             refresh("model.onnx", ["samples.npz"]).save("fresh.onnx")
"""

from .refreshing import Measured, Refreshed, drift, refresh
from .staleness import Drift

__all__ = ["Drift", "Measured", "Refreshed", "drift", "refresh"]
