"""A problem of a JAX model and its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from eosim._checks import Array
from eosim.adapters.autodiff import (
    AutodiffProblem,
    build,
    check_criterion,
    common_length,
    prepared_targets,
    taking,
)


def from_jax(
    model: Callable[..., Any],
    params: Any,
    inputs: Any = None,
    targets: Any = None,
    *,
    criterion: Any = "square",
) -> AutodiffProblem:
    r"""A `Problem` of a JAX model: exact derivatives in float64, on the flat vector theta.

    With targets :math:`L = \frac{1}{2n} \sum_i |f(x_i) - y_i|^2`, or another ``criterion``. Without
    targets the model *is* the loss: ``model(params, inputs)``, or ``model(params)`` without inputs.

    Parameters
    ----------
    model : callable of (params, inputs)
        Outputs, one row per sample. Without targets the loss: one number per sample or their mean.
    params : pytree of float arrays
        theta holds its leaves one after the other, row by row, in the order of
        ``jax.flatten_util.ravel_pytree``.
    inputs : pytree of arrays, optional
        One row per sample in every leaf. Floats become float64, integers stay.
    targets : array, optional
        One row per sample.
    criterion : str or callable
        "square"; "cross_entropy", :math:`-\frac1n \sum_i \sum_k y_{ik} \log \mathrm{softmax}(f(x_i))_k`,
        for labels (n,) or distributions (n, k); or a callable of (outputs, targets) that returns one
        number per sample or their mean.

    Returns
    -------
    AutodiffProblem
        With ``theta0``, ``unflatten(theta)`` and ``flatten(params)``; `AutodiffFiniteSum` where there
        are inputs; `AutodiffLeastSquares`, which adds residuals and Jacobian, for "square".

    Raises
    ------
    ImportError
        If JAX is missing.
    TypeError, ValueError
        If an argument is wrong; if two calls disagree, the loss is no mean over samples, not finite,
        rounded to less than float64 inside the model, or the gradient is not its derivative.

    Notes
    -----
    64-bit mode is switched on inside each call only; your settings and arrays stay as they are.
    Everything is compiled once for every batch size, so Bernoulli sampling, whose batches differ in
    size, compiles often.
    """
    try:
        import jax
    except ImportError as error:
        raise ImportError(
            f'eosim.from_jax needs JAX: {error}; run: pip install "eosim[networks]"'
        ) from error
    if not callable(model):
        raise TypeError(f"model must be callable, got {type(model).__name__}")
    check_criterion(criterion)
    if targets is None and criterion != "square":
        raise ValueError("criterion needs targets; without them the model itself returns the loss")
    if inputs is None and targets is not None:
        raise ValueError("inputs must be given where there are targets")
    with _double_precision(jax)(True):
        backend = _JaxBackend(jax, model, params, inputs, targets, criterion)
        backend.check_precision()
    return build(backend, targets is not None and criterion == "square")


def _double_precision(jax: Any) -> Any:
    """JAX's 64-bit mode of one thread, as a context; JAX 0.8 moved it."""
    return jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


