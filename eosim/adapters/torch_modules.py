"""A problem of a PyTorch module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from eosim._checks import Array
from eosim.adapters.autodiff import (
    AutodiffProblem,
    build,
    check_criterion,
    check_values,
    common_length,
    prepared_targets,
)


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
        If an argument is wrong; if dropout or batch normalisation is in training mode, two calls
        disagree, the module changes its buffers, the loss is no mean over samples or not finite, or
        the gradient is not its derivative.

    Notes
    -----
    Works on a float64 copy of the module on the CPU: yours is not touched, and what you do to it
    later has no effect. The random state and all settings of PyTorch stay as they are. Attention is
    computed by its formula, because the fused kernels have no second derivative.
    """
    try:
        import torch
    except ImportError:
        raise ImportError(
            'eosim.from_torch needs PyTorch, which is not installed; run: pip install "eosim[torch]"'
        ) from None
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    check_criterion(criterion)
    if targets is None and criterion != "square":
        raise ValueError("criterion needs targets; without them the module itself returns the loss")
    _refuse_training_mode(torch, module)
    # Dropout draws from the global generator: whatever the checks draw is given back.
    with torch.random.fork_rng(devices=[]):
        backend = _TorchBackend(torch, module, inputs, targets, criterion)
        before = {name: buffer.clone() for name, buffer in backend.module.named_buffers()}
        hint = "; call module.eval() first?" if module.training else ""
        check_values(lambda batch: backend.loss(backend.theta0, batch), backend.n_samples, hint)
        for name, buffer in backend.module.named_buffers():
            if not torch.equal(buffer, before[name]):
                raise ValueError(f"module must not change its buffers; a call changes {name}{hint}")
        square = targets is not None and criterion == "square"
        return build(backend, backend.theta0, backend.n_samples, square)


def _refuse_training_mode(torch: Any, module: Any) -> None:
    normalisation = torch.nn.modules.batchnorm._BatchNorm
    dropout = torch.nn.modules.dropout._DropoutNd
    found = [
        f"{name or 'module'} ({type(part).__name__})"
        for name, part in module.named_modules()
        if part.training
        and (isinstance(part, normalisation) or (isinstance(part, dropout) and part.p > 0))
    ]
    if found:
        raise ValueError(
            "module must not be in training mode: dropout is random, and batch normalisation lets the "
            f"samples see each other; call module.eval() first. Found {', '.join(found)}"
        )


class _TorchBackend:
    """A float64 copy of the module, called with views of one flat tensor as its parameters."""

    def __init__(self, torch: Any, module: Any, inputs: Any, targets: Any, criterion: Any) -> None:
        self._torch = torch
        trained = [name for name, value in module.named_parameters() if value.requires_grad]
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
        named = [("inputs", tuple(part.shape)) for part in self._inputs]
        if self._targets is not None:
            named.append(("targets", tuple(self._targets.shape)))
        self.n_samples = common_length(named)
        self._criterion = criterion if targets is not None else None
        if isinstance(criterion, torch.nn.Module):
            self._criterion = copy.deepcopy(criterion).to(device="cpu", dtype=torch.float64)
        if isinstance(self._criterion, str):
            shape = tuple(self._output(torch.from_numpy(self.theta0), self._inputs).shape)
            if shape[:1] != (self.n_samples,):
                raise ValueError(
                    f"module must return one row per sample, {self.n_samples}; got shape {shape}"
                )
            assert self._targets is not None  # a named criterion has targets
            prepared = prepared_targets(criterion, self._targets.numpy(), shape)
            self._targets = torch.from_numpy(np.array(prepared))

    def loss(self, theta: Array, batch: Array | None) -> float:
        with self._settings(gradients=False):
            return self._value(self._torch.from_numpy(theta), batch).item()

    def gradient(self, theta: Array, batch: Array | None) -> Array:
        with self._settings():
            point = self._torch.from_numpy(theta).requires_grad_()
            (slope,) = self._torch.autograd.grad(self._value(point, batch), point)
        return slope.numpy()

    def hvp_at(self, theta: Array, batch: Array | None) -> Callable[[Array], Array]:
        with self._settings():
            point = self._torch.from_numpy(theta).requires_grad_()
            value = self._value(point, batch)
            (slope,) = self._torch.autograd.grad(value, point, create_graph=True)

        def product(v: Array) -> Array:
            if not slope.requires_grad:  # a loss that is linear in theta
                return np.zeros(len(v))
            with self._settings():
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
        with self._settings(gradients=False):
            return self._output(self._torch.from_numpy(theta), rows).numpy()

    def residuals(self, theta: Array, batch: Array | None) -> Array:
        rows, targets = self._rows(batch)
        with self._settings(gradients=False):
            outputs = self._output(self._torch.from_numpy(theta), rows)
            return (outputs.reshape(targets.shape) - targets).numpy()

    def jacobian(self, theta: Array, batch: Array | None) -> Array:
        rows, targets = self._rows(batch)
        torch = self._torch

        def single(point: Any, *sample: Any) -> Any:
            return self._output(point, tuple(part[None] for part in sample)).reshape(-1)

        point = torch.from_numpy(theta)
        with self._settings():
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

    def _output(self, point: Any, rows: tuple[Any, ...]) -> Any:
        outputs = self._torch.func.functional_call(self.module, self._split(point), rows)
        if not isinstance(outputs, self._torch.Tensor):
            raise TypeError(f"module must return one tensor, got {type(outputs).__name__}; wrap it")
        if outputs.dtype != self._torch.float64:
            raise ValueError(
                f"module must return float64 for float64 parameters, got {outputs.dtype}: it casts "
                "inside, so its derivatives would be noise"
            )
        return outputs

    def _split(self, point: Any) -> dict[str, Any]:
        parts = self._torch.split(point, self._sizes)
        triples = zip(self._names, parts, self._shapes, strict=True)
        return {name: part.reshape(shape) for name, part, shape in triples}

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
        index = self._torch.from_numpy(np.array(batch, dtype=np.int64))
        targets = None if self._targets is None else self._targets[index]
        return tuple(part[index] for part in self._inputs), targets

    def _settings(self, gradients: bool = True) -> ExitStack:
        """What a call needs, whatever the caller has set; all of it is undone at the end."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        stack = ExitStack()
        stack.enter_context(self._torch.inference_mode(False))
        stack.enter_context(self._torch.set_grad_enabled(gradients))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        return stack
