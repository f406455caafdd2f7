"""PyTorch modules and exported programs, folded by the same laws and the same search as an ONNX model.

    result = pytorch.fold(module, args)          # ModuleFold: .module, .report, .check()
    program = pytorch.fold_program(exported)     # torch.export.ExportedProgram in and out

Needs torch (`pip install 'bnfold[torch]'`); nothing else in the package imports it.
"""

from .module import ModuleFold, fold, like_folded
from .onnx_export import Exported, export
from .program import ProgramFold, fold_exported, fold_program
from .recipe import ModuleReport, Recipe

__all__ = [
    "Exported",
    "ModuleFold",
    "ModuleReport",
    "ProgramFold",
    "Recipe",
    "export",
    "fold",
    "fold_exported",
    "fold_program",
    "like_folded",
]
