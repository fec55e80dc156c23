"""`report`: everything that is known about SGD's stability at one point, as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from eosim import measure
from eosim._checks import Interval, integer, interface, real_number, state_vector
from eosim.sampling import batch_moments
from eosim.stability.bounds import Bound, lr_bounds
from eosim.stability.mean_square import critical_lr, growth_rate
from eosim.stability.tangent_kernel import TangentKernel, tangent_kernel

# Our choice, by time on one core: up to this many residuals (n n_outputs) thresholds are exact (a few
# seconds), and up to the second the NTK is decomposed at all (half a minute).
EXACT_SIZE = 500
KERNEL_SIZE = 2000
# Our choice: a residual of this root mean square, for targets of size one, counts as zero.
INTERPOLATES = 1e-6
# Our choice: closer to the threshold than this, relatively, the verdict is "marginal".
MARGINAL = 1e-9
# Our choice: a gradient that moves theta, at the rate 1/sharpness, by more than this part of its size is
# that of no stationary point.
STATIONARY = 1e-3
# Our choice: curvatures that differ by less than this part of the largest count as equal, or as zero.
SAME_CURVATURE = 1e-6


@dataclass(frozen=True)
class StabilityReport:
    """What `report` found; ``str`` gives the table.

    Attributes
    ----------
    lr, batch_size, sampling, momentum
        As asked for.
    residual : float or None
        Root mean square of |e_i|; None if the problem has no residuals.
    gradient_norm : float
    sharpness : Eigenvalue
        Of the Hessian.
    trace, frobenius : Estimate
        Of the Gauss-Newton matrix where the NTK was formed, else of the Hessian.
    growth_rate : float or None
        Of the second moment per step.
    bounds : dict of Bound
        By name; the exact threshold, where it could be had, under "exact".
    verdict : str
        "stable", "unstable", "marginal" or "undecided".
    binding : str
        "edge of stability", "stochastic edge" or "unknown": which limits the learning rate.
    notes : tuple of str
        What the numbers rest on, and what could not be had and why.
    """

    lr: float
    batch_size: int
    sampling: str
    momentum: float
    residual: float | None
    gradient_norm: float
    sharpness: measure.Eigenvalue
    trace: measure.Estimate
    frobenius: measure.Estimate
    growth_rate: float | None
    bounds: dict[str, Bound]
    verdict: str
    binding: str
    notes: tuple[str, ...]

    def margin(self, name: str) -> float:
        """value / lr - 1 of a bound: positive where lr is below it."""
        if name not in self.bounds:
            raise KeyError(f"no bound named {name!r}; this report has: {', '.join(self.bounds)}")
        return self.bounds[name].value / self.lr - 1

    def __str__(self) -> str:
        momentum = f", momentum {self.momentum:g}" if self.momentum else ""
        lines = [
            f"SGD at lr {self.lr:g}, batch size {self.batch_size} ({self.sampling}){momentum}: "
            f"{self.verdict}",
            "",
        ]
        residual = "not known" if self.residual is None else f"{self.residual:.4g}"
        growth = "not known" if self.growth_rate is None else f"{self.growth_rate:.6g}"
        unsure = "" if self.sharpness.converged else " (not converged)"
        for label, text in (
            ("residual, root mean square", residual),
            ("|gradient|", f"{self.gradient_norm:.4g}"),
            ("sharpness", f"{self.sharpness.value:.6g}{unsure}"),
            ("trace", _shown(self.trace)),
            ("Frobenius norm", _shown(self.frobenius)),
            ("growth of E|e|^2 per step", growth),
            ("limited by", self.binding),
        ):
            lines.append(f"  {label:<28}{text}")
        lines += ["", f"  {'bound':<22}{'learning rate':>14}  {'kind':<12}{'lr':<8}{'margin':>10}"]
        for name, bound in self.bounds.items():
            margin = self.margin(name)
            percent = f"{100 * margin:+.1f} %"
            if not margin < 99:  # a hundredfold needs no percentages
                percent = f"x {1 + margin:.3g}" if math.isfinite(margin) else "no limit"
            place = "below" if margin > 0 else "above"
            lines.append(
                f"  {name:<22}{bound.value:>14.6g}  {bound.kind:<12}{place:<8}{percent:>10}"
            )
        return "\n".join([*lines, "", *(f"  note: {note}" for note in self.notes)]).rstrip()


def report(
    problem: Any,
    theta: Any,
    lr: float,
    batch_size: int,
    *,
    sampling: str = "without_replacement",
    momentum: float = 0.0,
) -> StabilityReport:
    """Is SGD stable at this minimum, by how much, and according to which bound?

    From the NTK of a least-squares problem, exact up to `EXACT_SIZE` residuals; up to `KERNEL_SIZE`
    without the exact threshold; beyond, and for problems with products only, from Hessian-vector
    products with standard errors. Whatever is missing is named in ``notes``.

    Parameters
    ----------
    problem : Problem
        With ``residuals`` and ``jacobian`` (or ``ntk``) for exact answers; ``gradient`` and ``hvp``
        suffice for the edge of stability.
    theta : (dim,) array
        The minimum: what is said holds for zero residual, where the Hessian is J^T J / n.
    lr, batch_size, sampling, momentum
        Of heavy-ball SGD. A problem without ``n_samples`` is understood with replacement only.

    Returns
    -------
    StabilityReport

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the Hessian is not finite or zero at theta.

    Examples
    --------
    >>> import numpy as np, eosim
    >>> data = eosim.LinearRegression(2 * np.eye(4), np.ones(4))
    >>> found = eosim.stability.report(data, np.full(4, 0.5), lr=0.4, batch_size=1)
    >>> found.verdict, found.binding, found.bounds["exact"].value
    ('stable', 'stochastic edge', 0.5)
    """
    interface("problem", problem, ("dim", "gradient", "hvp"))
    theta = state_vector("theta", theta, problem.dim)
    lr = real_number("lr", lr, Interval(0, math.inf))
    momentum = real_number("momentum", momentum, Interval(0, 1, lower_closed=True))
    batch_size = integer("batch_size", batch_size, minimum=1)
    n = getattr(problem, "n_samples", None)
    # Without n the noise is that of drawing with replacement, 1/B; the rules are checked all the same.
    batch_moments(batch_size if n is None else n, batch_size, sampling)
    notes: list[str] = []
    # A network with another criterion has the method, and refuses to use it.
    square = hasattr(problem, "residuals") and getattr(problem, "criterion", "square") == "square"
    residuals = np.asarray(problem.residuals(theta)) if square else None
    size = residuals.size if residuals is not None else 0
    has_kernel = residuals is not None and (hasattr(problem, "jacobian") or hasattr(problem, "ntk"))
    sharpness = measure.sharpness(problem, theta)
    ntk: TangentKernel | None = None
    if has_kernel and size <= KERNEL_SIZE:
        ntk = tangent_kernel(problem, theta)
        if ntk.largest == 0:
            raise ValueError("theta must not be a point where the Jacobian vanishes: nothing moves")
        trace = measure.Estimate(ntk.trace, 0.0)
        frobenius = measure.Estimate(ntk.frobenius, 0.0)
        bounds = _kernel_bounds(ntk, batch_size, sampling, momentum, size <= EXACT_SIZE)
        # Where trace and largest eigenvalue limit alike is the crossover of `critical_batch_size`.
        limit = critical_lr(ntk, batch_size, kind="trace", sampling=sampling, momentum=momentum)
        binding = _binding(limit, bounds)
        if size > EXACT_SIZE:
            notes.append(
                f"{size} residuals are more than {EXACT_SIZE}: no exact threshold and growth rate; the "
                "bounds of kind closure and rank_one come closest"
            )
        if momentum:
            notes.append("only bounds that are proved with momentum are listed")
    else:
        if has_kernel:
            notes.append(
                f"{size} residuals are more than {KERNEL_SIZE}: trace and norm are those of the Hessian, "
                "estimated from products"
            )
        else:
            notes.append(
                "no residuals and Jacobian: no exact threshold, growth rate, alignment or kernel bound; "
                "trace and norm are those of the Hessian"
            )
        trace = measure.hessian_trace(problem, theta)
        frobenius = measure.hessian_frobenius(problem, theta)
        if sharpness.value <= 0:
            raise ValueError(
                f"theta must be a minimum with some curvature; its sharpness is {sharpness.value!s}"
            )
        outputs = None if residuals is None else residuals.shape[-1]
        bounds, missing = _product_bounds(
            sharpness.value, trace, frobenius, n, outputs, batch_size, sampling, momentum
        )
        notes += missing
        binding = _binding(bounds["trace"].value, bounds) if "trace" in bounds else "unknown"

    root_mean_square = None
    if residuals is not None:
        root_mean_square = float(np.sqrt(np.sum(residuals**2) / len(residuals)))
    gradient_norm = measure.gradient_norm(problem, theta)
    size_of_theta = 1 + float(np.abs(theta).max(initial=0.0))
    moving = gradient_norm > STATIONARY * abs(sharpness.value) * size_of_theta
    interpolates = root_mean_square is not None and root_mean_square <= INTERPOLATES
    other = not interpolates and not _same_curvature(sharpness, ntk)
    saddle = other and _has_negative_curvature(problem, theta, sharpness)
    notes += _warnings(root_mean_square, sharpness, ntk, moving and other, saddle)
    exact = bounds.get("exact")
    growth = None
    if exact is not None and ntk is not None:
        growth = growth_rate(ntk, lr, batch_size, sampling=sampling, momentum=momentum)
    # Four standard errors: an estimated bound that is passed by less decides nothing. Where the trace
    # is not positive there are none, and only the edge is left, which is no estimate of this kind.
    estimates = (trace, frobenius) if trace.value > 0 else ()
    unsure = [e.standard_error / e.value for e in estimates if e.standard_error > 0]
    doubt = 4 * max(unsure, default=0.0)
    verdict = _verdict(lr, bounds, doubt)
    if other:  # bounds are those of G: what H says of the mean dynamics comes first
        if (saddle and not moving) or lr * sharpness.value > 2 * (1 + momentum) * (1 + MARGINAL):
            verdict = "unstable"
        elif verdict == "stable" and (saddle or moving):
            verdict = "undecided"
    return StabilityReport(
        lr, batch_size, sampling, momentum, root_mean_square, gradient_norm, sharpness, trace,
        frobenius, growth, bounds, verdict, binding, tuple(notes),
    )  # fmt: skip


def _kernel_bounds(
    ntk: TangentKernel, batch_size: int, sampling: str, momentum: float, exact: bool
) -> dict[str, Bound]:
    if momentum == 0:
        return lr_bounds(ntk, batch_size, sampling=sampling, exact=exact)
    kinds = {"exact": "exact", "closure": "necessary", "finite": "necessary"}
    found = {
        name: Bound(
            name,
            critical_lr(ntk, batch_size, kind=name, sampling=sampling, momentum=momentum),
            kind,
            "derived here",
        )
        for name, kind in kinds.items()
        if exact or name != "exact"
    }
    edge = 2 * (1 + momentum) / ntk.largest
    return {**found, "edge": Bound("edge", edge, "necessary", "mean dynamics")}


def _product_bounds(
    sharpness: float,
    trace: measure.Estimate,
    frobenius: measure.Estimate,
    n_samples: int | None,
    outputs: int | None,
    batch_size: int,
    sampling: str,
    momentum: float,
) -> tuple[dict[str, Bound], list[str]]:
    """The edge, and the trace bounds where samples and outputs are known; what is missing, in words."""
    edge = 2 * (1 + momentum) / sharpness
    found = {"edge": Bound("edge", edge, "necessary", "mean dynamics")}
    if momentum:
        return found, ["the trace bounds are not proved with momentum"]
    if outputs is None:
        return found, ["no trace bounds: they need the number of outputs, from residuals"]
    if n_samples is None and sampling != "with_replacement":
        return found, [f"no trace bounds: {sampling} needs n_samples for the size of the noise"]
    kept, noise = batch_moments(n_samples or batch_size, batch_size, sampling)
    notes = []
    T, F = trace.value, frobenius.value
    if T <= 0:
        return found, [
            f"no trace bounds: the trace is {T:.3g}, so this is no interpolating minimum"
        ]
    per_trace = kept * F * (F / T) + noise * T / outputs  # no squares, which may leave the range
    trace_bound = 2 * outputs / (noise * T) if noise else math.inf
    for name, value in (("generalised_trace", 2 / per_trace), ("trace", trace_bound)):
        found[name] = Bound(name, value, "necessary", "Wu & Su 2023, arXiv 2305.17490")
    error = trace.standard_error / T
    if error > 0:
        notes.append(
            f"the trace has a standard error of {100 * error:.1g} %, and so have its bounds"
        )
    return found, notes


def _same_curvature(sharpness: measure.Eigenvalue, ntk: TangentKernel | None) -> bool:
    """Whether H has the largest eigenvalue of G, as in every linear model; False if G is not known."""
    return ntk is not None and abs(sharpness.value / ntk.largest - 1) < SAME_CURVATURE


def _has_negative_curvature(problem: Any, theta: Any, sharpness: measure.Eigenvalue) -> bool:
    smallest = measure.spectrum_ends(problem, theta).smallest
    return smallest < -SAME_CURVATURE * abs(sharpness.value)


def _warnings(
    residual: float | None,
    sharpness: measure.Eigenvalue,
    ntk: TangentKernel | None,
    moving: bool,
    saddle: bool,
) -> list[str]:
    notes = []
    if moving:
        notes.append("the gradient is not zero: this is no minimum, and bounds need one")
    if saddle:
        notes.append("the Hessian has a negative eigenvalue: this is no minimum")
    if residual is None:
        notes.append("the residual is not known: bounds hold if the minimum fits every sample")
    elif residual > INTERPOLATES:
        notes.append(
            "the residual is not zero, so the Hessian H need not be the Gauss-Newton matrix G, and SGD "
            "keeps some noise; thresholds and bounds are those of G"
        )
        if ntk is not None:
            same = ", the same" if _same_curvature(sharpness, ntk) else ""
            notes.append(
                f"largest eigenvalue: {sharpness.value:.6g} of H, {ntk.largest:.6g} of G{same}"
            )
    return notes


def _verdict(lr: float, bounds: dict[str, Bound], doubt: float) -> str:
    """``doubt`` is the relative error that the bounds by trace and norm may have."""
    exact = bounds.get("exact")
    if exact is not None:
        if abs(exact.value / lr - 1) < MARGINAL:
            return "marginal"
        return "stable" if lr < exact.value else "unstable"
    for name, bound in bounds.items():
        error = 0.0 if name == "edge" else doubt
        if bound.kind == "necessary" and lr > (1 + error) * bound.value:
            return "unstable"
    if any(lr < b.value for b in bounds.values() if b.kind == "sufficient"):
        return "stable"
    return "undecided"


def _binding(limit: float, bounds: dict[str, Bound]) -> str:
    return "stochastic edge" if limit < bounds["edge"].value else "edge of stability"


def _shown(estimate: measure.Estimate) -> str:
    if estimate.standard_error == 0:
        return f"{estimate.value:.6g}"
    return f"{estimate.value:.6g} +- {estimate.standard_error:.2g}"
