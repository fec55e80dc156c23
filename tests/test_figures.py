"""The figures: their contract, their headlines, their bytes, and the command that makes them."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import figures
from figures import __main__ as command
from figures import _style
from figures._headline import Row

NAMES = command.figure_names()
# Without the JIT their simulations take minutes.
COMPILED = (
    "catapult_map",
    "conservative_sharpening",
    "edge_trajectories",
    "sgd_escape",
    "sgd_prediction",
    "stochastic_edge",
    "stochastic_edge_plane",
    "two_parameter_model",
    "typical_growth",
)
FIGURES = [pytest.param(n, marks=pytest.mark.size) if n in COMPILED else n for n in NAMES]
ROOT = Path(figures.__file__).parent.parent

CHEAP = '''"""{claim}"""
import numpy as np
from matplotlib.figure import Figure
from figures import _style
from figures._headline import Row


def compute(quick):
    {before}
    return {{"x": np.linspace(0, 1, 50), "quick": np.array(quick)}}


def headline(arrays):
    return [Row("the number", 1.0, 0.1, {measured})]


@_style.styled
def draw(arrays):
    figure = _style.canvas(4, 3, "A title", "a note")
    axes = figure.add_subplot()
    axes.plot(arrays["x"], arrays["x"] ** 2, color=_style.BLUE)
    axes.fill_between(arrays["x"], arrays["x"], alpha=0.2)
    axes.set_xlabel(r"$x$   abscissa")
    return figure
'''


@pytest.fixture(scope="module")
def quick_arrays():
    """Each figure's quick arrays, computed once for all tests that look at them."""
    cache: dict[str, dict[str, np.ndarray]] = {}

    def get(name):
        if name not in cache:
            cache[name] = command.load(name).compute(True)
        return cache[name]

    return get


@pytest.fixture
def add_figure(monkeypatch, tmp_path):
    """Put throw-away figure modules in the place of the real ones."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setattr(figures, "__path__", [str(folder)])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    added = []

    def add(name, *, claim="A claim.", before="pass", measured="1.0", more=""):
        text = CHEAP.format(claim=claim, before=before, measured=measured) + more
        (folder / f"{name}.py").write_text(text)
        added.append(name)

    yield add
    for name in added:
        sys.modules.pop(f"figures.{name}", None)
        vars(figures).pop(name, None)


def test_the_figures_are_discovered_and_private_modules_are_not():
    assert {
        "dal",
        "escape",
        "flow_errors",
        "gradient_descent_edge",
        "loss_along_instability",
        "momentum_stability_region",
        "principal_flow",
        "principal_flow_regimes",
        "rosenbrock_flows",
        "stability_coefficients",
    } <= set(NAMES)
    assert not any(name.startswith("_") for name in NAMES)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_states_its_claim_and_has_the_three_functions(name):
    module = command.load(name)
    claim = command.claim(module)
    assert claim.endswith(".")
    assert claim.count(". ") == 0, "one sentence"
    parameters = list(inspect.signature(module.compute).parameters)
    assert parameters in (["quick"], ["quick", "data"])
    assert list(inspect.signature(module.draw).parameters) == ["arrays"]
    assert list(inspect.signature(module.headline).parameters) == ["arrays"]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_a_committed_picture_and_a_row_in_the_readme(name):
    picture = ROOT / "figures" / "pictures" / f"{name}.png"
    assert picture.stat().st_size < 200_000
    readme = (ROOT / "figures" / "README.md").read_text()
    assert f"]({name}.py)" in readme
    assert f"](pictures/{name}.png)" in readme


@pytest.mark.timeout(300)  # a quick figure takes up to 20 s on an idle core
@pytest.mark.parametrize("name", FIGURES)
def test_every_headline_row_of_the_quick_figure_holds(name, quick_arrays):
    rows = command.load(name).headline(quick_arrays(name))
    assert rows
    assert [row.quantity for row in rows if not row.holds] == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FIGURES)
def test_no_text_of_a_figure_is_clipped_or_lies_on_other_text(name, quick_arrays):
    figure = command.load(name).draw(quick_arrays(name))
    boxes = text_boxes(figure)
    width, height = figure.canvas.get_width_height()
    outside = [
        text for text, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height
    ]
    assert outside == []
    crossing = [
        (first, second)
        for index, (first, box) in enumerate(boxes)
        for second, other in boxes[index + 1 :]
        if box.overlaps(other)
    ]
    assert crossing == []


def text_boxes(figure):
    """Text and extent in pixels of all visible words of a figure."""
    FigureCanvasAgg(figure).draw()
    boxes = []
    for artist in figure.findobj(mpl.text.Text):
        ticks = [axes for axes in figure.axes if is_hidden_tick(artist, axes)]
        if artist.get_text().strip() and artist.get_visible() and not ticks:
            boxes.append((artist.get_text(), artist.get_window_extent().padded(-1)))
    return boxes


def is_hidden_tick(artist, axes):
    """Tick labels that exist as objects but are switched off or lie outside the limits."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if artist is tick.label2:
                return True
            if artist is tick.label1:
                return not low <= tick.get_loc() <= high
    return False


