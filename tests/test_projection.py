"""Both bases against explicit matrices, and what the papers say of the error."""

import math

import numpy as np
import pytest
import torch
from bases import NAMES, Matrix, columns, dense, flat, projected, rebuilt, rho, unit
from scipy.stats import truncnorm

from strategies.algebra import truncated_normal
from strategies.algebra.layout import Layout
from strategies.algebra.philox import Seeds
from strategies.algebra.projection import BASES, Coordinates, Projection, summed, weighted
from strategies.algebra.tensors import Tensors

SEEDS = Seeds(7, 8)
CPU = torch.device("cpu")


def drawn(seed: int = 0) -> Tensors:
    """Two blocks of 256 and one of 64."""
    numbers = torch.Generator().manual_seed(seed)
    shapes = {"a": (17, 20), "b": (3,), "c": (5, 41)}
    return {name: torch.randn(shape, generator=numbers) * (n + 1) for n, (name, shape) in enumerate(shapes.items())}


def zeros(tensors: Tensors) -> Tensors:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def projection(basis: str, total: int = 60, **options: bool) -> Projection:
    return Projection(Layout.of(drawn(), 256), basis, total, **options)


def made(of: Projection, tensors: Tensors, seeds: Seeds = SEEDS) -> Coordinates:
    return of.project(tensors, zeros(tensors), seeds)


# ---------------------------------------------------------------------- against matrices


@pytest.mark.parametrize("basis", NAMES)
def test_coordinates_are_products_with_the_vectors(basis):
    """Each is off by no more than half of its block's scale."""
    of, tensors = projection(basis), drawn()
    given = made(of, tensors)
    expected = projected(of, flat(tensors, of), SEEDS, given.counts.numpy())
    scale = given.scales.double().repeat_interleave(given.counts).numpy()
    assert np.all(np.abs(given.exact().numpy() - expected) <= 0.5 * scale + 1e-5 * np.abs(expected).max())
    assert np.abs(expected).max() > 1000 * scale.max()


