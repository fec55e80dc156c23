"""Sums over modes of which some are beyond the largest float: by logarithms, entry by entry."""

from __future__ import annotations

import numpy as np

from eosim._checks import Array


def sum_modes(vectors: Array, phases: Array, logs: Array) -> tuple[Array, Array]:
    r"""Phases and logarithms of :math:`\sum_i V_{ji}\, p_{ik}\, e^{l_{ik}}`.

    For real V; ``phases`` are signs, complex numbers of modulus 1, or 0; ``logs`` are finite. Every
    entry is scaled by its own largest term, so that a mode without weight adds 0 to it, however large.
    """
    signs = np.sign(vectors)
    with np.errstate(divide="ignore"):
        sizes = np.log(np.abs(vectors))  # -inf: no part
    sums = np.zeros((len(vectors), phases.shape[1]), dtype=phases.dtype)
    scales = np.zeros(sums.shape)
    for k, (phase, log) in enumerate(zip(phases.T, logs.T, strict=True)):
        terms = np.where(phase == 0, -np.inf, sizes + log)
        largest = terms.max(axis=1)
        scales[:, k] = np.where(np.isneginf(largest), 0.0, largest)
        sums[:, k] = (signs * np.exp(terms - scales[:, [k]])) @ phase
    modulus = np.abs(sums)
    scales += np.log(np.where(modulus == 0, 1.0, modulus))
    return sums / np.where(modulus == 0, 1.0, modulus), scales


def from_logs(phases: Array, logs: Array) -> Array:
    """phases e^logs; infinite, with its sign, where that is beyond the largest float."""
    if np.iscomplexobj(phases):
        # part by part: a complex product makes inf * 0
        result = np.empty(phases.shape, dtype=complex)
        result.real, result.imag = from_logs(phases.real, logs), from_logs(phases.imag, logs)
        return result
    with np.errstate(over="ignore"):
        root = np.exp(logs / 2)  # twice: a part may be finite where e^logs is not
        return np.where(phases == 0, 0.0, np.where(phases == 0, 1.0, phases) * root * root)


def exponential_sum(vectors: Array, exponents: Array, weights: Array) -> Array:
    r""":math:`\sum_i e^{x_{ti}} w_i V_{ji}`, of shape (n_times, dim), for real weights and V.

    Infinite where the sum is beyond the largest float, and only there.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        result = (np.exp(exponents) * weights) @ vectors.T
    beyond = ~np.isfinite(result).all(axis=1)
    if beyond.any():
        x = exponents[beyond].T
        # finite also where a time times a rate was not
        logs = np.clip(x.real, -1e300, 1e300)
        with np.errstate(divide="ignore"):
            logs = logs + np.where(weights == 0, 0.0, np.log(np.abs(weights)))[:, None]
        turns = np.exp(1j * x.imag) if np.iscomplexobj(x) else np.ones(x.shape)
        phases = np.sign(weights)[:, None] * turns
        result[beyond] = from_logs(*sum_modes(vectors, phases, logs)).T
    return result
