"""Scores of a small matrix by hand, and intervals against printed tables of Student's distribution."""

import math

import pytest

from elaswave.continual.metrics import interval, paired, scores, student_cdf, student_quantile

MATRIX = [[0.9, 0.2, 0.1], [0.6, 0.8, 0.3], [0.7, 0.5, 0.95]]


def test_scores_by_hand():
    found = scores(MATRIX, [0.1, 0.1, 0.1])
    assert found.accuracy == pytest.approx((0.7 + 0.5 + 0.95) / 3)
    assert found.backward_transfer == pytest.approx((-0.2 - 0.3) / 2)
    assert found.forgetting == pytest.approx((0.2 + 0.3) / 2)
    assert found.forward_transfer == pytest.approx((0.1 + 0.2) / 2)
    assert found.learning_accuracy == pytest.approx((0.9 + 0.8 + 0.95) / 3)


def test_forgetting_is_counted_from_the_best_value_and_not_from_the_first():
    assert scores([[0.5, 0.0, 0.0], [0.9, 0.8, 0.0], [0.6, 0.8, 0.9]], [0.0] * 3).forgetting == pytest.approx(0.15)


def test_a_single_task_has_nothing_to_transfer():
    found = scores([[0.5]], [0.1])
    assert (found.accuracy, found.forgetting, found.forward_transfer) == (0.5, 0.0, 0.0)


@pytest.mark.parametrize(("matrix", "untrained"), [([], []), ([[0.1, 0.2]], [0.1]), ([[0.5]], [])])
def test_matrices_that_are_not_square_are_refused(matrix, untrained):
    with pytest.raises(ValueError, match="tasks x tasks"):
        scores(matrix, untrained)


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (30, 2.0423)])
def test_quantiles_are_those_of_the_table(freedom, quantile):
    assert student_quantile(0.975, freedom) == pytest.approx(quantile, abs=1e-4)
    assert student_cdf(0.0, freedom) == 0.5


def test_intervals():
    found = interval([0.1, 0.2, 0.3, 0.4, 0.5])
    assert (found.mean, found.n) == (pytest.approx(0.3), 5)
    assert found.half_width == pytest.approx(2.7764 * math.sqrt(0.025) / math.sqrt(5), rel=1e-4)
    assert interval([0.5]).half_width == math.inf
    assert paired([0.3, 0.5], [0.1, 0.1]).mean == pytest.approx(0.3)
    with pytest.raises(ValueError, match="at least one"):
        interval([])
