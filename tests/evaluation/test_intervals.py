"""Intervals over seeds are those of scipy's t-tests."""

import numpy as np
import pytest
import scipy.stats

from lafr.evaluation.intervals import compare, half_interval, noise_of

A = {0: 20.1, 1: 20.9, 2: 20.4, 3: 21.3}
B = {0: 19.8, 1: 20.2, 2: 20.3, 3: 20.6}


def half(interval) -> float:
    return (interval.high - interval.low) / 2


def test_a_mean_over_seeds_has_students_interval():
    values = list(A.values())
    assert half_interval(values) == pytest.approx(half(scipy.stats.ttest_1samp(values, 0).confidence_interval()))
    assert half_interval([1.0]) is None


def test_methods_of_the_same_seeds_have_the_paired_interval_and_those_of_others_the_pooled_one():
    paired = compare(A, B, noise_of([A, B]))
    expected = scipy.stats.ttest_rel(list(A.values()), list(B.values())).confidence_interval()
    assert paired.difference == pytest.approx(np.mean(list(A.values())) - np.mean(list(B.values())))
    assert paired.half == pytest.approx(half(expected)) and paired.seeds == 4
    other = {seed + 10: value for seed, value in B.items()}
    apart = compare(A, other, noise_of([A, other]))
    expected = scipy.stats.ttest_ind(list(A.values()), list(B.values())).confidence_interval()
    assert apart.half == pytest.approx(half(expected)) and apart.seeds == 0


def test_a_difference_within_its_interval_is_noise_and_without_seeds_nothing_is_known():
    noise = noise_of([A, B])
    assert compare(A, A, noise).verdict("↑") == "within noise"
    assert compare({0: 30.0}, {0: 20.0}, noise).verdict("↑") == "ahead"
    assert compare({0: 30.0}, {0: 20.0}, noise).verdict("↓") == "behind"
    assert compare({0: 1.0}, {0: 2.0}, noise_of([{0: 1.0}, {0: 2.0}])).verdict("↑") == "unsure"
    assert compare({}, A) is None
