"""Compiled ensembles of SGD on quadratic regression: which form is cheapest, and each form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eosim._checks import Array
from eosim._threads import share
from eosim.discrete import DIVERGENCE_FACTOR
from eosim.ensemble.result import Cell
from eosim.problems.quadratic_regression import QuadraticRegression
from eosim.sampling import batch_blocks

# Our choice: most replicas in one group. More share more, until their states leave the caches.
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class QuadraticEnsemble:
    """The replicas' starts and records, and one method per form.

    Every form treats a replica in an order of operations that does not depend on the others: chunks
    and threads change no bit.
    """

    problem: QuadraticRegression
    theta0: Array  # (dim,) or (n_replicas, dim)
    n_replicas: int
    record_steps: Array  # (n_records,), the last one is n_steps
    sampling: str
    keep: tuple[str, ...]
    threads: int

    def form(self, batch_size: int | None, every: int, method: str) -> str:
        """Triangles for mini-batches, matrix products for all samples (``batch_size`` None)."""
        if batch_size is not None:
            return "triangles"
        return "generic" if self.theta0.ndim == 1 else "products"  # from one start: one path

    def triangles(self, rule: tuple[float, ...], batch_size: int, keys: Array) -> Cell:
        """A mini-batch step takes the products with the triangles of the samples drawn."""
        from eosim._kernels.quadratic_regression import batch_descent

        size = (self.problem.n_samples, batch_size, self.sampling)

        def descend(own: slice, states: Array, limit: Array, losses: Array, stops: Array) -> None:
            velocities = np.zeros_like(states)
            for batches in batch_blocks(keys[own], *size, 0, int(self.record_steps[-1])):
                record = np.searchsorted(self.record_steps, batches.first, side="right")
                batch_descent(
                    *self._data, states, velocities, *batches, rule, self.record_steps, record,
                    limit, losses, stops,
                )  # fmt: skip
                if (stops >= 0).all():
                    break

        return self._cell(descend)

    def products(self, rule: tuple[float, ...], batch_size: None, keys: Array) -> Cell:
        """A step on all samples takes a matrix product per sample and block of replicas."""
        from eosim._kernels.quadratic_regression import full_descent

        def descend(own: slice, states: Array, limit: Array, losses: Array, stops: Array) -> None:
            full_descent(*self._data, states, rule, self.record_steps, limit, losses, stops)

        return self._cell(descend)

    @property
    def _data(self) -> tuple[Array, Array, Array]:
        problem = self.problem
        return problem.tensor, problem.initial_residuals, problem.initial_jacobian

    def _cell(self, descend: Callable[[slice, Array, Array, Array, Array], None]) -> Cell:
        """All replicas, in as few groups as there are threads: those of a group share what they read."""
        shape = (self.n_replicas, self.problem.dim)
        # Not in the order of the broadcast, where a replica's entries lie apart.
        states = np.array(np.broadcast_to(self.theta0, shape), order="C")
        limit = DIVERGENCE_FACTOR * (1 + np.abs(states).max(axis=1))
        losses = np.full((self.n_replicas, len(self.record_steps)), np.inf)
        stops = np.full(self.n_replicas, -1)
        size = min(_CHUNK, -(-self.n_replicas // self.threads))
        groups = range(0, self.n_replicas, size)

        def task(some: slice) -> None:
            for first in groups[some]:
                own = slice(first, first + size)
                descend(own, states[own], limit[own], losses[own], stops[own])

        share(task, len(groups), self.threads)
        residuals = None
        if "residuals" in self.keep:
            residuals = np.array([self.problem.residuals(theta)[:, 0] for theta in states])
        return Cell({"loss": losses}, stops, states if "theta" in self.keep else None, residuals)