def test_one_wrong_verdict_fails_the_stability_region(quick_arrays):
    arrays = dict(quick_arrays("momentum_stability_region"))
    flipped = arrays["nesterov_near_grows"].copy()
    flipped[3, 1] = ~flipped[3, 1]
    arrays["nesterov_near_grows"] = flipped
    rows = command.load("momentum_stability_region").headline(arrays)
    assert [row.quantity for row in rows if not row.holds] == ["nesterov: wrong verdicts of 140"]


def test_an_edge_off_by_one_in_a_million_fails_the_gradient_descent_figure(quick_arrays):
    arrays = dict(quick_arrays("gradient_descent_edge"))
    arrays["edge"] = arrays["edge"] * (1 + 1e-6)
    rows = command.load("gradient_descent_edge").headline(arrays)
    assert not rows[0].holds


def test_a_flow_that_stopped_early_fails_the_principal_flow_figure(quick_arrays):
    arrays = dict(quick_arrays("principal_flow_regimes"))
    arrays["cycle_principal_error"] = arrays["cycle_principal_error"][:5]
    rows = command.load("principal_flow_regimes").headline(arrays)
    assert sum(not row.holds for row in rows) == 1


def changed(arrays, **replaced):
    """The arrays with some of them replaced by a function of themselves."""
    return {**arrays, **{name: change(arrays[name]) for name, change in replaced.items()}}


def failing(name, arrays):
    return [row.quantity for row in command.load(name).headline(arrays) if not row.holds]


@pytest.mark.parametrize("flow", ["gradient", "order2", "principal"])
def test_a_constant_off_by_a_quarter_of_a_per_cent_fails_the_flow_errors(quick_arrays, flow):
    arrays = changed(
        quick_arrays("flow_errors"), **{f"{flow}_constant": lambda constant: 1.0025 * constant}
    )
    (quantity,) = failing("flow_errors", arrays)
    assert quantity.endswith("|constant / theory - 1|")


@pytest.mark.parametrize("flow", ["gradient", "order3", "order4", "principal2", "difference5"])
def test_a_flow_of_the_wrong_order_fails_the_flow_errors(quick_arrays, flow):
    arrays = quick_arrays("flow_errors")
    wrong = changed(arrays, **{flow: lambda drift: drift * arrays["h"][:, None] ** -0.2})
    assert any(quantity.endswith("slope") for quantity in failing("flow_errors", wrong))


def test_a_flow_that_stopped_early_fails_the_rosenbrock_figure(quick_arrays):
    arrays = changed(quick_arrays("rosenbrock_flows"), c_order4_error=lambda error: error[:1])
    assert failing("rosenbrock_flows", arrays) == ["C: lead over all truncations, 1, 2, 5"]


