"""The tournament of flows: its judgement by hand, its costs, and headlines that notice."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

import eosim
from eosim import measure
from figures import flow_tournament as tournament
from tests.test_figures import text_boxes

JUDGED = tournament.JUDGED
pytestmark = pytest.mark.timeout(300)  # the figure takes up to 20 s on an idle core


@pytest.fixture(scope="module")
def arrays():
    return tournament.compute(True)


def failing(arrays, **changed):
    """Headline rows that do not hold with some arrays replaced by a function of themselves."""
    replaced = {**arrays, **{name: change(arrays[name]) for name, change in changed.items()}}
    return [row.quantity for row in tournament.headline(replaced) if not row.holds]


# --- the judgement ------------------------------------------------------------------------------


def test_errors_are_medians_over_the_iterates_that_swing(arrays):
    z, start, n = np.array(tournament.BOWL), np.array(tournament.BOWL_START), 30
    iterates = np.array([(1 - z) ** k * start for k in range(n + 1)])
    path = np.exp(-np.outer(np.arange(n + 1), z)) * start  # gradient flow
    inner = np.arange(1, n)

    def smooth(values):
        return (values[:-2] + 2 * values[1:-1] + values[2:]) / 4

    centre = smooth(iterates)
    ends = [(3 * e[0] + 2 * e[1] - e[2]) / 4 for e in (iterates, iterates[::-1])]
    swing = smooth(np.sum((iterates - np.vstack([ends[0], centre, ends[1]])) ** 2, axis=1))
    losses = smooth(iterates**2 @ z / 2)
    judged = swing >= 0.01 * swing.max()
    assert 10 < judged.sum() < 25
    moved = np.linalg.norm(iterates - start, axis=1)
    expected = {
        "iterates": np.linalg.norm(path - iterates, axis=1)[inner]
        / np.sqrt(np.maximum.accumulate(swing)),
        "centre": np.linalg.norm(path[inner] - centre, axis=1)
        / np.maximum.accumulate(moved)[inner],
        "loss": np.abs((path**2 @ z / 2)[inner] / losses - 1),
        "swing": np.ones(n - 1),
    }
    by_hand = [np.median(expected[name][judged]) for name in JUDGED]
    np.testing.assert_allclose(arrays["bowl_gradient_errors"], by_hand, rtol=1e-3)


def test_what_does_not_exist_is_not_judged(arrays):
    assert np.isnan(arrays["bowl_central_errors"]).all()
    for match in ("rmsprop", "adam"):
        judged = [name for name in tournament.ENTRANTS if f"{match}_{name}_errors" in arrays]
        assert judged == ["stable", "central", "rod"]


def test_gradients_and_products_are_counted():
    problem = tournament.Counted(eosim.Quadratic(np.diag([1.0, 2.0, 3.0])))
    theta = np.ones(3)
    assert problem.loss(theta) == 3
    assert problem.calls == 0
    np.testing.assert_array_equal(problem.gradient(theta), [1, 2, 3])
    assert problem.calls == 1
    problem.hvp(theta, theta)
    assert problem.calls == 2
    assert problem.hessian(theta).shape == (3, 3)
    assert problem.calls == 5
    assert not hasattr(problem, "hvp_at")


def test_a_gradient_flow_costs_one_gradient_per_evaluation(arrays):
    for match in ("valley", "bowl", "quartic", "network"):
        evaluations, products = arrays[f"{match}_gradient_cost"]
        steps = arrays[f"{match}_step"][-1]
        assert 0 <= (products - evaluations) * steps <= 1 + 1e-9  # the field at the start


@pytest.mark.parametrize("match", ["rmsprop", "adam"])
def test_adaptive_rules_start_just_below_their_edges(match):
    problem, rule, _, state = tournament.contest(match)
    matrix = problem.hessian(state.theta)
    P = np.asarray(rule.preconditioner(state.rule_state))
    top = np.linalg.eigvalsh(matrix / np.sqrt(np.outer(P, P)))[-1]
    assert top / rule.critical_sharpness() == pytest.approx(0.95, rel=1e-6)


def test_the_network_is_at_its_edge():
    problem, rule, theta, _ = tournament.contest("network")
    assert abs(rule.lr * measure.sharpness(problem, theta).value / 2 - 1) < 0.05


# --- headlines ----------------------------------------------------------------------------------


def test_every_headline_holds(arrays):
    assert failing(arrays) == []


@pytest.mark.parametrize(
    ("name", "change", "quantity"),
    [
        (
            "valley_edge_errors",
            lambda errors: 10 * errors,
            "valley: centres, edge < rod < central < gradient",
        ),
        ("valley_gradient_centred", lambda gaps: gaps / 2, "valley: gradient flow, end to centre"),
        ("bowl_edge_oscillation", lambda x: x**0.99, "bowl: edge flow, factor per step"),
        ("bowl_rod_oscillation", lambda x: x**0.99, "bowl: rod flow, its factor per step"),
        (
            "bowl_central_status",
            lambda status: np.array("COMPLETED"),
            "bowl: central flow LEFT_RANGE",
        ),
        ("quartic_rod_oscillation", lambda x: 1.01 * x, "quartic: rod flow, mean square swing"),
        ("quartic_central_end", lambda w: 0 * w, "quartic: central flow rests where H = 2/h, |w|"),
        ("network_rod_errors", lambda errors: 10 * errors, "network: rod flow, centre"),
        ("rmsprop_central_errors", lambda errors: 3 * errors, "RMSProp: central flow, swing"),
        ("adam_central_errors", lambda errors: 3 * errors, "Adam: central flow, swing"),
        ("rmsprop_stable_errors", lambda errors: errors / 2, "RMSProp: stable flow, swing"),
    ],
)
def test_a_wrong_number_fails_its_row(arrays, name, change, quantity):
    assert quantity in failing(arrays, **{name: change})


# --- the picture --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def figure(arrays):
    return tournament.draw(arrays)


def tiles(figure):
    return [patch for axes in figure.axes for patch in axes.patches if isinstance(patch, Rectangle)]


def test_the_picture_has_a_tile_for_every_error_and_says_where_flows_end(arrays, figure):
    words = " ".join(text for text, _ in text_boxes(figure)).replace("\n", " ")
    for match, game in tournament.MATCHES.items():
        for entrant, kind in tournament.ENTRANTS.items():
            status = str(arrays.get(f"{match}_{entrant}_status", "COMPLETED"))
            if status != "COMPLETED":
                reached = arrays[f"{match}_{entrant}_reached"]
                assert (
                    f"{kind.label}, {game.short}: {tournament.ENDINGS[status]} at {reached}"
                    in words
                )
    errors = np.concatenate([v for key, v in arrays.items() if key.endswith("_errors")])
    expected = [
        np.sum(errors < 0.1),
        np.sum((errors >= 0.1) & (errors < 0.5)),
        np.sum(errors >= 0.5),
    ]
    # The key is one axes with a tile of each.
    drawn = [to_hex(tile.get_facecolor()) for tile in tiles(figure)]
    fills = [to_hex(fill) for fill, _ in tournament.LEVELS]
    assert [drawn.count(fill) - 1 for fill in fills] == expected


def test_frames_are_around_the_best_of_every_match_unless_all_are_off_by_half(arrays, figure):
    framed = sum(to_hex(tile.get_edgecolor()) == tournament._style.INK for tile in tiles(figure))
    expected = 0
    for index in range(len(JUDGED)):
        for match in tournament.MATCHES:
            found = [
                v[index] for k, v in arrays.items() if k.startswith(match) and k.endswith("_errors")
            ]
            best = np.nanmin(found)
            expected += sum(e < 0.5 and (e <= 0.01 or e <= 1.05 * best) for e in found)
    assert framed == expected
    assert 24 < expected < 60


def test_the_costs_shown_are_those_of_the_network(arrays, figure):
    words = [text for text, _ in text_boxes(figure)]
    for entrant in tournament.ENTRANTS:
        assert f"{arrays[f'network_{entrant}_cost'][1]:.0f}" in words


def test_every_way_to_end_early_has_its_word_and_no_list_of_them_is_clipped(arrays):
    early = {status.name for status in eosim.Status} - {"COMPLETED", "CONVERGED"}
    assert set(tournament.ENDINGS) == early
    broken = {key: np.array("BUDGET_SPENT") for key in arrays if key.endswith("_status")}
    some = dict(list(broken.items())[:9])
    figure = tournament.draw({**arrays, **some})
    width, height = figure.canvas.get_width_height()
    assert all(box.x1 <= width and box.y1 <= height for _, box in text_boxes(figure))
    words = " ".join(text for text, _ in text_boxes(figure)).replace("\n", " ")
    assert words.count("too costly") == len(some)
