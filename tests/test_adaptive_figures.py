"""The figures of adaptive rules: what they follow is the rule, wrong numbers fail them, and ``--data``."""

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator, eigsh

from figures import __main__ as command
from figures import _digits_network, adaptive_edge, optimizer_survey
from tests.test_figures import text_boxes

RATE = 3e-3  # meets the edge first, at about step 600
SHORT = adaptive_edge.Settings(
    rates=(RATE,),
    frozen_rate=RATE,
    stops={"early": 250, "frozen": 700},
    n_steps=1500,
    every=50,
    seeds=(0,),
)
FEW = adaptive_edge.Settings(
    rates=(1e-4,), frozen_rate=1e-4, stops={"frozen": 4}, n_steps=8, every=2, seeds=(0,)
)


@pytest.fixture(scope="module")
def problem():
    return _digits_network.load_problem()


@pytest.fixture(scope="module")
def edge():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptive_edge, "DIGITS_QUICK", SHORT)
        return adaptive_edge.compute(True)


def failing(module, arrays):
    return [row.quantity for row in module.headline(arrays) if not row.holds]


def naive_adam(problem, theta, n_steps, freeze=None):
    """theta and P after the steps, with P fixed from step ``freeze`` on; losses of every state."""
    m, nu, losses = np.zeros(problem.dim), np.zeros(problem.dim), [problem.loss(theta)]
    for t in range(1, n_steps + 1):
        g = problem.gradient(theta)
        m, nu = 0.9 * m + 0.1 * g, 0.99 * nu + 0.01 * g * g
        if freeze is None or t <= freeze:
            P = (1 - 0.9**t) * (np.sqrt(nu / (1 - 0.99**t)) + 1e-7)
        theta = theta - RATE * m / P
        losses.append(problem.loss(theta))
    return theta, P, np.array(losses)


def test_the_network_starts_from_the_weights_of_its_seed(problem):
    generator = np.random.default_rng(7)
    first, second = (
        np.hstack([generator.standard_normal(shape) / np.sqrt(shape[1]), np.zeros((shape[0], 1))])
        for shape in ((32, 64), (10, 32))
    )
    expected = np.concatenate([first.ravel(), second.ravel()])
    np.testing.assert_allclose(problem.initial(7), expected, rtol=1e-15)
    assert problem.inputs.shape == (500, 64)
    assert np.abs(problem.inputs.mean(axis=0)).max() < 1e-14


def test_the_ratio_is_that_of_the_rule_to_its_threshold(problem):
    path = _digits_network.follow(problem, _digits_network.adam(RATE), 60, seed=1, every=20)
    theta, P, losses = naive_adam(problem, problem.initial(1), 60)
    np.testing.assert_allclose(path["loss"], losses[::20], rtol=1e-9)
    root = np.sqrt(P)
    shape = (problem.dim, problem.dim)
    whitened = LinearOperator(shape, lambda v: problem.hvp(theta, v.ravel() / root) / root)
    top = eigsh(whitened, k=1, which="LA", tol=1e-10, return_eigenvectors=False)[0]
    assert path["edge.ratio"][-1] == pytest.approx(RATE * top / 38, rel=1e-6)
    plain = LinearOperator(shape, lambda v: problem.hvp(theta, v.ravel()))
    top = eigsh(plain, k=1, which="LA", tol=1e-10, return_eigenvectors=False)[0]
    assert path["edge.sharpness"][-1] == pytest.approx(top, rel=1e-6)


def test_a_live_run_is_not_disturbed_by_the_stops(edge, problem):
    whole = _digits_network.follow(problem, _digits_network.adam(RATE), 1500)
    np.testing.assert_array_equal(edge[f"live_{RATE}_step"], whole["step"])
    np.testing.assert_array_equal(edge[f"live_{RATE}_loss"][0], whole["loss"])


def test_a_frozen_run_keeps_the_preconditioner_of_its_stop(edge, problem):
    _, _, losses = naive_adam(problem, problem.initial(0), 400, freeze=250)
    step = edge["early_step"]
    assert step[0] == 250
    np.testing.assert_allclose(edge["early_loss"][0][step <= 400], losses[250::50], rtol=1e-9)


def test_short_runs_rest_at_the_edge_live_and_frozen(edge):
    # Too short to sharpen as much as thousands of steps do.
    assert {
        quantity for quantity in failing(adaptive_edge, edge) if "sharpness" not in quantity
    } == set()


def test_no_text_of_the_short_runs_lies_on_other_text(edge):
    assert_no_text_on_text(adaptive_edge.draw(edge))


def assert_no_text_on_text(figure):
    boxes = text_boxes(figure)
    width, height = figure.canvas.get_width_height()
    for index, (text, box) in enumerate(boxes):
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 0, text
        assert [other for other, second in boxes[index + 1 :] if box.overlaps(second)] == [], text