def test_an_error_wrong_in_the_sixth_digit_fails_the_rosenbrock_figure(quick_arrays):
    arrays = quick_arrays("rosenbrock_flows")
    arrays = changed(arrays, a_principal_error=lambda error: error * (1 + 1e-5))
    assert "A: principal flow, error at 1" in failing("rosenbrock_flows", arrays)


def test_the_principal_cut_would_fail_the_stability_coefficients(quick_arrays):
    arrays = quick_arrays("stability_coefficients")
    real = changed(arrays, principal=lambda alpha: alpha.real.astype(complex))
    assert failing("stability_coefficients", real) == [
        "z > 1: |Im alpha - pi / z|",
        "principal flow: |factor - (1 - z)|",
    ]


def test_the_sharp_minimum_holds_what_does_not_oscillate(quick_arrays):
    arrays = quick_arrays("escape")
    stuck = changed(arrays, valley_principal=lambda path: np.abs(path))
    assert "minimum: its sign flips of 6" in failing("escape", stuck)
    completed = changed(arrays, saddle_order2_status=lambda status: np.array("COMPLETED"))
    assert failing("escape", completed) == ["saddle: even orders with LEFT_RANGE"]


def test_flows_that_end_early_say_so_in_the_escape_figure(quick_arrays):
    arrays = quick_arrays("escape")
    figure = command.load("escape").draw(arrays)
    words = " ".join(text for text, _ in text_boxes(figure))
    for case, said in (
        ("valley_principal", "the principal flow blows up after"),
        ("cosine_principal", "the principal flow blows up after"),
        ("saddle_order2", "order 2: stops at"),
        ("saddle_order4", "order 4: stops at"),
    ):
        assert str(arrays[f"{case}_status"]) != "COMPLETED"
        assert f"{said} iterate {len(arrays[case]) - 1}" in words
    completed = changed(arrays, cosine_principal_status=lambda status: np.array("COMPLETED"))
    words = [text for text, _ in text_boxes(command.load("escape").draw(completed))]
    assert sum("blows up" in text for text in words) == 1


def test_a_principal_flow_ten_times_worse_fails_the_instability_figure(quick_arrays):
    arrays = quick_arrays("loss_along_instability")
    worse = changed(arrays, restart_principal=lambda error: 10 * error)
    assert (
        sum("restart at" in quantity for quantity in failing("loss_along_instability", worse)) == 8
    )


def test_an_order_3_that_never_overtakes_fails_the_instability_figure(quick_arrays):
    arrays = quick_arrays("loss_along_instability")
    behind = changed(arrays, global_order3=lambda distance: 3 * distance)
    assert failing("loss_along_instability", behind) == [
        "from 20: modified flow, order 3 / principal flow, step 20"
    ]


def test_a_rate_two_per_cent_lower_is_noticed_in_the_dal_figure(quick_arrays):
    arrays = changed(quick_arrays("dal"), dal_1_z=lambda z: 0.98 * z)
    assert "digits, p = 1: least h * lambda_1, aligned" in failing("dal", arrays)


def test_measured_edge_lies_above_the_true_one_by_the_predicted_offset(quick_arrays):
    arrays = quick_arrays("gradient_descent_edge")
    offset = arrays["edge"] / arrays["predicted_edge"] - 1
    lengths = arrays["run_length"]
    predicted = np.exp(
        np.interp(np.log(lengths), np.log(arrays["theory_length"]), np.log(arrays["theory_offset"]))
    )
    # First order in offset * N, and rounding of 1e-14 on offsets down to 2e-12.
    assert offset == pytest.approx(predicted, rel=0.05)


@pytest.mark.parametrize(
    ("kind", "measured", "holds"),
    [
        ("equal", 1.1, True),
        ("equal", 1.2, False),
        ("equal", math.nan, False),
        ("at most", -5.0, True),
        ("at most", 1.2, False),
        ("at most", math.nan, False),
        ("at least", 5.0, True),
        ("at least", 0.8, False),
        ("at least", math.nan, False),
    ],
)
def test_verdict_of_a_row(kind, measured, holds):
    assert Row("quantity", 1.0, 0.125, measured, kind).holds is holds


