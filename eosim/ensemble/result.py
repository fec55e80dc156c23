"""What an ensemble of runs returns: all replicas, and averages that say who has diverged."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from eosim import _archive
from eosim._checks import Array, real_number
from eosim.trajectory import Status

_OPTIONAL = ("t", "final_theta", "final_residuals")  # arrays that may be None


@dataclass(frozen=True, eq=False)
class Cell:
    """All replicas of one rule at one batch size; a single one where all of them are the same."""

    records: dict[str, Array]  # (n_replicas, n_records, ...) each
    stops: Array  # (n_replicas,)
    theta: Array | None  # (n_replicas, dim)
    residuals: Array | None  # (n_replicas, n)


@dataclass(frozen=True, eq=False)
class Ensemble:
    r"""Replicas of runs on a grid of rules and batch sizes.

    The leading axes of every array are (rule, batch size, replica).

    Attributes
    ----------
    rules : tuple of rules
        As text in an ensemble that was loaded: files hold no code.
    batch_sizes : tuple of int or None
    step : (n_records,) array
        Updates made; the start and the last step are always there.
    t : (n_rules, n_records) array or None
        step * lr; None if a rule chooses its own step sizes.
    records : dict of (n_rules, n_batch_sizes, n_replicas, n_records, ...) arrays
        The measurements of every replica. From its divergence on, those of a replica are +inf:
        beyond every bound, not missing. "loss" is the full-batch loss.
    stop_step : (n_rules, n_batch_sizes, n_replicas) array
        First step at which the replica's state is non-finite or beyond the bound, or its loss nan; -1
        if it survived.
    final_theta : (n_rules, n_batch_sizes, n_replicas, dim) array or None
        The last state, of diverged replicas the last one within the bound; see ``keep``.
    final_residuals : (n_rules, n_batch_sizes, n_replicas, n_samples * n_outputs) array or None
        The residuals of that state.
    message : str
        A sentence: what happened, and what to try.
    settings : dict
        What is needed to repeat the computation; ``settings["method"]`` says how each (rule, batch
        size) was computed.

    Notes
    -----
    **Survivorship.** A mean over replicas does not exist once one of them has diverged. The methods
    named ``survivor_...`` average over those that have not diverged up to that step. They are biased
    downwards: the largest losses leave the average, so it may fall while every replica grows. Read
    them beside `survivors`. `quantile` and `median` rank diverged replicas above all others and have
    no such bias. Above the mean-square threshold even a mean without divergences is dominated by
    rare replicas; compare medians or logarithmic means there.
    """

    rules: tuple[Any, ...]
    batch_sizes: tuple[int | None, ...]
    step: Array
    t: Array | None
    records: dict[str, Array]
    stop_step: Array
    final_theta: Array | None
    final_residuals: Array | None
    message: str
    settings: dict[str, Any]

    def __getitem__(self, name: str) -> Array:
        """The record ``name`` of all replicas; "sharpness" finds "sharpness.value"."""
        for key in (name, f"{name}.value"):
            if key in self.records:
                return self.records[key]
        raise KeyError(f"no record named {name!r}; this ensemble has: {', '.join(self.records)}")

    def __repr__(self) -> str:
        return (
            f"Ensemble({self.status.name}, {len(self.rules)} rules x {len(self.batch_sizes)} batch "
            f"sizes x {self.n_replicas} replicas, {len(self.step)} records: "
            f"{', '.join(self.records) or 'none'})\n  {self.message}"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one ``.npz`` file: arrays, and JSON with versions and a checksum; never a pickle.

        The file appears whole or not at all. TypeError, ValueError if a record is not an array of
        numbers.
        """
        arrays = {name: getattr(self, name) for name in ("step", "stop_step", *_OPTIONAL)}
        header = {
            "rules": [rule if isinstance(rule, str) else repr(rule) for rule in self.rules],
            "batch_sizes": list(self.batch_sizes),
            "message": self.message,
            "settings": self.settings,
        }
        _archive.write(path, "ensemble", header, _archive.packed(self.records, arrays))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ensemble:
        """Read what `save` wrote; ValueError if the file is foreign, damaged or newer."""
        return _archive.read(path, "ensemble", cls._of)

    @classmethod
    def _of(cls, header: dict[str, Any], arrays: dict[str, Array]) -> Ensemble:
        return cls(
            rules=tuple(header["rules"]),
            batch_sizes=tuple(header["batch_sizes"]),
            step=arrays["step"],
            records=_archive.records_of(arrays),
            stop_step=arrays["stop_step"],
            message=header["message"],
            settings=header["settings"],
            **{name: arrays.get(name) for name in _OPTIONAL},
        )

    @property
    def n_replicas(self) -> int:
        return self.stop_step.shape[2]

    @property
    def diverged(self) -> Array:
        """Whether each replica diverged, of shape (n_rules, n_batch_sizes, n_replicas)."""
        return self.stop_step >= 0

    @property
    def status(self) -> Status:
        """DIVERGED if any replica did, else COMPLETED."""
        return Status.DIVERGED if self.diverged.any() else Status.COMPLETED

    @property
    def survivors(self) -> Array:
        """How many replicas are left at each recorded step: (n_rules, n_batch_sizes, n_records)."""
        return self._alive.sum(axis=2)

    def survivor_mean(self, name: str = "loss") -> Array:
        """Mean over the survivors at each recorded step; +inf where there is none."""
        values, alive = self._survivors_of(name)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            mean = np.where(alive, values, 0).sum(axis=2) / alive.sum(axis=2)
        return np.where(alive.any(axis=2), mean, np.inf)

    def survivor_standard_error(self, name: str = "loss") -> Array:
        """Standard error of `survivor_mean`; +inf where fewer than two survive."""
        values, alive = self._survivors_of(name)
        count = alive.sum(axis=2)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            mean = self.survivor_mean(name)[:, :, None]
            squares = np.where(alive, (values - mean) ** 2, 0).sum(axis=2)
            error = np.sqrt(squares / (count - 1) / count)
        return np.where(count > 1, error, np.inf)

    def survivor_log_mean(self, name: str = "loss") -> Array:
        """exp of the mean logarithm over the survivors, of positive records; +inf for none."""
        values, alive = self._survivors_of(name)
        with np.errstate(divide="ignore"):
            logarithms = np.log(np.where(alive, values, 1)).sum(axis=2)
        return np.where(
            alive.any(axis=2), np.exp(logarithms / np.maximum(alive.sum(axis=2), 1)), np.inf
        )

    def quantile(self, q: float, name: str = "loss") -> Array:
        """The q-quantile over **all** replicas, diverged ones ranked highest.

        Interpolated linearly between order statistics; +inf where it falls on a diverged replica.

        Raises
        ------
        TypeError, ValueError
            If q is not in [0, 1].
        """
        q = real_number("q", q)
        if not 0 <= q <= 1:
            raise ValueError(f"q must be in [0, 1], got {q}")
        ordered = np.sort(self[name], axis=2)
        position = q * (self.n_replicas - 1)
        below, above = math.floor(position), math.ceil(position)
        lower, upper = ordered[:, :, below], ordered[:, :, above]
        if below == above:
            return lower
        finite = np.isfinite(upper)  # inf - inf is no number
        gap = np.where(finite, upper, 0) - np.where(finite, lower, 0)
        return np.where(finite, lower + (position - below) * gap, upper)

    def median(self, name: str = "loss") -> Array:
        """The 1/2-`quantile`."""
        return self.quantile(0.5, name)

    @property
    def _alive(self) -> Array:
        stop = self.stop_step[..., None]
        return (stop < 0) | (self.step < stop)

    def _survivors_of(self, name: str) -> tuple[Array, Array]:
        """The record, and which of its entries belong to survivors, in the same shape."""
        values = self[name]
        extra = (1,) * (values.ndim - 4)
        return values, np.broadcast_to(
            self._alive.reshape(*self._alive.shape, *extra), values.shape
        )
