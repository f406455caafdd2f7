"""Model files: `load` reads and validates one, `save` writes one atomically, `copy` takes one along unchanged.

load(path) -> ModelFile        the skeleton; external data stays on disk until a tensor is asked for
save(model, path)              path, and path.data when some tensors are external; both or neither
"""

from ..hashing import digest
from .external import read_external
from .formats import format_of
from .loading import ModelFile, load
from .writing import Staging, copy, materialized, save

__all__ = ["ModelFile", "Staging", "copy", "digest", "format_of", "load", "materialized", "read_external", "save"]
