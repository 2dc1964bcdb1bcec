from __future__ import annotations

import numpy as np
import pytest

from calibration.rounding import compensated_levels


def _correlated(inputs: int) -> np.ndarray:
    """(400, inputs): a few causes, many channels, as in a network."""
    rng = np.random.default_rng(3)
    causes = rng.normal(size=(400, 6)) @ rng.normal(size=(6, inputs))
    return causes + rng.normal(0, 0.2, (400, inputs)) + 0.5


def _moments(rows: np.ndarray) -> np.ndarray:
    return (rows.T @ rows / len(rows))[None]


def _levels_by_least_squares(
    matrix: np.ndarray, moments: np.ndarray, scales: np.ndarray
) -> np.ndarray:
    """The same aim in the plainest way: after each rounding solve for all weights still free."""
    damped = moments + 0.01 * np.mean(np.diag(moments)) * np.eye(len(moments))
    order = np.argsort(-np.diag(moments))
    levels = np.zeros_like(matrix)
    for row in range(len(matrix)):
        now = matrix[row].copy()
        for index in range(len(order)):
            fixed, free = order[: index + 1], order[index + 1 :]
            place = order[index]
            levels[row, place] = np.clip(np.rint(now[place] / scales[row]), -127, 127)
            lost = matrix[row, fixed] - levels[row, fixed] * scales[row]
            if len(free):
                pull = damped[np.ix_(free, fixed)] @ lost
                now[free] = matrix[row, free] + np.linalg.solve(damped[np.ix_(free, free)], pull)
    return levels


def test_of_two_inputs_that_are_always_equal_the_second_makes_up_for_the_first() -> None:
    matrix, scales = np.array([[[0.4, 0.4]]]), np.array([[1.0]])
    assert compensated_levels(matrix, np.ones((1, 2, 2)), scales).tolist() == [[[0, 1]]]


def test_independent_inputs_are_rounded_to_nearest() -> None:
    matrix = np.random.default_rng(0).normal(0, 20, (1, 5, 8))
    levels = compensated_levels(matrix, np.eye(8)[None], np.ones((1, 5)))
    assert np.array_equal(levels, np.rint(matrix))


@pytest.mark.parametrize("inputs", [5, 64, 65, 130])
def test_the_levels_are_those_of_solving_for_the_free_weights_after_each_rounding(
    inputs: int,
) -> None:
    rng = np.random.default_rng(inputs)
    matrix, scales = rng.normal(0, 1, (3, inputs)), np.array([0.02, 0.03, 0.04])
    moments = _moments(_correlated(inputs))
    expected = _levels_by_least_squares(matrix, moments[0], scales)
    assert np.array_equal(compensated_levels(matrix[None], moments, scales[None])[0], expected)


def test_the_output_on_the_inputs_seen_is_closer_than_with_rounding_to_nearest() -> None:
    rows = _correlated(32)
    matrix = np.random.default_rng(1).normal(0, 1, (1, 16, 32))
    scales = np.full((1, 16), 3 / 127)
    nearest = np.rint(matrix / scales[0, 0])
    compensated = compensated_levels(matrix, _moments(rows), scales)

    def error(levels: np.ndarray) -> float:
        return float(np.square(rows @ (levels * scales[0, 0] - matrix)[0].T).sum())

    assert error(compensated) < 0.3 * error(nearest)


def test_groups_do_not_affect_each_other() -> None:
    rng = np.random.default_rng(2)
    matrix, scales = rng.normal(0, 1, (2, 3, 6)), np.full((2, 3), 0.05)
    moments = np.concatenate([_moments(_correlated(6)), np.eye(6)[None]])
    both = compensated_levels(matrix, moments, scales)
    for group in range(2):
        part = slice(group, group + 1)
        alone = compensated_levels(matrix[part], moments[part], scales[part])
        assert np.array_equal(both[part], alone)


def test_levels_stay_within_127_however_much_is_to_be_made_up_for() -> None:
    matrix = np.full((1, 1, 4), 127.4)
    levels = compensated_levels(matrix, np.ones((1, 4, 4)), np.ones((1, 1)))
    assert levels.tolist() == [[[127, 127, 127, 127]]]


def test_inputs_that_were_always_zero_leave_their_weights_to_rounding_to_nearest() -> None:
    matrix = np.array([[[1.4, -2.6, 0.2]]])
    levels = compensated_levels(matrix, np.zeros((1, 3, 3)), np.ones((1, 1)))
    assert levels.tolist() == [[[1, -3, 0]]]
