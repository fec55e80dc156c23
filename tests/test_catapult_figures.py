"""The figures on catapults: a wrong cell, a shifted peak or a shifted edge fails their headlines."""

import numpy as np
import pytest

from eosim.catapult import Phase
from figures import catapult_map, catapult_trajectory, catapult_width

pytestmark = pytest.mark.size  # without the JIT a phase diagram of 400,000 starts takes minutes


@pytest.fixture(scope="module")
def quick_map():
    return catapult_map.compute(True)


@pytest.fixture(scope="module")
def quick_trajectory():
    return catapult_trajectory.compute(True)


@pytest.fixture(scope="module")
def quick_width():
    return catapult_width.compute(True)


def failing(module, arrays):
    return [row.quantity for row in module.headline(arrays) if not row.holds]


def with_cell(arrays, name, row, column, phase):
    changed = arrays[name].copy()
    changed[row, column] = phase
    return {**arrays, name: changed}


@pytest.mark.parametrize(
    ("a", "phase", "quantity"),
    [
        (1.9, Phase.CATAPULT, "cells wrong at a = 2 + w (w < 1)"),
        (2.1, Phase.MONOTONE, "cells wrong at a = 2 + w (w < 1)"),
        (3.9, Phase.DIVERGED, "cells wrong at a = 4"),
        (4.1, Phase.CATAPULT, "cells wrong at a = 4"),
    ],
)
def test_one_wrong_cell_fails_the_map(quick_map, a, phase, quantity):
    row, column = abs(quick_map["log_w"] + 5).argmin(), abs(quick_map["a"] - a).argmin()
    assert failing(catapult_map, with_cell(quick_map, "phase", row, column, phase)) == [quantity]


def test_one_wrong_cell_with_a_label_fails_the_map(quick_map):
    column = abs(quick_map["a_label"] - 3.6).argmin()
    for label, phase, quantity in (
        (0.1, Phase.DIVERGED, "cells wrong at F = 0 (|Y| < 2)"),
        (0.1, Phase.MONOTONE, "monotone after a first step up"),
        (1.1, Phase.CATAPULT, "cells that converge at |Y| > 1"),
    ):
        row = abs(quick_map["label"] - label).argmin()
        changed = with_cell(quick_map, "phase_label", row, column, phase)
        assert failing(catapult_map, changed) == [quantity]


def test_no_start_of_the_map_lies_on_a_line(quick_map):
    for a in (quick_map["a"], quick_map["a_label"]):
        assert np.abs(a - 4).min() > 1e-4
    for level in (1, 2):
        assert np.abs(np.abs(quick_map["label"]) - level).min() > 1e-4


def test_the_orbits_of_the_two_cycle_lie_in_the_bins_of_its_closed_form(quick_map):
    column = abs(quick_map["balanced_label"] - 1.1).argmin()
    occupied = np.flatnonzero(quick_map["density"][:, column])
    label = quick_map["balanced_label"][column]
    outputs = np.roots([1, -(1 + label), 1])  # r + 1/r = 1 + Y
    expected = np.sort(outputs / catapult_map.OUTPUT_LIMITS[1] * catapult_map.OUTPUT_BINS)
    np.testing.assert_array_equal(occupied, expected.astype(int))


def test_a_peak_two_steps_late_or_a_tenth_too_high_fails_the_trajectory(quick_trajectory):
    late = {**quick_trajectory, "peak_step": quick_trajectory["peak_step"] + 2}
    assert failing(catapult_trajectory, late) == ["delta <= 0.8: |step of peak - form|"]
    high = {**quick_trajectory, "peak_w": quick_trajectory["peak_w"] * 1.1}
    assert failing(catapult_trajectory, high) == ["delta <= 0.5: |peak height / form - 1|"]


def test_a_final_ntk_off_in_the_fourth_digit_fails_the_trajectory(quick_trajectory):
    off = {**quick_trajectory, "known_final": quick_trajectory["known_final"] + 4e-4}
    assert len(failing(catapult_trajectory, off)) == 2


@pytest.mark.parametrize("name", ["first", "second"])
def test_an_edge_off_by_a_billionth_fails_the_width(quick_width, name):
    off = {**quick_width, name: quick_width[name] * (1 + 1e-9)}
    assert failing(catapult_width, off) == [f"{name} edge: |bisected / form - 1|"]


def test_a_shift_of_half_an_order_fails_the_width(quick_width):
    slower = (quick_width["first"] - 2) * (quick_width["width"][:, None] / 64) ** 0.5
    wrong = failing(catapult_width, {**quick_width, "first": 2 + slower})
    assert "first edge: slope of the mean shift" in wrong