class _JaxBackend:
    """Compiled functions of (theta, inputs, targets); data are arguments, not constants."""

    def __init__(
        self, jax: Any, model: Any, params: Any, inputs: Any, targets: Any, criterion: Any
    ) -> None:
        self._jax, self._model = jax, model
        self._double_precision = _double_precision(jax)
        leaves, self._structure = jax.tree_util.tree_flatten_with_path(params)
        self._names = [jax.tree_util.keystr(path) or "params" for path, _ in leaves]
        self._shapes = [np.shape(leaf) for _, leaf in leaves]
        self.theta0 = self._joined([leaf for _, leaf in leaves])
        self.n_samples = None
        self._inputs = jax.tree.map(self._widened, inputs)
        self._targets: Any = None
        self._has_inputs = inputs is not None
        named = [
            (f"inputs{jax.tree_util.keystr(path)}", leaf.shape)
            for path, leaf in jax.tree_util.tree_flatten_with_path(self._inputs)[0]
        ]
        if self._has_inputs:
            if targets is not None:
                self._targets = self._widened(targets)
                named.append(("targets", self._targets.shape))
            self.n_samples = common_length(named)
        self._criterion = criterion if targets is not None else None
        with taking("model", [pair for pair in named if pair[0] != "targets"]):
            outputs = self._outputs(jax.numpy.asarray(self.theta0), self._inputs)
        if isinstance(self._criterion, str):
            if not hasattr(outputs, "shape") or outputs.shape[:1] != (self.n_samples,):
                raise ValueError(
                    f"model must return an array with one row per sample, {self.n_samples}; got "
                    f"{getattr(outputs, 'shape', type(outputs).__name__)}"
                )
            if outputs.dtype != np.float64:
                raise ValueError(
                    f"model must return float64 for float64 parameters, got {outputs.dtype}"
                )
            prepared = prepared_targets(criterion, np.asarray(self._targets), outputs.shape)
            self._targets = self._widened(prepared)
        # NumPy gathers rows faster than dispatched JAX; on the CPU these are views.
        self._host = jax.tree.map(np.asarray, (self._inputs, self._targets))
        gradient = jax.grad(self._value)
        self._loss_compiled = jax.jit(self._value)
        self._gradient_compiled = jax.jit(gradient)
        self._hvp_compiled = jax.jit(
            lambda theta, v, *data: jax.jvp(lambda x: gradient(x, *data), (theta,), (v,))[1]
        )
        self._outputs_compiled = jax.jit(self._outputs)
        self._jacobian_compiled = jax.jit(jax.vmap(self._sample_jacobian, (None, 0)))

    @property
    def source(self) -> str:
        return f"JAX {getattr(self._model, '__name__', type(self._model).__name__)}"

    def loss(self, theta: Array, batch: Array | None) -> float:
        return float(self._call(self._loss_compiled, theta, *self._data(batch)))

    def gradient(self, theta: Array, batch: Array | None) -> Array:
        return self._call(self._gradient_compiled, theta, *self._data(batch))

    def hvp_at(self, theta: Array, batch: Array | None) -> Callable[[Array], Array]:
        data = self._data(batch)
        return lambda v: self._call(self._hvp_compiled, theta, v, *data)

    def outputs(self, theta: Array, inputs: Any) -> Array:
        if inputs is None:
            return self._call(self._outputs_compiled, theta, self._inputs)
        with self._double_precision(True):
            points = self._jax.tree.map(self._widened, inputs)
        return self._call(self._outputs_compiled, theta, points)

    def residuals(self, theta: Array, batch: Array | None) -> Array:
        inputs, targets = self._data(batch)
        answers = np.asarray(targets)  # outside 64-bit mode JAX itself would round the difference
        return self._call(self._outputs_compiled, theta, inputs).reshape(answers.shape) - answers

    def jacobian(self, theta: Array, batch: Array | None) -> Array:
        return self._call(self._jacobian_compiled, theta, self._data(batch)[0])

    def flatten(self, parameters: Any) -> Array:
        leaves, structure = self._jax.tree.flatten(parameters)
        shapes = [np.shape(leaf) for leaf in leaves]
        if structure != self._structure or shapes != self._shapes:
            raise ValueError(
                f"params must have the structure {self._structure} with shapes {self._shapes}, got "
                f"{structure} with shapes {shapes}"
            )
        with self._double_precision(True):
            return self._joined(leaves)

    def unflatten(self, theta: Array) -> Any:
        return self._jax.tree.unflatten(self._structure, [np.array(x) for x in self._split(theta)])

    def plain_loss(self, theta: Array, batch: Array | None) -> float:
        with self._double_precision(True):
            return float(self._value(self._jax.numpy.asarray(theta), *self._data(batch)))

    def check_precision(self) -> None:
        """No operation takes float64 and gives less."""
        errors = self._jax.errors
        try:
            pending = [self._jax.make_jaxpr(self._value)(self.theta0, *self._data(None)).jaxpr]
        except (errors.JAXTypeError, errors.JAXIndexError) as error:
            reason = str(error).splitlines()[0]
            raise TypeError(
                "model and criterion must be written in jax.numpy, so that JAX can trace them: no "
                f"np.tanh in place of jnp.tanh, no float() and no if on computed values; {reason}"
            ) from error
        while pending:
            for equation in pending.pop().eqns:
                for parameter in self._jax.tree.leaves(list(equation.params.values())):
                    program = getattr(parameter, "jaxpr", parameter)
                    if hasattr(program, "eqns"):
                        pending.append(program)
                taken, given = (
                    {v.aval.dtype for v in side if self._is_float(v.aval)}
                    for side in (equation.invars, equation.outvars)
                )
                less = [dtype for dtype in given if dtype != np.float64]
                if np.dtype(np.float64) in taken and less:
                    raise ValueError(
                        f"the model must not round float64 to {less[0]}, as {equation.primitive} does "
                        "inside it: the derivatives would be noise"
                    )

    def _value(self, theta: Any, inputs: Any, targets: Any) -> Any:
        """L as a JAX scalar."""
        jnp = self._jax.numpy
        outputs = self._outputs(theta, inputs)
        if self._criterion is None:
            losses = outputs
        elif self._criterion == "square":
            residuals = outputs.reshape(targets.shape) - targets
            return jnp.sum(residuals**2) / (2 * len(targets))
        elif self._criterion == "cross_entropy":
            return -jnp.sum(targets * self._jax.nn.log_softmax(outputs, axis=1)) / len(targets)
        else:
            losses = self._criterion(outputs, targets)
        shape, dtype = np.shape(losses), jnp.result_type(losses)
        rows = len(self._jax.tree.leaves(inputs)[0]) if self._has_inputs else None
        if shape not in ((), (rows,)) or dtype != np.float64:
            each = "" if rows is None else f" or one per sample, ({rows},)"
            raise ValueError(
                f"the loss must be a float64 scalar{each}; got {dtype} of shape {shape}"
            )
        return jnp.mean(losses)

    def _outputs(self, theta: Any, inputs: Any) -> Any:
        parameters = self._jax.tree.unflatten(self._structure, self._split(theta))
        return self._model(parameters, inputs) if self._has_inputs else self._model(parameters)

    def _sample_jacobian(self, theta: Any, sample: Any) -> Any:
        """(n_outputs, dim) of one sample."""
        single = self._jax.tree.map(lambda leaf: leaf[None], sample)
        return self._jax.jacrev(lambda x: self._outputs(x, single).reshape(-1))(theta)

    def _split(self, theta: Any) -> list[Any]:
        ends = np.cumsum([int(np.prod(shape, dtype=int)) for shape in self._shapes])
        parts = zip(ends, self._shapes, strict=True)
        return [
            theta[end - int(np.prod(shape, dtype=int)) : end].reshape(shape) for end, shape in parts
        ]

    def _joined(self, leaves: list[Any]) -> Array:
        parts = []
        for name, leaf in zip(self._names, leaves, strict=True):
            if not self._is_float(leaf):
                raise TypeError(
                    f"params must be a pytree of float arrays; {name} is "
                    f"{getattr(leaf, 'dtype', type(leaf).__name__)}. Close over what is not trained"
                )
            parts.append(np.asarray(leaf).astype(np.float64).ravel())
        if not sum(map(len, parts)):
            raise ValueError("params must hold at least one number")
        return np.concatenate(parts)

    def _is_float(self, leaf: Any) -> bool:
        jnp = self._jax.numpy
        if isinstance(leaf, float):
            return True
        return hasattr(leaf, "dtype") and bool(jnp.issubdtype(leaf.dtype, jnp.floating))

    def _widened(self, leaf: Any) -> Any:
        """Floats as float64, under 64-bit mode."""
        array = self._jax.numpy.asarray(leaf)
        return array.astype(np.float64) if self._is_float(array) else array

    def _data(self, batch: Array | None) -> tuple[Any, Any]:
        if batch is None:
            return self._inputs, self._targets
        return self._jax.tree.map(lambda rows: rows[batch], self._host)

    def _call(self, function: Any, *arguments: Any) -> Any:
        with self._double_precision(True):
            return np.array(function(*arguments))
