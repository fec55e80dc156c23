"""A problem of a PyTorch module."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

# The choice of attention kernels belongs to the process, not to a thread: calls that change and
# restore it must not overlap.
_ATTENTION = threading.RLock()


def from_torch(
    module: Any, inputs: Any, targets: Any = None, *, criterion: Any = "square"
) -> AutodiffProblem:
    r"""A `Problem` of a PyTorch module: exact derivatives in float64, on the flat vector theta.

    :math:`L = \frac{1}{2n} \sum_i |f(x_i) - y_i|^2`, or another ``criterion``. Without targets the
    module returns the loss itself. Mind that ``torch.nn.MSELoss`` is another one: it averages over
    outputs too, and has no 1/2.

    Parameters
    ----------
    module : torch.nn.Module
        theta holds its parameters with ``requires_grad``, one after the other, row by row, in the
        order of ``named_parameters()``; tied ones once. The others are constants.
    inputs : tensor, array, or tuple of them
        One row per sample; a tuple holds the arguments of ``module``. Floats become float64,
        integers stay.
    targets : tensor or array, optional
        One row per sample.
    criterion : str or callable
        "square"; "cross_entropy", :math:`-\frac1n \sum_i \sum_k y_{ik} \log \mathrm{softmax}(f(x_i))_k`,
        for labels (n,) or distributions (n, k); or a callable of (outputs, targets), for example a
        loss of ``torch.nn``, that returns one number per sample or their mean.

    Returns
    -------
    AutodiffFiniteSum
        With ``theta0``, ``unflatten(theta)`` (a state dict for ``module.load_state_dict``) and
        ``flatten(state_dict)``; `AutodiffLeastSquares`, which adds residuals and Jacobian, for
        "square".

    Raises
    ------
    ImportError
        If PyTorch is missing.
    TypeError, ValueError
        If an argument is wrong; if the module draws random numbers or changes its buffers (dropout
        and batch normalisation in training mode), two calls disagree, the loss is no mean over
        samples or not finite, float64 is rounded inside, or the gradient is not the derivative.

    Notes
    -----
    Works on a float64 copy of the module on the CPU: yours is not touched, and what you do to it
    later has no effect. The random state and all settings of PyTorch stay as they are. Attention is
    computed by its formula, because the fused kernels have no second derivative.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f'eosim.from_torch needs PyTorch: {error}; run: pip install "eosim[torch]"'
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    check_criterion(criterion)
    if targets is None and criterion != "square":
        raise ValueError("criterion needs targets; without them the module itself returns the loss")
    hint = "; call module.eval() first?" if module.training else ""
    # What a module draws from the global generator is given back.
    with torch.random.fork_rng(devices=[]), _settings(torch):
        backend = _TorchBackend(torch, module, inputs, targets, criterion)
        backend.check_state(hint)
        backend.check_precision()
        return build(backend, targets is not None and criterion == "square", hint)


