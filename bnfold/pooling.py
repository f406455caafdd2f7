"""The two formulas of population statistics, for numpy's arrays, torch's tensors and plain numbers alike.

Chan, Golub & LeVeque 1979: d = m_b - m_a, n = n_a + n_b, m = m_a + d*n_b/n, M2 = M2_a + M2_b + d^2*n_a*n_b/n
E[dy^2]/gamma^2 = var_p*(1/s_e - 1/s_p)^2 + ((m_p - m_e)/s_e)^2 for stored (m_e, s_e) and exact (m_p, var_p, s_p)
"""

from __future__ import annotations

from typing import Any

__all__ = ["output_error", "pooled"]


def pooled(a: tuple[Any, Any, Any], b: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    """(n, mean, M2) of two sets of values together, of any type that has arithmetic; a set may be empty."""
    n = a[0] + b[0]
    share = b[0] / (n + (n == 0))
    delta = b[1] - a[1]
    return n, a[1] + delta * share, a[2] + b[2] + delta * delta * (a[0] * share)


def output_error(stored_mean: Any, stored_inverse: Any, mean: Any, variance: Any, inverse: Any) -> Any:
    """The mean square by which x normalized by the stored statistics is off. inverse: 1/sqrt(var + eps) of each."""
    spread, shift = stored_inverse - inverse, (mean - stored_mean) * stored_inverse
    return variance * (spread * spread) + shift * shift
