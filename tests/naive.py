"""Slow, obvious twins of what eosim computes, to be checked by eye."""

import itertools
import math

import mpmath
import numpy as np

# Polynomials, term by term --------------------------------------------------------------------


def polynomial(terms, theta, axes=()):
    """The partial derivative along ``axes`` (repeated axes differentiate again) at theta."""
    total = 0
    for exponents, coefficient in terms.items():
        powers, value = list(exponents), coefficient
        for axis in axes:
            value = value * powers[axis]
            powers[axis] -= 1
        if value == 0:
            continue  # differentiated away
        for x, power in zip(theta, powers, strict=True):
            for _ in range(power):
                value = value * x
        total = total + value
    return total


# Derivatives by differences --------------------------------------------------------------------


def gradient(loss, theta, step=1e-5):
    """Central differences of the loss."""
    units = np.eye(len(theta))
    return np.array([(loss(theta + step * u) - loss(theta - step * u)) / (2 * step) for u in units])


def hessian(gradient, theta, step=1e-5):
    """Central differences of the gradient, one column per coordinate."""
    columns = []
    for unit in np.eye(len(theta)):
        columns.append((gradient(theta + step * unit) - gradient(theta - step * unit)) / (2 * step))
    return np.array(columns).T


# Least squares, sample by sample ---------------------------------------------------------------


def regression_loss(inputs, targets, theta):
    """(1/2n) sum over samples i and outputs a of (sum_j x_ij theta_ja - y_ia)^2."""
    n, n_features = inputs.shape
    n_outputs = targets.shape[1]
    total = 0
    for i in range(n):
        for a in range(n_outputs):
            error = -targets[i, a]
            for j in range(n_features):
                error = error + inputs[i, j] * theta[j * n_outputs + a]
            total = total + error * error
    return total / (2 * n)


def regression_gradient(inputs, targets, theta):
    n, n_features = inputs.shape
    n_outputs = targets.shape[1]
    result = np.zeros(len(theta), dtype=np.result_type(theta, float))
    for i in range(n):
        for a in range(n_outputs):
            error = -targets[i, a]
            for j in range(n_features):
                error = error + inputs[i, j] * theta[j * n_outputs + a]
            for j in range(n_features):
                result[j * n_outputs + a] += inputs[i, j] * error / n
    return result


def trace(matrix):
    total = 0.0
    for i in range(len(matrix)):
        total += matrix[i, i]
    return total


def frobenius(matrix):
    total = 0.0
    for row in matrix:
        for entry in row:
            total += entry * entry
    return math.sqrt(total)


def network_output(theta, point, hidden, n_outputs):
    """A tanh network, weight by weight: theta holds each layer row by row, the bias last."""
    units, position = list(point), 0
    widths = [*hidden, n_outputs]
    for layer, width in enumerate(widths):
        sums = []
        for _ in range(width):
            total = theta[position + len(units)]  # the bias
            for j, unit in enumerate(units):
                total = total + theta[position + j] * unit
            position += len(units) + 1
            sums.append(total if layer == len(widths) - 1 else np.tanh(total))
        units = sums
    assert position == len(theta)
    return units


def network_loss(theta, inputs, targets, hidden):
    """(1/2n) sum over samples and outputs of (f - y)^2."""
    total = 0
    for point, target in zip(inputs, targets, strict=True):
        outputs = network_output(theta, point, hidden, len(target))
        for output, wanted in zip(outputs, target, strict=True):
            total = total + (output - wanted) * (output - wanted)
    return total / (2 * len(inputs))


# Optimizers, written out ------------------------------------------------------------------------


def gradient_descent(gradient, theta, n_steps, lr):
    path = [theta]
    for _ in range(n_steps):
        theta = theta - lr * gradient(theta)
        path.append(theta)
    return np.array(path)


def heavy_ball(gradient, theta, n_steps, lr, momentum):
    """Polyak's two-step form: no velocity."""
    path = [theta]
    previous = theta
    for _ in range(n_steps):
        theta, previous = theta - lr * gradient(theta) + momentum * (theta - previous), theta
        path.append(theta)
    return np.array(path)


def nesterov(gradient, theta, n_steps, lr, momentum):
    """Nesterov's own form: x+ = y - lr g(y), y+ = x+ + momentum (x+ - x); the path is that of y."""
    x, y = theta, theta
    path = [y]
    for _ in range(n_steps):
        x_next = y - lr * gradient(y)
        y = x_next + momentum * (x_next - x)
        x = x_next
        path.append(y)
    return np.array(path)


def weighted_average(gradients, momentum):
    """The EMA of a list of gradients, as the sum that it stands for."""
    total = 0
    for age, g in enumerate(reversed(gradients)):
        total = total + (1 - momentum) * momentum**age * g
    return total


def quasi_hyperbolic(gradient, theta, n_steps, lr, momentum, nu):
    """Each step averages all past gradients anew; nu = 1 is EMA momentum."""
    path, gradients = [theta], []
    for _ in range(n_steps):
        gradients.append(gradient(theta))
        average = weighted_average(gradients, momentum)
        theta = theta - lr * ((1 - nu) * gradients[-1] + nu * average)
        path.append(theta)
    return np.array(path)


