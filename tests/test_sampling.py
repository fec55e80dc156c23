"""Mini-batches: each scheme's distribution, by slow twins and by counting."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import eosim
from eosim import sampling
from eosim.sampling import BatchStream, batch_blocks, seed_sequence, stream_key
from tests import naive
from tests.cases import SCHEMES, regression

KEY = (0x0123456789ABCDEF, 0xFEDCBA9876543210)


def batches(n, size, scheme, start, stop, key=KEY):
    return [batch.tolist() for batch in BatchStream(n, size, scheme, key).batches(start, stop)]


def assert_equally_likely(counts: Counter, outcomes: list, probabilities=None):
    """Every count within 5 sigma of its expectation, and no other outcome."""
    total = sum(counts.values())
    assert set(counts) <= set(outcomes)
    for index, outcome in enumerate(outcomes):
        p = 1 / len(outcomes) if probabilities is None else probabilities[index]
        sigma = math.sqrt(total * p * (1 - p))
        assert abs(counts[outcome] - total * p) < 5 * sigma, outcome


@given(
    st.sampled_from(SCHEMES),
    st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
    st.integers(0, 10**12),
    st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
)
def test_a_stream_is_the_shuffle_of_a_list_with_the_same_draws(scheme, key, start, shape):
    n, size = shape
    expected = [naive.batch(scheme, key, step, n, size) for step in range(start, start + 5)]
    assert batches(n, size, scheme, start, start + 5, key) == expected


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_batch_depends_on_its_own_step_only(scheme):
    whole = batches(11, 3, scheme, 0, 60)
    assert batches(11, 3, scheme, 17, 43) == whole[17:43]
    assert [batches(11, 3, scheme, step, step + 1)[0] for step in range(60)] == whole
    assert batches(11, 3, scheme, 5, 5) == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_blocks_of_draws_leave_no_seam(scheme, monkeypatch):
    whole = batches(11, 3, scheme, 0, 60)
    monkeypatch.setattr(sampling, "_BLOCK_DRAWS", 7)
    assert batches(11, 3, scheme, 0, 60) == whole


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("n", "size"), [(1, 1), (2, 1), (5, 5), (11, 3), (40, 39)])
def test_compiled_batches_are_the_same(scheme, n, size, monkeypatch):
    plain = batches(n, size, scheme, 3, 50)
    monkeypatch.setattr(sampling, "_COMPILED_FROM", 0)
    for draws in (65_536, 7):  # one block, many blocks
        monkeypatch.setattr(sampling, "_BLOCK_DRAWS", draws)
        with np.errstate(over="ignore"):  # arithmetic modulo 2^64, without the JIT
            assert batches(n, size, scheme, 3, 50) == plain


@pytest.mark.parametrize("draws", [65_536, 200, 7])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("n", "size"), [(1, 1), (10, 1), (11, 3), (7, 7)])
def test_a_block_serves_many_streams(scheme, n, size, draws, monkeypatch):
    monkeypatch.setattr(sampling, "_BLOCK_DRAWS", draws)
    keys = np.random.default_rng(0).integers(0, 2**64, (3, 2), dtype=np.uint64)
    drawn = [[], [], []]
    with np.errstate(over="ignore"):
        for rows, ends, shares, first in batch_blocks(keys, n, size, scheme, 2, 72):
            for r in range(3):
                assert first == 2 + len(drawn[r])
                parts = np.split(rows[r, : ends[r, -1]], ends[r, :-1])
                drawn[r] += [part.tolist() for part in parts]
                sizes = [size if scheme == "bernoulli" else len(part) for part in parts]
                np.testing.assert_array_equal(shares[r], 1 / np.array(sizes))
    assert drawn == [batches(n, size, scheme, 2, 72, tuple(map(int, key))) for key in keys]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("size", "least"), [(3, 16), (5000, 8), (20_000, 2)])
def test_no_stream_moves_the_blocks_of_another_off_their_grid(scheme, size, least):
    n = size if scheme == "bernoulli" else size + 20
    for m in (1, 2, sampling.streams_at_once(n, size, scheme)):
        keys = np.zeros((m, 2), np.uint64)
        with np.errstate(over="ignore"):
            blocks = itertools.islice(batch_blocks(keys, n, size, scheme, 0, 10**6), 2)
            firsts = [block.first for block in blocks]
        assert firsts[0] == 0
        assert firsts[1] % least == 0 < firsts[1]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_with_replacement_can_a_batch_be_larger_than_the_data(scheme):
    if scheme == "with_replacement":
        assert {i for batch in batches(3, 5, scheme, 0, 20) for i in batch} == {0, 1, 2}
    else:
        with pytest.raises(ValueError, match="batch_size must be at most n_samples = 3, got 5"):
            BatchStream(3, 5, scheme, KEY)


# --- distributions ------------------------------------------------------------------------------


def test_without_replacement_every_ordered_batch_is_equally_likely():
    counts = Counter(map(tuple, batches(5, 2, "without_replacement", 0, 40_000)))
    assert_equally_likely(counts, list(itertools.permutations(range(5), 2)))


def test_with_replacement_every_tuple_is_equally_likely():
    counts = Counter(map(tuple, batches(4, 2, "with_replacement", 0, 40_000)))
    assert_equally_likely(counts, list(itertools.product(range(4), repeat=2)))


def test_bernoulli_every_subset_has_the_probability_of_independent_coins():
    n, size = 4, 1
    counts = Counter(map(tuple, batches(n, size, "bernoulli", 0, 40_000)))
    subsets = [s for k in range(n + 1) for s in itertools.combinations(range(n), k)]
    p = size / n
    probabilities = [p ** len(s) * (1 - p) ** (n - len(s)) for s in subsets]
    assert sum(probabilities) == pytest.approx(1)
    assert_equally_likely(counts, subsets, probabilities)


def test_bernoulli_with_b_equal_n_takes_every_sample():
    assert batches(5, 5, "bernoulli", 0, 20) == [list(range(5))] * 20


def test_reshuffling_every_permutation_is_equally_likely_and_each_epoch_visits_all():
    epochs = np.reshape(batches(4, 2, "reshuffling", 0, 60_000), (-1, 4))
    assert_equally_likely(Counter(map(tuple, epochs)), list(itertools.permutations(range(4))))


def test_reshuffling_ends_an_epoch_with_what_is_left():
    stream = batches(7, 3, "reshuffling", 0, 9)
    assert [len(batch) for batch in stream] == [3, 3, 1] * 3
    for epoch in range(3):
        assert sorted(itertools.chain(*stream[3 * epoch : 3 * epoch + 3])) == list(range(7))


@pytest.mark.parametrize("scheme", ["without_replacement", "with_replacement"])
def test_consecutive_batches_are_independent(scheme):
    stream = np.ravel(batches(4, 1, scheme, 0, 40_000))
    for lag in (1, 2):
        counts = Counter(zip(stream[:-lag].tolist(), stream[lag:].tolist(), strict=True))
        assert_equally_likely(counts, list(itertools.product(range(4), repeat=2)))


@pytest.mark.parametrize("scheme", ["without_replacement", "with_replacement"])
def test_first_batches_of_consecutive_seeds_are_independent(scheme):
    keys = [stream_key(seed_sequence(seed)) for seed in range(4000)]
    firsts = [batches(4, 1, scheme, 0, 1, key)[0][0] for key in keys]
    assert_equally_likely(Counter(firsts), list(range(4)))
    pairs = Counter(itertools.pairwise(firsts))
    assert_equally_likely(pairs, list(itertools.product(range(4), repeat=2)))


def test_uniforms_fill_the_unit_interval_evenly():
    uniform = sampling._uniforms(KEY, np.arange(2000), 50).ravel()
    assert uniform.min() >= 0
    assert uniform.max() < 1
    counts = Counter((uniform * 20).astype(int).tolist())
    assert_equally_likely(counts, list(range(20)))
    for power in (1, 2, 3):  # moments
        sigma = 1 / math.sqrt(len(uniform))
        assert abs((uniform**power).mean() - 1 / (power + 1)) < 5 * sigma


# --- seeds --------------------------------------------------------------------------------------


def test_an_int_seed_is_stream_0_of_that_seed():
    assert stream_key(seed_sequence(7)) == stream_key(np.random.SeedSequence(7, spawn_key=(0,)))
    assert stream_key(seed_sequence(np.int64(7))) == stream_key(seed_sequence(7))
    spawned = np.random.SeedSequence(7).spawn(3)
    assert stream_key(seed_sequence(spawned[0])) == stream_key(seed_sequence(7))


def test_different_seeds_and_streams_have_different_keys():
    seeds = [seed_sequence(seed) for seed in range(50)]
    seeds += [np.random.SeedSequence(0, spawn_key=(i,)) for i in range(1, 50)]
    assert len({stream_key(sequence) for sequence in seeds}) == 99


def test_a_generator_gives_the_next_of_its_bits():
    first, second = np.random.default_rng(0), np.random.default_rng(0)
    keys = [stream_key(seed_sequence(first)) for _ in range(2)]
    assert keys[0] != keys[1]
    assert keys == [stream_key(seed_sequence(second)) for _ in range(2)]


def test_no_seed_is_a_fresh_seed():
    assert stream_key(seed_sequence(None)) != stream_key(seed_sequence(None))


# --- unbiased gradients -------------------------------------------------------------------------


class Listener:
    """A rule that stays where it is and notes every gradient."""

    lr = 1.0

    def __init__(self):
        self.gradients = []

    def init(self, theta):
        return ()

    def step(self, theta, state, gradient):
        self.gradients.append(gradient)
        return theta, state


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_mini_batch_gradient_is_unbiased(scheme, batch_size):
    # n = 12 is a multiple of both batch sizes: an epoch of reshuffling has no short batch.
    problem, rule = regression(), Listener()
    theta = np.array([1.0, -2.0, 0.5, 3.0])
    eosim.run(
        problem, rule, theta, 4000, batch_size=batch_size, sampling=scheme, seed=1, every=4000
    )
    gradients = np.array(rule.gradients)
    sigma = gradients.std(axis=0) / math.sqrt(len(gradients))
    assert (np.abs(gradients.mean(axis=0) - problem.gradient(theta)) < 5 * sigma).all()


def test_bernoulli_divides_by_the_nominal_batch_size():
    problem, rule = regression(), Listener()
    theta, taken = np.ones(4), []

    def note(problem, theta, *, batch):
        taken.append(batch)
        return 0.0

    eosim.run(
        problem,
        rule,
        theta,
        200,
        batch_size=3,
        sampling="bernoulli",
        seed=0,
        record={"note": note},
    )
    assert any(len(batch) == 0 for batch in taken[1:])
    for batch, gradient in zip(taken[1:], rule.gradients, strict=True):
        total = sum((problem.gradient(theta, np.array([i])) for i in batch), np.zeros(4))
        np.testing.assert_allclose(gradient, total / 3, rtol=1e-12, atol=1e-14)
