import numpy as np
from scipy.stats import rankdata

from bench.ranks import centred_ranks, weighted_ranks


def test_ranks_of_rows_are_scipys_less_their_mean() -> None:
    values = np.random.default_rng(0).integers(0, 4, (20, 7)).astype(float)
    assert np.allclose(centred_ranks(values), rankdata(values, axis=1) - 4)


def test_a_value_of_weight_two_ranks_as_two_values() -> None:
    values, weights = np.array([3.0, 1.0, 3.0, 2.0]), np.array([[2.0, 1.0, 0.0, 2.0]])
    repeated = rankdata([3.0, 3.0, 1.0, 2.0, 2.0])
    assert weighted_ranks(values, weights)[0, [0, 1, 3]].tolist() == (repeated[[0, 2, 3]] - 0.5).tolist()