def test_a_row_refuses_an_unknown_kind_and_a_negative_or_nan_tolerance():
    with pytest.raises(ValueError, match="kind must be"):
        Row("quantity", 1.0, 0.0, 1.0, "about")
    for tolerance in (-1.0, math.nan):
        with pytest.raises(ValueError, match="tolerance must be"):
            Row("quantity", 1.0, tolerance, 1.0)


def test_same_bytes_twice_in_every_format(add_figure, tmp_path, monkeypatch, capsys):
    add_figure("cheap")
    contents = []
    for index, epoch in enumerate(["0", "1000000000"]):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)  # a date in the file would follow it
        with mpl.rc_context({"lines.linewidth": 7 + index, "font.size": 20 + index}):
            out = tmp_path / str(index)
            arguments = ["cheap", "--out", str(out), "--format", "png", "svg", "pdf"]
            assert command.main(arguments) == 0
        contents.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert sorted(contents[0]) == ["cheap.npz", "cheap.pdf", "cheap.png", "cheap.svg"]
    assert contents[0] == contents[1]


ANIMATED = """

def animate(arrays):
    figure = draw(arrays)
    (line,) = figure.axes[0].lines
    return _style.Animation(
        figure, lambda i: line.set_data(arrays["x"][: 10 * i], arrays["x"][: 10 * i]), 5, 40, 800
    )
"""


def test_an_animation_is_a_gif_beside_the_picture_with_the_same_bytes_twice(
    add_figure, tmp_path, capsys
):
    add_figure("moving", more=ANIMATED)
    for index in range(2):
        with mpl.rc_context({"lines.linewidth": 7 + index}):
            assert command.main(["moving", "--out", str(tmp_path / str(index))]) == 0
    first, second = (tmp_path / str(index) / "moving.gif" for index in range(2))
    assert first.read_bytes() == second.read_bytes()
    assert sorted(p.suffix for p in first.parent.iterdir()) == [".gif", ".npz", ".png"]
    with Image.open(first) as gif:
        assert gif.n_frames == 5
        assert gif.info["loop"] == 0, "for ever"
        assert gif.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
        times = []
        for index in range(5):
            gif.seek(index)
            times.append(gif.info["duration"])
    assert times == [40, 40, 40, 40, 800]


def test_the_committed_animation_is_small_lasts_four_to_six_seconds_and_is_current(quick_arrays):
    path = ROOT / "figures" / "pictures" / "principal_flow.gif"
    assert path.stat().st_size < 400_000
    animation = command.load("principal_flow").animate(quick_arrays("principal_flow"))
    with Image.open(path) as gif:
        assert gif.n_frames == animation.n_frames
    length = animation.milliseconds * (animation.n_frames - 1) + animation.pause
    assert 4000 <= length <= 6000


def test_gradient_descent_appears_at_its_iterates_only_in_the_animation(quick_arrays):
    arrays = quick_arrays("principal_flow")
    module = command.load("principal_flow")
    animation = module.animate(arrays)
    plane = animation.figure.axes[1]
    per_step = int(arrays["frames_per_step"])
    for frame in (0, 1, per_step - 1, per_step, 5 * per_step + 3):
        animation.update(frame)
        shown = max((line for line in plane.lines if line.get_markersize() == 6.5), key=id)
        x, y = shown.get_data()
        assert len(x) == frame // per_step + 1
        np.testing.assert_array_equal(y, arrays["iterates"][: len(y), module.SHARP_AXIS])


def test_same_arrays_twice_from_a_real_figure(quick_arrays, tmp_path):
    again = command.load("principal_flow_regimes").compute(True)
    for index, arrays in enumerate([quick_arrays("principal_flow_regimes"), again]):
        command.save_arrays(tmp_path / f"{index}.npz", arrays)
    assert (tmp_path / "0.npz").read_bytes() == (tmp_path / "1.npz").read_bytes()