def claimed_edge():
    """Runs that do what the figure claims, to the letter."""
    step = np.arange(0, 4001, 50)
    arrays = {
        "n_images": np.array(0),
        "seed": np.array([0]),
        "rate": np.array([3e-4, 1e-3, 3e-3]),
        "frozen_rate": np.array(1e-3),
    }
    runs = {f"live_{lr:g}": (0, 1.0, 7 + step / 500) for lr in arrays["rate"]}
    runs |= {"frozen": (1000, 1.0, 9.0 + 0 * step), "early": (500, 0.2, 8.0 + 0 * step)}
    for name, (start, ratio, sharpness) in runs.items():
        rows = step >= start
        arrays[f"{name}_step"] = step[rows]
        arrays[f"{name}_loss"] = np.ones((1, rows.sum()))
        arrays[f"{name}_ratio"] = np.full((1, rows.sum()), ratio)
        arrays[f"{name}_sharpness"] = sharpness[rows][None]
    return arrays


@pytest.mark.parametrize(
    ("changes", "quantities"),
    [
        ({}, []),
        # A threshold of 19 or 76 for Adam, or another rule's.
        (
            {"live_0.003_ratio": lambda ratio: 2 * ratio},
            [
                "lr = 0.003: ratio, median of the second half",
                "lr = 0.003: |ratio - 1| of nine in ten",
            ],
        ),
        (
            {"live_0.0003_ratio": lambda r: 0.94 * r},
            ["lr = 0.0003: ratio, median of the second half"],
        ),
        # Twice as far from 1 as it may be, above and below in turn.
        (
            {"frozen_ratio": lambda r: r + 0.24 * (-1) ** np.arange(r.size)},
            ["frozen: |ratio - 1| of nine in ten", "frozen: ratio, median of the second half"],
        ),
        (
            {"frozen_sharpness": lambda s: s + np.arange(s.size) / 8},
            ["frozen: raw", "live / frozen"],
        ),
        ({"live_0.001_sharpness": lambda s: 0 * s + 9}, ["live: raw", "live / frozen"]),
        ({"early_ratio": lambda ratio: 5 * ratio}, ["frozen at 500: ratio, the same"]),
        ({"live_0.001_ratio": lambda ratio: np.nan * ratio}, ["lr = 0.001", "lr = 0.001"]),
    ],
)
def test_only_runs_as_claimed_hold(changes, quantities):
    arrays = claimed_edge()
    for name, change in changes.items():
        arrays[name] = change(arrays[name])
    failed = failing(adaptive_edge, arrays)
    assert len(failed) == len(quantities)
    assert all(any(part in quantity for quantity in failed) for part in quantities)


def test_the_worst_seed_is_judged():
    arrays = claimed_edge()
    for name in list(arrays):
        if name.endswith(("ratio", "sharpness", "loss")) and arrays[name].ndim == 2:
            arrays[name] = np.repeat(arrays[name], 3, axis=0)
    assert failing(adaptive_edge, arrays) == []
    arrays["live_0.001_ratio"][1] *= 1.06
    arrays["frozen_sharpness"][2, -10:] *= 1.3
    assert failing(adaptive_edge, arrays) == [
        "lr = 0.001: ratio, median of the second half",
        "frozen: raw sharpness, end / step 1000",
    ]


def claimed_survey(problem):
    arrays = {"seed": np.array([0]), "step": np.arange(0, 2501, 50)}
    ones = np.ones((1, len(arrays["step"])))
    for name, rule in optimizer_survey.rules(problem).items():
        arrays[f"{name}_lr"] = np.array(rule.lr)
        arrays[f"{name}_critical"] = np.array(rule.critical_sharpness())
        arrays[f"{name}_ratio"] = ones * (1.07 if name in ("RMSProp", "NAdam") else 1)
        plain = name in optimizer_survey.PLAIN
        arrays[f"{name}_sharpness"] = ones if plain else ones * (1 + arrays["step"] / 2500)
    return arrays


def test_every_rule_of_the_survey_is_judged_by_its_own_threshold(problem):
    decay = 1 - 1e-3 * 0.01 / 2
    thresholds = {
        "GD": 2,
        "RMSProp": 2,
        "AdaGrad": 2,
        "Nesterov": 19 / 14,
        "NAdam": 95 / 7,
        "heavy ball": 3.8,
        "Adam": 38,
        "AdamW": 38 * decay,
        "Padam": 38,
        "Adafactor": 38,
    }
    rules = optimizer_survey.rules(problem)
    assert {name: rule.lr * rule.critical_sharpness() for name, rule in rules.items()} == (
        pytest.approx(thresholds, rel=1e-12)
    )


