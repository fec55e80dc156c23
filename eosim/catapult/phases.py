"""Phase diagrams of catapults, in compiled code: grids of starts, of nets and rates."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np

from eosim._checks import Array, float_array, integer
from eosim._maps import margin

# Cells that are judged together: their factors stay in cache.
_CHUNK = 1 << 15


class Phase(enum.IntEnum):
    """What became of a run.

    DIVERGED: w exceeded 1e12; it then grows super-exponentially, and is never judged by NaN. DEAD:
    every neuron is silent, so that the NTK is 0 and the output 0 for ever, whatever the label (with
    label 0 the loss is then 0: by death, not by training, hence not a convergence). Converged: w < 1e-26
    **and** a < 2 (an orbit may pass near w = 0 at a > 2); CATAPULT if some step raised the loss by more
    than 1e-9 relative, else MONOTONE. BOUNDED: none of these within the steps.
    """

    MONOTONE = 0
    CATAPULT = 1
    BOUNDED = 2
    DIVERGED = 3
    DEAD = 4


class PhaseDiagram(NamedTuple):
    r"""One array per quantity, in the shape of the grid; all in normalised units.

    With the rate :math:`\eta` and the :math:`\kappa` of the net, :math:`a = \eta\lambda`,
    :math:`\epsilon = \eta\sqrt\kappa\,e`, :math:`Y = \eta\sqrt\kappa\,y` and :math:`w = \epsilon^2`: the
    loss is :math:`w / 2\eta^2\kappa`.

    Attributes
    ----------
    a, eps, label : float arrays
        The start.
    phase : integer array
        `Phase` codes.
    steps : integer array
        Until the verdict.
    peak_ratio, peak_step, peak_w : arrays
        Largest loss over the first, the step where it comes, and the largest w.
    final_a, final_w : float arrays
        At the verdict.
    norm_ratio : float array
        :math:`|\theta|^2` at the verdict over that at the start.
    period : integer array
        Of a BOUNDED run: steps, up to 64, after which residual and NTK return within 1e-9 relative; 0
        if they do not, or w < 1e-9 (a run that converges slowly returns as closely), or for other runs.
    imbalance : float array or None
        :math:`|u^2 - v^2|` at the verdict, in the two variables that a linear net is reduced to.
    lyapunov : float array or None
        If it was asked for: largest exponent per step of a BOUNDED run, over ``max_steps`` steps that
        follow twice as many. 0 for a converged run, since the minima form a curve (across it the
        exponent is :math:`\ln|1 - a|`); infinite for a diverged one.
    sparsity : float array or None
        Of a net of neurons: share with pre-activation < 0 at the verdict.
    """

    a: Array
    eps: Array
    label: Array
    phase: Array
    steps: Array
    peak_ratio: Array
    peak_step: Array
    peak_w: Array
    final_a: Array
    final_w: Array
    norm_ratio: Array
    period: Array
    imbalance: Array | None = None
    lyapunov: Array | None = None
    sparsity: Array | None = None

    @property
    def margin(self) -> Array:
        """`eosim.catapult.margin` of the start, whose sign decides for abs(label) < 2 and eps not 0.

        A linear net diverges iff it is positive.
        """
        return np.asarray(margin(self.eps, self.a, self.label))


def phase_diagram(
    a: Any, w: Any, label: Any = 0.0, *, max_steps: int = 5000, lyapunov: bool = False
) -> PhaseDiagram:
    r"""Classify the normalised map over a grid of starts.

    Parameters
    ----------
    a, w, label : arrays that broadcast together
        Starts :math:`a_0 = \eta\lambda_0`, :math:`w_0 = \epsilon_0^2` (with :math:`\epsilon_0 \ge 0`)
        and Y. One with w = 0 is a fixed point, and stays: MONOTONE below a = 2, BOUNDED from there on.
        One with :math:`0 < \epsilon_0 < 10^{-16}|Y|` starts from rounding instead.
    max_steps : int
    lyapunov : bool
        Whether to measure exponents: three times the steps of BOUNDED runs.

    Raises
    ------
    TypeError, ValueError
        If a start is impossible: :math:`a \ge 2|\epsilon + Y|` always holds.
    """
    from eosim._kernels.catapult_map import factors

    a, w, label = _broadcast(a, w, label)
    starts, losses, labels, eps = _flat(a), _flat(w), _labels(label), np.empty(a.size)
    pair = np.empty((2, min(_CHUNK, a.size)))
    still = w == 0

    def factors_of(part: slice) -> tuple[Array, Array]:
        u, v = pair[:, : len(eps[part])]
        if factors(starts[part], losses[part], _part(labels, part), eps[part], u, v):
            _refuse(a, w, label)
        rest = np.flatnonzero(losses[part] == 0)
        u[rest], v[rest] = np.sqrt(starts[part][rest]), 0.0
        return u, v

    # Minima of one a are alike but for their imbalance, and that of label 0 is one after rounding too.
    moving = np.where(still, 0.0, label) if still.any() else label
    diagram = _factor_phases(a, eps.reshape(a.shape), moving, factors_of, max_steps, lyapunov)
    if not still.any():
        return diagram
    own = np.sqrt(np.maximum(a - 2 * np.abs(label), 0) * (a + 2 * np.abs(label)))
    imbalance = np.where(still, own, np.asarray(diagram.imbalance))
    return diagram._replace(label=label, imbalance=imbalance)


def iterate(a: Any, w: Any, label: Any = 0.0, *, n_steps: int) -> tuple[Array, Array]:
    r"""The normalised map after so many steps, :math:`(\epsilon, a)`, of every start; nothing is judged.

    Steps are made in the factors, :math:`\epsilon = uv - Y,\ a = u^2 + v^2`: three multiply-adds each.

    Parameters
    ----------
    a, w, label : arrays that broadcast together
        Starts, as in `phase_diagram`; one with w = 0 stays where it is.
    n_steps : int

    Returns
    -------
    eps, a : arrays
        Both infinite where w went beyond 1e12. A factor below 1e-280 counts as 0.

    Raises
    ------
    TypeError, ValueError
        If a start is impossible: :math:`a \ge 2|\epsilon + Y|` always holds.

    Examples
    --------
    >>> from eosim import catapult
    >>> eps, a = catapult.iterate([1.5, 2.5, 4.1], 1e-4, n_steps=100)
    >>> print(abs(eps) < 1e-9, a.round(2))
    [ True  True False] [1.5  1.28  inf]
    """
    from eosim._kernels.catapult_map import iterate

    a, w, label = _broadcast(a, w, label)
    n_steps = integer("n_steps", n_steps, minimum=0)
    eps, end = np.empty((2, a.size))
    with np.errstate(over="ignore", invalid="ignore"):  # heard where the code is not compiled
        impossible = iterate(_flat(a), _flat(w), _labels(label), n_steps, eps, end)
    if impossible:
        _refuse(a, w, label)
    still = np.flatnonzero(w == 0)
    eps[still], end[still] = 0.0, a.flat[still]
    return eps.reshape(a.shape), end.reshape(a.shape)


def _broadcast(a: Any, w: Any, label: Any) -> list[Array]:
    starts = [float_array(name, x) for name, x in (("a", a), ("w", w), ("label", label))]
    try:
        return list(np.broadcast_arrays(*starts))
    except ValueError:
        shapes = ", ".join(str(x.shape) for x in starts)
        raise ValueError(f"a, w and label must broadcast together, got shapes {shapes}") from None


def _refuse(a: Array, w: Array, label: Array) -> NoReturn:
    """Name the worst of some impossible starts."""
    if (w < 0).any():
        raise ValueError(f"w must not be negative, got {w.min()!s}")
    output = np.sqrt(w) + label
    worst = int(np.ravel(a - 2 * np.abs(output)).argmin())
    raise ValueError(
        "a must be at least 2 |epsilon + Y| (a = u^2 + v^2, epsilon + Y = u v); got a = "
        f"{a.flat[worst]!s} with epsilon + Y = {output.flat[worst]!s}"
    )


def _factor_phases(
    a: Array,
    eps: Array,
    label: Array,
    factors_of: Callable[[slice], tuple[Array, Array]],
    max_steps: int,
    lyapunov: bool,
) -> PhaseDiagram:
    """Of the factor map from the (u, v) of flat cells, which are overwritten."""
    from eosim._kernels.catapult_map import classify, find_exponents, find_periods

    max_steps = integer("max_steps", max_steps, minimum=1)
    codes, numbers = np.empty((4, a.size), dtype=np.int64), np.empty((6, a.size))
    exponents = np.empty(a.size if lyapunov else 0)
    all_labels = _labels(label)
    for begin in range(0, a.size, _CHUNK):
        part = slice(begin, begin + _CHUNK)
        labels, phase = _part(all_labels, part), codes[0, part]
        with np.errstate(over="ignore", invalid="ignore"):  # heard where the code is not compiled
            u, v = factors_of(part)
            classify(u, v, labels, max_steps, begin, codes, numbers)
            find_periods(u, v, labels, phase, codes[3, part])
        if lyapunov:
            find_exponents(u, v, labels, phase, max_steps, exponents[part])
    phase, steps, peak_step, period = (row.reshape(a.shape) for row in codes)
    peak_ratio, peak_w, final_a, final_w, norm_ratio, imbalance = (
        row.reshape(a.shape) for row in numbers
    )
    return PhaseDiagram(
        a, eps, label, phase, steps, peak_ratio, peak_step, peak_w, final_a, final_w, norm_ratio,
        period, imbalance, exponents.reshape(a.shape) if lyapunov else None,
    )  # fmt: skip


def _diagram(
    a: Array,
    eps: Array,
    label: Array,
    columns: list[Array],
    norm_ratio: Array,
    **extras: Array | None,
) -> PhaseDiagram:
    """From the first eight columns of a kernel."""
    phase, steps, peak_ratio, peak_step, peak_w, final_a, final_w, period = columns[:8]
    phase, steps, peak_step, period = (
        codes.astype(np.int64) for codes in (phase, steps, peak_step, period)
    )
    a, eps, label = np.asarray(a), np.asarray(eps), np.asarray(label)
    return PhaseDiagram(
        a, eps, label, phase, steps, peak_ratio, peak_step, peak_w, final_a, final_w, norm_ratio,
        period, **extras,
    )  # fmt: skip


def _flat(array: Array) -> Array:
    """A read-only vector, copied if need be: compiled code has one version per kind of array."""
    vector = np.require(array, np.float64, "C").reshape(-1)
    vector.flags.writeable = False
    return vector


def _part(labels: Array, part: slice) -> Array:
    """Of some cells; the one of all cells is theirs too."""
    return labels[part] if len(labels) > 1 else labels


def _labels(label: Array) -> Array:
    """One per cell, or the one of all cells."""
    return _flat(label) if any(label.strides) else _flat(label.flat[:1])


def _integers(name: str, value: Any, minimum: int) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers >= {minimum}, got dtype {array.dtype}")
    wrong = array[(array < minimum) | (array > np.iinfo(np.int64).max)]
    if wrong.size:
        raise ValueError(f"{name} must hold integers >= {minimum} below 2^63, got {wrong[0]!s}")
    return array.astype(np.int64)


def _positive(name: str, value: Any) -> Array:
    array = float_array(name, value)
    if (array <= 0).any():
        raise ValueError(f"{name} must be positive, got {array.min()!s}")
    return array


def _nets(width: Array, seed: Array) -> tuple[Array, Array]:
    """The (width, seed) pairs that occur, (n_nets, 2), and which of them each cell is, flat."""
    pairs = np.stack([width.ravel(), seed.ravel()], axis=1)
    nets, which = np.unique(pairs, axis=0, return_inverse=True)
    return nets, which.ravel()


def linear_net_phases(
    ratio: Any,
    width: Any,
    seed: Any,
    target: Any = 0.0,
    *,
    max_steps: int = 5000,
    lyapunov: bool = False,
) -> PhaseDiagram:
    r"""Phases of two-layer linear nets :math:`f = n^{-1/2}\, v\cdot u`, all weights N(0, 1), over a grid.

    Without the weights: :math:`P = |u+v|^2/2` and :math:`R = |u-v|^2/2` are independent
    :math:`\chi^2_n`, :math:`\lambda_0 = (P + R)/n`, and the map starts from
    :math:`(u+v)^2/2 = \eta P/n`, :math:`(u-v)^2/2 = \eta R/n`.

    Parameters
    ----------
    ratio, width, seed, target : arrays that broadcast together
        :math:`\eta\lambda_0` with the realised :math:`\lambda_0`, n, the net, and y (input x = 1).
    max_steps, lyapunov
        As in `phase_diagram`.

    Notes
    -----
    P, then R, come from ``SeedSequence(seed, spawn_key=(width,))``: a net depends on its width and
    seed alone, and is the same at every ratio and target.

    Raises
    ------
    TypeError, ValueError
        If a ratio is not positive, a width not a positive integer, or a seed a negative one.
    """
    ratio, width, seed, target = np.broadcast_arrays(
        _positive("ratio", ratio),
        _integers("width", width, 1),
        _integers("seed", seed, 0),
        float_array("target", target),
    )
    nets, which = _nets(width, seed)
    draws = np.empty((len(nets), 2))
    for row, (n, number) in zip(draws, nets, strict=True):
        stream = np.random.SeedSequence(int(number), spawn_key=(int(n),))
        row[:] = np.random.default_rng(stream).chisquare(n, size=2)
    plus, minus = draws[which].T.reshape(2, *ratio.shape)
    k = ratio / (plus + minus)  # lr / n
    label = k * np.sqrt(width) * target
    eps = k * (plus - minus) / 2 - label
    total, difference = np.sqrt(2 * k * plus), np.sqrt(2 * k * minus)
    u, v = np.ravel((total + difference) / 2), np.ravel((total - difference) / 2)
    return _factor_phases(ratio, eps, label, lambda part: (u[part], v[part]), max_steps, lyapunov)


def homogeneous_phases(
    ratio: Any,
    width: Any,
    seed: Any,
    slopes: Any = (1.0, 0.0),
    target: Any = 0.0,
    input_norm: Any = 1.0,
    *,
    max_steps: int = 5000,
) -> PhaseDiagram:
    r"""Phases of two-layer nets of piecewise linear neurons with one datum, over a grid.

    :math:`z = n^{-1/2} \sum_i v_i\,\sigma(w_i x)` with :math:`\sigma(t) = a_+ t` for t > 0, :math:`a_- t`
    otherwise, and all weights N(0, 1). Neurons of one sign move alike, hence a step costs O(1), and
    O(n) where one changes sign.

    Parameters
    ----------
    ratio, width, seed, target, input_norm : arrays that broadcast together
        :math:`\eta\lambda_0` with the realised :math:`\lambda_0`, n, the net, y, and x > 0.
    slopes : (float, float)
        :math:`(a_+, a_-)`: (1, 0) is ReLU, (1, 1/2) a leaky one.
    max_steps : int

    Notes
    -----
    w (n), then v (n), come from ``default_rng(seed).standard_normal``: the cell is gradient descent on
    ``TwoLayerNet([[x]], [y], width, slopes)`` from its ``initial(seed)``. In ``label`` and ``eps``
    :math:`\kappa = x^2/n`. A net that is dead from the start has :math:`\lambda_0 = 0`, and no rate
    has the ratio: it is DEAD after 0 steps, with label and eps 0 and ``a`` as asked for.

    Raises
    ------
    TypeError, ValueError
        If a ratio or an input norm is not positive, a width not a positive integer, a seed a negative
        one, or slopes are not two finite numbers, not both 0.
    """
    from eosim._kernels.catapult import classify_neurons

    ratio, width, seed, target, input_norm = np.broadcast_arrays(
        _positive("ratio", ratio),
        _integers("width", width, 1),
        _integers("seed", seed, 0),
        float_array("target", target),
        _positive("input_norm", input_norm),
    )
    pair = float_array("slopes", slopes, shape=(2,)).copy()
    if not pair.any():
        raise ValueError("slopes must not both be 0: the net would be 0")
    max_steps = integer("max_steps", max_steps, minimum=1)
    nets, which = _nets(width, seed)
    rates, per_rate = _flat(ratio), _flat(np.sqrt(width) / input_norm * target)
    table = np.empty((ratio.size, 12))
    order = np.argsort(which, kind="stable")
    ends = np.cumsum(np.bincount(which, minlength=len(nets)))
    for (n, number), start, end in zip(nets, [0, *ends[:-1]], ends, strict=False):
        cells = order[start:end]
        w, v = np.random.default_rng(int(number)).standard_normal((2, n))
        table[cells] = classify_neurons(w, v, pair, rates[cells], per_rate[cells], max_steps)
    columns = [column.reshape(ratio.shape) for column in table.T]
    return _diagram(
        ratio, columns[10], columns[11], columns, norm_ratio=columns[9], sparsity=columns[8]
    )


def infinite_relu_phases(a: Any, kick: Any = 1e-4, *, max_steps: int = 5000) -> PhaseDiagram:
    r"""Phases of the infinitely wide two-layer ReLU net with one datum and label 0, over a grid.

    The living neurons are a sector of the angles of :math:`(p_0, v_0)` (the reduction of
    `InfiniteReLU`): O(1) per step. Periods are not looked for.

    Parameters
    ----------
    a, kick : arrays that broadcast together
        :math:`\eta\lambda_0`, and the normalised residual of one step by hand that sets the net in
        motion (its output is 0 at the start); not 0. Above a of about 2.8 the end depends on it.
        ``eps`` of the result, about -a kick, and the count of steps are those after the kick.
    max_steps : int

    Raises
    ------
    TypeError, ValueError
        If an a is not positive, or a kick is 0.
    """
    from eosim._kernels.catapult import classify_infinite_relu

    a, kick = np.broadcast_arrays(_positive("a", a), float_array("kick", kick))
    if (kick == 0).any():
        raise ValueError("kick must not be 0: nothing would move")
    max_steps = integer("max_steps", max_steps, minimum=1)
    table = classify_infinite_relu(_flat(a), _flat(kick), max_steps)
    columns = [column.reshape(a.shape) for column in table.T]
    label = np.zeros(a.shape)
    return _diagram(a, columns[10], label, columns, norm_ratio=columns[9], sparsity=columns[8])


@dataclass(frozen=True)
class Attractor:
    """Long-run behaviour of the balanced map: period (0 if none up to 64) and Lyapunov exponent."""

    period: Array
    lyapunov: Array


def attractor(label: Any, *, transient: int = 20_000, n_steps: int = 20_000) -> Attractor:
    r"""Period and Lyapunov exponent of the balanced map s' = s(1 + Y - s^2) at labels Y in (0, 2].

    Started at s = 0.5, our choice; the first ``transient`` steps are dropped. A period is detected
    when the orbit returns within 1e-9, relatively.

    Raises
    ------
    TypeError, ValueError
        If a label is outside (0, 2]: the orbit is not bounded there.
    """
    from eosim._kernels.catapult_map import long_run

    labels = float_array("label", label)
    if ((labels <= 0) | (labels > 2)).any():
        raise ValueError(f"label must lie in (0, 2], got {labels.min()!s} to {labels.max()!s}")
    transient = integer("transient", transient, minimum=0)
    n_steps = integer("n_steps", n_steps, minimum=100)
    period, lyapunov = long_run(np.ascontiguousarray(labels).ravel(), transient, n_steps)
    return Attractor(period.reshape(labels.shape), lyapunov.reshape(labels.shape))