# Sampling ---------------------------------------------------------------------------------------

_MASK = 2**64 - 1


def splitmix(x):
    """The finaliser of SplitMix64, on Python integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def uniforms(key, counter, n_draws):
    """The draws of one step: the SplitMix64 sequence from a start that mixes key and counter."""
    gamma = 0x9E3779B97F4A7C15
    state = splitmix(splitmix((key[0] + counter * gamma) & _MASK) ^ key[1])
    draws = []
    for _ in range(n_draws):
        state = (state + gamma) & _MASK
        draws.append((splitmix(state) >> 11) / 2**53)
    return draws


def shuffle(draws, n):
    """Sample without replacement: take the next element of a list from what is left of it."""
    items = list(range(n))
    for j, u in enumerate(draws):
        position = j + int(u * (n - j))
        items[j], items[position] = items[position], items[j]
    return items[: len(draws)]


def batch(scheme, key, step, n, size):
    """The mini-batch of one step."""
    if scheme == "without_replacement":
        return shuffle(uniforms(key, step, size), n)
    if scheme == "with_replacement":
        return [int(u * n) for u in uniforms(key, step, size)]
    if scheme == "bernoulli":
        return [i for i, u in enumerate(uniforms(key, step, n)) if u * n < size]
    epoch, slot = divmod(step, math.ceil(n / size))
    return shuffle(uniforms(key, epoch, n), n)[slot * size : (slot + 1) * size]


# Stability --------------------------------------------------------------------------------------


def spectral_radius(drift, response, curvature):
    """Of the recursion of a linear rule on a one-dimensional quadratic; theta comes first."""
    matrix = np.array(drift, dtype=float)
    matrix[:, 0] += curvature * np.asarray(response)
    return np.abs(np.linalg.eigvals(matrix)).max()


def critical_sharpness(drift, response, upper, tolerance=1e-9, n_grid=4000):
    """Scan (0, upper] for the first curvature with a spectral radius above 1, then bisect.

    Misses what happens between two grid points; a crossing slower than the tolerance comes late.
    """
    stable = 0.0
    for curvature in np.linspace(0, upper, n_grid + 1)[1:]:
        if spectral_radius(drift, response, curvature) > 1 + tolerance:
            break
        stable = curvature
    else:
        return math.inf
    unstable = curvature
    if stable == 0:
        return 0.0
    for _ in range(60):
        middle = (stable + unstable) / 2
        if spectral_radius(drift, response, middle) > 1 + tolerance:
            unstable = middle
        else:
            stable = middle
    return unstable


def exact_radius(drift, response, curvature, digits=60):
    """The spectral radius in high precision."""
    with mpmath.workdps(digits):
        matrix = mpmath.matrix(np.asarray(drift).tolist())
        for i, entry in enumerate(response):
            matrix[i, 0] += mpmath.mpf(float(curvature)) * mpmath.mpf(float(entry))
        if matrix.rows == 1:  # which mpmath.eig does not do
            return abs(matrix[0, 0])
        return max(abs(z) for z in mpmath.eig(matrix, left=False, right=False))


# Flows ------------------------------------------------------------------------------------------


def principal_field(hessian, gradient, lr, digits=40):
    """log(I - hH) (hH)^{-1} g at a real point, with +i pi for eigenvalues beyond 1/h; by mpmath."""
    with mpmath.workdps(digits):
        values, vectors = mpmath.eigsy(mpmath.matrix(np.asarray(hessian).tolist()))
        g = mpmath.matrix(list(map(float, gradient)))
        field = mpmath.matrix(len(gradient), 1)
        for i in range(len(gradient)):
            u = vectors[:, i]
            z = lr * values[i]
            if abs(z) < mpmath.mpf(10) ** (10 - digits):
                alpha = mpmath.mpf(-1)
            elif z < 1:
                alpha = mpmath.log(1 - z) / z
            else:
                alpha = (mpmath.log(z - 1) + 1j * mpmath.pi) / z
            field += u * (alpha * (u.T * g)[0])
        return np.array([complex(entry) for entry in field])


def principal_series(hessian, gradient, lr, n_terms=200):
    """-sum_p (hH)^p g / (p+1): converges where every |h lambda| < 1, complex ones included."""
    term = np.asarray(gradient, dtype=complex)
    total = 0 * term
    for p in range(n_terms):
        total = total - term / (p + 1)
        term = lr * np.asarray(hessian) @ term
    return total


def quadratic_iterates(matrix, center, theta0, lr, n_steps):
    """Gradient descent on a quadratic: c + (I - hA)^k (theta0 - c), powers of one matrix."""
    step = np.eye(len(center)) - lr * np.asarray(matrix)
    offset = np.asarray(theta0) - center
    return np.array([center + np.linalg.matrix_power(step, k) @ offset for k in range(n_steps + 1)])


def modified_field(terms, theta, order):
    """Coefficients of h^0, ..., h^order of the forward-difference field of a polynomial loss.

    h f = sum over m = 1..order of (-1)^(m+1)/m times the m-th difference of the iterates theta,
    F(theta), F(F(theta)), ...; each iterate is carried as a polynomial in h. Below h^order they
    are the coefficients of the modified equation; that of h^order is the cut series' own.
    """
    h = np.polynomial.Polynomial([0.0, 1.0])
    iterates = [[np.polynomial.Polynomial([x]) for x in theta]]
    for _ in range(order):
        point = iterates[-1]
        step = [x - h * polynomial(terms, point, (i,)) for i, x in enumerate(point)]
        iterates.append(step)
    result = np.zeros((order + 1, len(theta)))
    for i in range(len(theta)):
        logarithm = 0 * h
        for m in range(1, order + 1):
            for j in range(m + 1):
                sign = (-1) ** (m + 1) * (-1) ** (m - j)
                logarithm = logarithm + sign * math.comb(m, j) / m * iterates[j][i]
        coefficients = np.zeros(order + 2)
        known = logarithm.coef[: order + 2]
        coefficients[: len(known)] = known
        result[:, i] = coefficients[1:]
    return result


def modified_flow(hessian, third, g, order, lr):
    """-g - h/2 Hg - h^2 (HHg/3 + T[g,g]/12) - h^3 (HHHg/4 + HT[g,g]/12 + T[g,Hg]/12), by tensors."""
    Hg = hessian @ g
    Tgg, TgHg = np.einsum("ijk,j,k->i", third, g, g), np.einsum("ijk,j,k->i", third, g, Hg)
    terms = [
        g,
        Hg / 2,
        hessian @ Hg / 3 + Tgg / 12,
        hessian @ hessian @ Hg / 4 + hessian @ Tgg / 12 + TgHg / 12,
    ]
    total = 0
    for power, term in enumerate(terms[:order]):
        total = total - lr**power * term
    return total


def heavy_ball_iterates(gradient, previous, theta, n_steps, lr, momentum):
    """Polyak's two-step form from any pair of points, complex ones included."""
    path = [theta]
    for _ in range(n_steps):
        theta, previous = theta - lr * gradient(theta) + momentum * (theta - previous), theta
        path.append(theta)
    return np.array(path)


