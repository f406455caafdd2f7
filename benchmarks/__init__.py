"""Whole-process measurements beside a peer, in one run: `python -m benchmarks fold`."""