@pytest.mark.parametrize("basis", NAMES)
def test_what_is_rebuilt_is_the_vectors_times_coordinates(basis):
    of = projection(basis)
    given = made(of, drawn())
    np.testing.assert_allclose(rebuilt(of, [given], [SEEDS]), dense(of, given, SEEDS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("basis", NAMES)
def test_a_change_is_after_minus_before_in_the_dtype_of_after(basis):
    of, before = projection(basis), drawn(1)
    after = {name: (tensor + drawn(2)[name]).bfloat16() for name, tensor in before.items()}
    change = {name: tensor.float() - before[name].bfloat16().float() for name, tensor in after.items()}
    one, other = of.project(after, before, SEEDS), made(of, change)
    assert torch.equal(one.numbers, other.numbers)
    assert torch.equal(one.scales, other.scales)


@pytest.mark.parametrize("basis", NAMES)
def test_a_cohort_is_rebuilt_as_the_weighted_sum_of_its_nodes(basis):
    of, seeds, weights = projection(basis), [Seeds(7, own) for own in (8, 9, 10)], [0.5, 0.2, 0.3]
    rows = [made(of, drawn(n), own) for n, own in enumerate(seeds)]
    expected = sum(w * dense(of, row, own) for w, row, own in zip(weights, rows, seeds, strict=True))
    error = rebuilt(of, weighted(rows, weights), seeds) - expected
    assert np.linalg.norm(error) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("basis", NAMES)
def test_coordinates_of_one_basis_add_up(basis):
    """Rows of different counts: those that a row lacks are zero."""
    of = projection(basis)
    rows = [made(of, drawn(n)) for n in range(3)]
    assert len({tuple(row.counts.tolist()) for row in rows}) > 1
    expected = sum(w * dense(of, row, SEEDS) for w, row in zip((2.0, 0.5, 1.0), rows, strict=True))
    total = summed(rows, (2.0, 0.5, 1.0))
    assert total.counts.tolist() == torch.stack([row.counts for row in rows]).amax(0).tolist()
    error = dense(of, total, SEEDS) - expected
    assert np.linalg.norm(error) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("basis", NAMES)
def test_directions_have_entries_of_variance_one(basis):
    drawn_ = torch.cat([BASES[basis].direction(SEEDS, 0, k, (2, 1024), CPU).flatten() for k in range(20)]).double()
    fourth = float((drawn_**4).mean())
    assert abs(float((drawn_**2).mean()) - 1) < 4 * math.sqrt(max(fourth - 1, 1e-12) / len(drawn_)) + 1e-6
    one = BASES[basis].direction(SEEDS, 256, 3, (2, 256), CPU)
    for number in range(2):
        vector = columns(basis, SEEDS, 256 * (number + 1), 256, 4)[:, 3] * BASES[basis].deviation(256)
        np.testing.assert_allclose(one[number].double().numpy(), vector, rtol=1e-6)


# ---------------------------------------------------------------------- laws


@pytest.mark.parametrize("basis", NAMES)
def test_it_is_linear_up_to_rounding(basis):
    of, x, y = projection(basis), drawn(1), drawn(2)
    counts = of.counts()
    both = {name: x[name] + 2 * y[name] for name in x}
    parts = [of.project(t, zeros(t), SEEDS, counts) for t in (x, y, both)]
    error = (parts[0].exact() + 2 * parts[1].exact() - parts[2].exact()).abs()
    scales = (parts[0].scales + 2 * parts[1].scales + parts[2].scales).double().repeat_interleave(parts[0].counts)
    assert bool((error <= 0.51 * scales).all())


@pytest.mark.parametrize("basis", NAMES)
def test_nothing_stays_nothing(basis):
    of = projection(basis)
    given = made(of, zeros(drawn()))
    assert not given.numbers.any()
    assert not rebuilt(of, [given], [SEEDS]).any()


@pytest.mark.parametrize("basis", NAMES)
def test_seeds_decide(basis):
    of, tensors = projection(basis), drawn()
    one = made(of, tensors)
    assert torch.equal(one.numbers, made(of, tensors).numbers)
    assert not torch.equal(one.numbers, made(of, tensors, Seeds(7, 9)).numbers)
    assert torch.equal(one.numbers, made(of, tensors, Seeds(6, 8)).numbers) == (basis == "truncated-normal")


def samples(basis: str, length: int, count: int, number: int) -> tuple[Matrix, Matrix]:
    """A random vector, and `number` vectors rebuilt from it with seeds of their own."""
    x = torch.randn(1, length, generator=torch.Generator().manual_seed(5))
    found, module = [], BASES[basis]
    for seed in range(number):
        seeds = Seeds(seed, 1000 + seed)
        numbers = module.coordinates(x, seeds, 0, [count])
        found.append(module.rebuilt([numbers], [seeds], 0, [[count]], length)[0] * module.unit(count, length))
    return x[0].double().numpy(), torch.stack(found).double().numpy()


LAWS = [("hadamard", 256, 32, (256 - 32) / 32), ("truncated-normal", 400, 50, (400 - 0.2) / 50)]


@pytest.mark.parametrize(("basis", "length", "count", "law"), LAWS)
def test_error_bias_and_angle_are_those_of_the_equations(basis, length, count, law):
    number = 300
    x, found = samples(basis, length, count, number)
    errors = ((found - x) ** 2).sum(1) / (x**2).sum()
    assert abs(errors.mean() - law) < 4 * errors.std() / math.sqrt(number)
    bias = ((found.mean(0) - x) ** 2).sum() / (x**2).sum()  # what is left of the error by chance
    assert bias < (1 + 4 * math.sqrt(2 / length)) * law / number
    cosines = found @ x / np.linalg.norm(found, axis=1) / np.linalg.norm(x)
    angle = math.sqrt(count / length) if basis == "hadamard" else math.sqrt(count / (count + length))
    assert abs(cosines.mean() - angle) < 4 * cosines.std() / math.sqrt(number) + 0.01 * angle


def test_bases_of_their_own_make_errors_that_average_out():
    """Signs in common do not hinder: the mean over N subsets has an N-th of the error."""
    x = torch.randn(1, 256, generator=torch.Generator().manual_seed(5))
    module, nodes = BASES["hadamard"], 16
    errors = []
    for trial in range(100):
        seeds = [Seeds(trial, 1000 * trial + node) for node in range(nodes)]
        rows = [module.coordinates(x, own, 0, [32]) for own in seeds]
        mean = module.rebuilt(rows, seeds, 0, [[32]] * nodes, 256) * module.unit(32, 256) / nodes
        errors.append(float((mean - x).square().sum() / x.square().sum()))
    assert abs(np.mean(errors) - 7 / nodes) < 4 * np.std(errors) / 10


def test_all_coordinates_of_the_hadamard_basis_are_the_vector():
    of = projection("hadamard", total=256 * 2 + 64)
    tensors = drawn()
    error = rebuilt(of, [made(of, tensors)], [SEEDS]) - flat(tensors, of)
    assert np.linalg.norm(error) < 1e-3 * np.linalg.norm(flat(tensors, of))


def test_one_vector_of_one_number():
    """x~ = v^2 / rho x."""
    of = Projection(Layout.of({"w": torch.zeros(1)}, 256), "truncated-normal", 1)
    v = float(truncated_normal.vector(8, 0, 0, 1))
    given = made(of, {"w": torch.tensor([3.0])})
    assert rebuilt(of, [given], [SEEDS]) == pytest.approx([3.0 * v**2 / rho(1)], rel=1e-4)


def test_the_published_codes_scale_is_about_a_third():
    """d / K instead of 1 / (rho K), so it is rho d times the paper's."""
    paper, code = (projection("truncated-normal", code=code) for code in (False, True))
    ratio = made(code, drawn()).exact() / made(paper, drawn()).exact()
    counts = made(paper, drawn()).counts
    expected = torch.tensor([rho(length) * length for length in paper.layout.lengths]).double()
    torch.testing.assert_close(ratio, expected.repeat_interleave(counts), rtol=1e-2, atol=0.0, equal_nan=True)
    assert expected.min() > 0.33
    assert expected.max() < 0.34


# ---------------------------------------------------------------------- truncated normal numbers


@pytest.mark.parametrize("length", [1, 2, 3, 10, 1000, 65536])
def test_quantiles_are_scipys(length):
    share = np.linspace(-1, 1, 1001)[1:-1]
    edge = 1 / math.sqrt(length)
    expected = truncnorm.ppf((share + 1) / 2, -edge, edge)
    np.testing.assert_allclose(truncated_normal.quantile(share, length), expected, rtol=1e-9, atol=1e-11 * edge)


@pytest.mark.parametrize("length", [1, 2, 10, 99, 100, 1000, 10**6, 10**7, 10**8, 10**9])
def test_the_variance_is_that_of_the_integral(length):
    assert truncated_normal.variance(length) == pytest.approx(rho(length), rel=1e-9)
    if length <= 1000:
        edge = 1 / math.sqrt(length)
        assert truncated_normal.variance(length) == pytest.approx(truncnorm.var(-edge, edge), rel=1e-7)
    else:
        assert truncated_normal.variance(length) == pytest.approx(1 / (3 * length) - 2 / (45 * length**2), rel=1e-9)


@pytest.mark.first(1)
@pytest.mark.parametrize("length", [1, 7, 1024])
def test_entries_stay_inside_and_have_that_variance(length):
    drawn_ = torch.cat([truncated_normal.vector(seed, 0, 0, length) for seed in range(8192 // length)]).double()
    assert float(drawn_.abs().max()) <= 1 / math.sqrt(length)
    squares = drawn_.square()
    assert abs(float(squares.mean()) - rho(length)) < 4 * float(squares.std()) / math.sqrt(len(drawn_))
    assert abs(float(drawn_.mean())) < 4 * float(drawn_.std()) / math.sqrt(len(drawn_))


# ---------------------------------------------------------------------- what is refused


def test_a_change_that_is_not_finite_is_said():
    tensors = drawn()
    tensors["b"][1] = float("nan")
    with pytest.raises(ValueError, match="training left NaN or infinity"):
        made(projection("hadamard"), tensors)


@pytest.mark.parametrize("total", [0, 2, 577])
def test_coordinates_must_fit(total):
    with pytest.raises(ValueError, match=rf"548 numbers in 3 blocks of 256 need .* at most 576, not {total}"):
        projection("hadamard", total)


def test_units_are_those_of_the_equations():
    for basis in NAMES:
        assert BASES[basis].unit(50, 256) == pytest.approx(unit(basis, 50, 256), rel=1e-9)
