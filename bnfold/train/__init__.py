"""Training with BatchNormalization, for the networks in models/: what a fold relies on is made here.

The definitions are in bnfold.train.digits, which needs torch (`pip install 'bnfold[torch]'`) and, for its data,
scikit-learn. This module imports neither.
"""