@pytest.mark.parametrize(
    ("name", "change", "quantities"),
    [
        ("Adam_ratio", lambda ratio: ratio, []),
        ("Adam_ratio", lambda ratio: 0.94 * ratio, ["Adam: ratio, median of the second half"]),
        (
            "RMSProp_ratio",
            lambda ratio: ratio / 1.08,
            ["RMSProp: ratio, median of the second half"],
        ),
        ("NAdam_ratio", lambda ratio: 1.08 * ratio, ["NAdam: ratio, median of the second half"]),
        ("heavy ball_ratio", lambda r: 0.89 * r, ["heavy ball: ratio, median of the second half"]),
        (
            "GD_sharpness",
            lambda s: s * np.linspace(1, 1.3, s.size),
            ["GD: |raw sharpness, end / step 1000 - 1|"],
        ),
        ("AdamW_sharpness", np.ones_like, ["AdamW: raw sharpness, end / step 1000"]),
    ],
)
def test_only_rules_in_their_bands_hold(problem, name, change, quantities):
    arrays = claimed_survey(problem)
    arrays[name] = change(arrays[name])
    assert failing(optimizer_survey, arrays) == quantities


def test_no_text_of_the_survey_lies_on_other_text(problem):
    assert_no_text_on_text(optimizer_survey.draw(claimed_survey(problem)))


def test_the_survey_follows_every_rule(problem, monkeypatch):
    monkeypatch.setattr(optimizer_survey, "STEPS_QUICK", 50)
    arrays = optimizer_survey.compute(True)
    rules = optimizer_survey.rules(problem)
    ratios = [arrays[f"{name}_ratio"][0, -1] for name in rules]
    assert np.isfinite(ratios).all()
    assert len(set(ratios)) == len(rules)
    path = _digits_network.follow(problem, rules["NAdam"], 50)
    assert arrays["NAdam_ratio"][0, -1] == path["edge.ratio"][-1]


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder of two files in CIFAR-10's binary version, 12 and 20 images of noise; short runs."""
    monkeypatch.setattr(adaptive_edge, "IMAGES_QUICK", FEW)
    monkeypatch.setattr(adaptive_edge, "IMAGE_HIDDEN", (6,) * 5)
    generator = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for index, n in ((1, 12), (2, 20)):
        records = generator.integers(0, 256, (n, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(n) % 10
        records.tofile(folder / f"data_batch_{index}.bin")
    (folder / "test_batch.bin").write_bytes(b"")
    return folder


def test_images_are_the_first_of_a_file_or_of_a_folder_in_order(images):
    one, several = images / "data_batch_1.bin", adaptive_edge.load_images(images, 15)
    assert several.n_samples == 15
    np.testing.assert_array_equal(several.targets.argmax(axis=1), [*range(10), 0, 1, 0, 1, 2])
    assert adaptive_edge.load_images(one, 10).n_samples == 10
    assert adaptive_edge.load_images(one, 1000).n_samples == 12
    assert adaptive_edge.load_images(images, 1000).n_samples == 32
    assert several.criterion == "cross_entropy"
    assert [out for out, _ in several.shapes] == [6] * 5 + [10]


def test_the_network_of_images_is_the_papers():
    assert adaptive_edge.IMAGE_HIDDEN == (200,) * 5


def test_other_files_are_refused(images, tmp_path):
    with pytest.raises(ValueError, match=r"the folder .* has no file data_batch"):
        adaptive_edge.load_images(tmp_path, 10)
    for content in (b"", b"\x00" * 3000, b"\x00" * 3074, b"\x0b" + b"\x00" * 3072):
        (tmp_path / "other.bin").write_bytes(content)
        with pytest.raises(ValueError, match=r"^paths: .*other\.bin"):
            adaptive_edge.load_images(tmp_path / "other.bin", 10)


def test_the_command_computes_on_your_images(images, tmp_path, capsys):
    code = command.main(["adaptive_edge", "--data", str(images), "--out", str(tmp_path / "out")])
    output = capsys.readouterr().out
    assert code == 1  # eight steps do not reach the edge
    assert "lr = 0.0001: ratio, median of the second half" in output
    assert "is made" not in output
    with np.load(tmp_path / "out" / "adaptive_edge.npz") as arrays:
        assert arrays["n_images"] == 32
        assert list(arrays["live_0.0001_step"]) == [0, 2, 4, 6, 8]
        assert np.isfinite(arrays["frozen_ratio"]).all()
        figure = adaptive_edge.draw(dict(arrays))
    assert (tmp_path / "out" / "adaptive_edge.png").exists()
    assert any("first 32 images" in text for text, _ in text_boxes(figure))


@pytest.mark.parametrize(
    ("names", "path", "message"),
    [
        (["dal", "adaptive_edge"], "", "--data is not for dal, whose data are fixed"),
        ([], "", "--data needs the figures to compute on it, by name: adaptive_edge"),
        (["adaptive_edge"], "missing.bin", "--data: there is no file or folder"),
    ],
)
def test_the_command_refuses_data_that_cannot_be_used(
    images, tmp_path, capsys, names, path, message
):
    out = tmp_path / "out"
    assert command.main([*names, "--data", str(images / path), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