def slow_root(z, momentum):
    """The root of rho^2 - (1 + b - z) rho + b = 0 that is larger; of a complex pair the upper one."""
    roots = np.roots([1, -(1 + momentum - z), momentum]).astype(complex)
    rho = roots[np.abs(roots).argmax()]
    return complex(rho.real, abs(rho.imag))


def batches(n, size, sampling):
    """Every batch with its probability, as (counts, probability)."""
    if sampling == "without_replacement":
        chosen = list(itertools.combinations(range(n), size))
    elif sampling == "with_replacement":
        chosen = list(itertools.product(range(n), repeat=size))
    else:
        for kept in itertools.product((0, 1), repeat=n):
            yield np.array(kept), (size / n) ** sum(kept) * (1 - size / n) ** (n - sum(kept))
        return
    for batch in chosen:
        yield np.bincount(batch, minlength=n), 1 / len(chosen)


def one_step_matrices(jacobian, n_outputs, lr, size, sampling, momentum):
    """SGD on (theta, v) near an interpolating minimum, batch by batch: (matrix, probability)."""
    dim = jacobian.shape[1]
    for counts, probability in batches(len(jacobian) // n_outputs, size, sampling):
        weights = np.repeat(counts, n_outputs) / size
        hessian = jacobian.T @ (weights[:, None] * jacobian)
        identity = np.eye(dim)
        step = np.block(
            [
                [identity - lr * hessian, -lr * momentum * identity],
                [hessian, momentum * identity],
            ]
        )
        yield step if momentum else identity - lr * hessian, probability


def second_moment_operator(jacobian, n_outputs, lr, size, sampling, momentum=0.0):
    """E[M kron M] over all batches."""
    return sum(
        probability * np.kron(matrix, matrix)
        for matrix, probability in one_step_matrices(
            jacobian, n_outputs, lr, size, sampling, momentum
        )
    )


def residual_moments(ntk, residuals, n_outputs, lr, size, sampling, momentum, n_steps):
    """E[e e^T] after each step, by enumerating all batches of every step."""
    total = len(ntk)
    moment = np.zeros((2 * total, 2 * total))
    moment[:total, :total] = np.outer(residuals, residuals)
    steps = []
    for counts, probability in batches(total // n_outputs, size, sampling):
        pulled = lr * ntk * np.repeat(counts, n_outputs) * (total // n_outputs) / size
        identity = np.eye(total)
        matrix = np.block(
            [[identity - pulled, -momentum * identity], [pulled, momentum * identity]]
        )
        steps.append((matrix, probability))
    moments = [moment]
    for _ in range(n_steps):
        moment = sum(p * matrix @ moment @ matrix.T for matrix, p in steps)
        moments.append(moment)
    return np.array(moments)[:, :total, :total]