def test_saved_arrays_are_read_back_by_numpy(tmp_path):
    arrays = {"b": np.arange(6.0).reshape(2, 3), "a": np.array(True), "c": np.array([1j])}
    command.save_arrays(tmp_path / "x.npz", arrays)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as archive:
        assert sorted(archive.files) == ["a", "b", "c"]
        for name, values in arrays.items():
            np.testing.assert_array_equal(archive[name], values)
            assert archive[name].dtype == values.dtype
            assert archive[name].shape == values.shape


def test_drawing_leaves_no_matplotlib_state_behind():
    before = dict(mpl.rcParams)
    figure = _style.styled(lambda arrays: Figure())({})
    assert isinstance(figure, Figure)
    assert dict(mpl.rcParams) == before


def test_all_is_well_gives_exit_code_0_and_an_aligned_table(add_figure, tmp_path, capsys):
    add_figure("cheap")
    assert command.main(["--out", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].split() == list(command.HEADER)
    column = lines[0].index("verdict")
    assert lines[2][column:].split()[0] == "holds"
    assert "1 of 1 figures, 1 of 1 rows hold" in captured.out
    assert "3/3" in captured.err  # the progress bar


def test_full_reaches_compute(add_figure, tmp_path, capsys):
    add_figure("cheap")
    for arguments, quick in ([], True), (["--full"], False):
        assert command.main([*arguments, "--out", str(tmp_path)]) == 0
        with np.load(tmp_path / "cheap.npz") as archive:
            assert archive["quick"] == quick


def test_a_failing_headline_gives_exit_code_1(add_figure, tmp_path, capsys):
    add_figure("good")
    add_figure("wrong", measured="1.5")
    assert command.main(["--out", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    verdicts = {line.split()[0]: "FAILS" in line for line in lines if line[:4] in ("good", "wron")}
    assert verdicts == {"good": False, "wrong": True}
    assert (tmp_path / "wrong.png").exists()


def test_a_figure_that_raises_gives_exit_code_1_and_the_others_finish(add_figure, tmp_path, capsys):
    add_figure("broken", before="raise ArithmeticError('no such number')")
    add_figure("good")
    assert command.main(["--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "broken failed: it raised ArithmeticError: no such number" in captured.out
    assert "Traceback" in captured.err
    assert (tmp_path / "good.png").exists()
    assert not (tmp_path / "broken.png").exists()


@pytest.mark.parametrize("name", ["dal", "gradient_descent_edge"])
def test_missing_scikit_learn_is_one_sentence(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert command.main([name, "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    (sentence,) = [line for line in captured.out.splitlines() if "scikit-learn" in line]
    assert sentence.startswith(f"{name} failed: ")
    assert 'pip install -e ".[figures]"' in sentence
    assert "Traceback" not in captured.out + captured.err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_one_line_that_lists_the_figures(capsys):
    assert command.main(["no_such_figure"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "no_such_figure" in captured.err
    for name in NAMES:
        assert name in captured.err


def test_an_unusable_folder_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command.main(["--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_list_prints_names_and_claims(capsys):
    assert command.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    for line, name in zip(lines, NAMES, strict=True):
        assert line.endswith(command.claim(command.load(name)))


def test_the_command_draws_without_pyplot_and_its_exit_code_reaches_the_shell(tmp_path):
    script = (
        "import sys; from figures.__main__ import main; "
        f"code = main(['principal_flow_regimes', '--out', {str(tmp_path)!r}]); "
        "assert 'matplotlib.pyplot' not in sys.modules; sys.exit(code)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=ROOT, check=True, timeout=50)
    wrong = subprocess.run(
        [sys.executable, "-m", "figures", "nothing"], cwd=ROOT, capture_output=True, timeout=50
    )
    assert wrong.returncode == 2