@contextmanager
def _settings(torch: Any) -> Iterator[None]:
    """What a call needs, whatever the caller has set; all of it is undone at the end."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with (
        _ATTENTION,
        torch.inference_mode(False),
        torch.enable_grad(),  # also for values: a module may differentiate inside
        sdpa_kernel(SDPBackend.MATH),
    ):
        yield


class _TorchBackend:
    """A float64 copy of the module, called with views of one flat tensor as its parameters."""

    def __init__(self, torch: Any, module: Any, inputs: Any, targets: Any, criterion: Any) -> None:
        self._torch = torch
        trained = [name for name, value in module.named_parameters() if value.requires_grad]
        for name, value in module.named_parameters():
            if value.is_complex():
                raise TypeError(f"module must have real parameters; {name} is {value.dtype}")
        self.module = copy.deepcopy(module).to(device="cpu", dtype=torch.float64)
        self.module.requires_grad_(False)
        parameters = dict(self.module.named_parameters())
        self._names = trained
        self._shapes = [tuple(parameters[name].shape) for name in trained]
        self._sizes = [parameters[name].numel() for name in trained]
        if not sum(self._sizes):
            raise ValueError("module must have a parameter with requires_grad")
        # A tied parameter has several names in the state dict, one here.
        owner = {id(parameters[name]): name for name in trained}
        everything = self.module.named_parameters(remove_duplicate=False)
        self._aliases = {name: owner[id(p)] for name, p in everything if id(p) in owner}
        self.theta0 = torch.cat([parameters[name].reshape(-1) for name in trained]).numpy()

        self._inputs = self._arguments(inputs)
        self._targets: Any = None if targets is None else self._widened(targets)
        named = self._shapes_of(self._inputs)
        if self._targets is not None:
            named.append(("targets", tuple(self._targets.shape)))
        self.n_samples = common_length(named)
        self._criterion = criterion if targets is not None else None
        if isinstance(criterion, torch.nn.Module):
            self._criterion = copy.deepcopy(criterion).to(device="cpu", dtype=torch.float64)
        outputs = self._outputs_at(self.theta0, self._inputs)
        if isinstance(self._criterion, str):
            shape = tuple(outputs.shape)
            if shape[:1] != (self.n_samples,):
                raise ValueError(
                    f"module must return one row per sample, {self.n_samples}; got shape {shape}"
                )
            assert self._targets is not None  # a named criterion has targets
            prepared = prepared_targets(criterion, self._targets.numpy(), shape)
            self._targets = torch.from_numpy(np.array(prepared))

    def check_state(self, hint: str) -> None:
        """A call draws no random numbers and leaves the buffers as they were."""
        torch = self._torch
        before = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        generator = torch.get_rng_state()
        self.loss(self.theta0, None)
        if not torch.equal(torch.get_rng_state(), generator):
            raise ValueError(f"module must not draw random numbers (dropout?){hint}")
        for name, buffer in self.module.named_buffers():
            if not torch.equal(buffer, before[name]):
                raise ValueError(f"module must not change its buffers; a call changes {name}{hint}")

    def check_precision(self) -> None:
        """No operation takes float64 and gives less."""
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        torch = self._torch

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(
                self, function: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                result = function(*args, **(kwargs or {}))
                taken, given = (
                    {x.dtype for x in tree_leaves(side) if isinstance(x, torch.Tensor)}
                    for side in ((args, kwargs), result)
                )
                less = [dtype for dtype in given - {torch.float64} if dtype.is_floating_point]
                if torch.float64 in taken and less:
                    raise ValueError(
                        f"module must not round float64 to {less[0]}, as {function} does inside it: "
                        "the derivatives would be noise"
                    )
                return result

        with Watch():
            self.loss(self.theta0, None)

    @property
    def source(self) -> str:
        return f"PyTorch {type(self.module).__name__}"

    def plain_loss(self, theta: Array, batch: Array | None) -> float:
        return self.loss(theta, batch)

    def loss(self, theta: Array, batch: Array | None) -> float:
        with _settings(self._torch):
            return self._value(self._torch.from_numpy(theta), batch).item()

    def gradient(self, theta: Array, batch: Array | None) -> Array:
        with _settings(self._torch):
            point = self._torch.from_numpy(theta).requires_grad_()
            value = self._value(point, batch)
            if not value.requires_grad:  # a loss that does not depend on theta
                return np.zeros(len(theta))
            (slope,) = self._torch.autograd.grad(value, point)
        return slope.numpy()

    def hvp_at(self, theta: Array, batch: Array | None) -> Callable[[Array], Array]:
        with _settings(self._torch):
            point = self._torch.from_numpy(theta).requires_grad_()
            value = self._value(point, batch)
            (slope,) = self._torch.autograd.grad(value, point, create_graph=True)

        def product(v: Array) -> Array:
            if not slope.requires_grad:  # a loss that is linear in theta
                return np.zeros(len(v))
            with _settings(self._torch):
                (image,) = self._torch.autograd.grad(
                    slope,
                    point,
                    self._torch.from_numpy(v),
                    retain_graph=True,
                    materialize_grads=True,
                )
            return image.numpy()

        return product

    def outputs(self, theta: Array, inputs: Any) -> Array:
        rows = self._inputs if inputs is None else self._arguments(inputs)
        with _settings(self._torch):
            return self._outputs_at(theta, rows).numpy()

    def residuals(self, theta: Array, batch: Array | None) -> Array:
        rows, targets = self._rows(batch)
        with _settings(self._torch):
            outputs = self._output(self._torch.from_numpy(theta), rows)
            return (outputs.reshape(targets.shape) - targets).numpy()

    def jacobian(self, theta: Array, batch: Array | None) -> Array:
        rows, targets = self._rows(batch)
        torch = self._torch

        def single(point: Any, *sample: Any) -> Any:
            return self._output(point, tuple(part[None] for part in sample)).reshape(-1)

        point = torch.from_numpy(theta)
        with _settings(self._torch):
            try:
                mapped = torch.func.vmap(torch.func.jacrev(single), (None, *(0,) * len(rows)))
                return mapped(point, *rows).numpy()
            except RuntimeError:  # some operations, recurrent layers among them, cannot be mapped
                pass
            blocks = np.empty((*targets.shape, len(theta)))
            point.requires_grad_()
            for index, sample in enumerate(zip(*rows, strict=True)):
                outputs = single(point, *sample)
                for column, output in enumerate(outputs):
                    (slope,) = torch.autograd.grad(output, point, retain_graph=True)
                    blocks[index, column] = slope.numpy()
            return blocks

    def flatten(self, parameters: Any) -> Array:
        parts = []
        for name, shape in zip(self._names, self._shapes, strict=True):
            if name not in parameters or tuple(parameters[name].shape) != shape:
                found = tuple(parameters[name].shape) if name in parameters else "no such name"
                raise ValueError(f"state_dict must have {name} of shape {shape}, got {found}")
            parts.append(parameters[name].detach().to(device="cpu", dtype=self._torch.float64))
        return np.concatenate([part.numpy().ravel() for part in parts])

    def unflatten(self, theta: Array) -> Any:
        state = {name: value.clone() for name, value in self.module.state_dict().items()}
        parameters = self._split(self._torch.from_numpy(theta))
        for name, owner in self._aliases.items():
            if name in state:
                state[name] = parameters[owner].clone()
        return state

    def _value(self, point: Any, batch: Array | None) -> Any:
        """L as a tensor."""
        torch = self._torch
        rows, targets = self._rows(batch)
        outputs = self._output(point, rows)
        if self._criterion is None:
            losses = outputs
        elif self._criterion == "square":
            residuals = outputs.reshape(targets.shape) - targets
            losses = (residuals**2).sum() / (2 * len(targets))
        elif self._criterion == "cross_entropy":
            losses = -(targets * torch.log_softmax(outputs, dim=1)).sum() / len(targets)
        else:
            losses = self._criterion(outputs, targets)
        n = len(rows[0])
        if tuple(losses.shape) not in ((), (n,)) or losses.dtype != torch.float64:
            raise ValueError(
                f"the loss must be a float64 scalar or one per sample, ({n},); got {losses.dtype} of "
                f"shape {tuple(losses.shape)}"
            )
        return losses.mean()

    def _outputs_at(self, theta: Array, rows: tuple[Any, ...]) -> Any:
        """`_output` at rows that the module has not seen."""
        point = self._torch.from_numpy(theta)
        with taking("module", self._shapes_of(rows)):
            outputs = self._call(point, rows)
        return self._checked(outputs)

    def _output(self, point: Any, rows: tuple[Any, ...]) -> Any:
        return self._checked(self._call(point, rows))

    def _call(self, point: Any, rows: tuple[Any, ...]) -> Any:
        return self._torch.func.functional_call(self.module, self._split(point), rows)

    def _checked(self, outputs: Any) -> Any:
        if not isinstance(outputs, self._torch.Tensor):
            raise TypeError(f"module must return one tensor, got {type(outputs).__name__}; wrap it")
        if outputs.dtype != self._torch.float64:
            raise ValueError(
                f"module must return float64 for float64 parameters, got {outputs.dtype}"
            )
        return outputs

    def _split(self, point: Any) -> dict[str, Any]:
        parts = self._torch.split(point, self._sizes)
        triples = zip(self._names, parts, self._shapes, strict=True)
        return {name: part.reshape(shape) for name, part, shape in triples}

    @staticmethod
    def _shapes_of(rows: tuple[Any, ...]) -> list[tuple[str, tuple[int, ...]]]:
        return [("inputs", tuple(part.shape)) for part in rows]

    def _arguments(self, inputs: Any) -> tuple[Any, ...]:
        return tuple(map(self._widened, inputs if isinstance(inputs, tuple) else (inputs,)))

    def _widened(self, part: Any) -> Any:
        """A copy on the CPU; floats as float64."""
        torch = self._torch
        if isinstance(part, torch.Tensor):
            tensor = part.detach().to(device="cpu", copy=True)
        else:
            tensor = torch.from_numpy(np.array(part))
        return tensor.to(torch.float64) if tensor.is_floating_point() else tensor

    def _rows(self, batch: Array | None) -> tuple[tuple[Any, ...], Any]:
        if batch is None:
            return self._inputs, self._targets
        index = self._torch.from_numpy(batch)
        targets = None if self._targets is None else self._targets[index]
        return tuple(part[index] for part in self._inputs), targets
