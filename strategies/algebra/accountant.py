"""The privacy cost of noised releases, computed by dp-accounting, and the noise that a budget allows.

An account is a history: the number of releases of each kind, each with the noise that it was made with. If the library
supports it, a history is priced by privacy loss distributions (Koskela, Jälkö and Honkela, arXiv 1906.03049; composed
by FFT, discretised by "connect the dots": Doroshenko et al., arXiv 2207.04380), which are tight; plain Gaussian
releases in closed form (Balle and Wang, arXiv 1805.06530, Theorem 8). Cohorts of fixed size are not supported there and
are priced by Rényi differential privacy (Mironov, arXiv 1702.07476; Wang, Balle and Kasiviswanathan, arXiv 1808.00087,
Theorem 27). Every estimate errs towards a larger epsilon.

Noise is measured in sensitivities: its standard deviation over the largest distance between neighbours in what is
released. Poisson sampling: neighbours differ by one member that is present or not. Fixed size: the number of members is
public, and neighbours differ in the data of one. Without sampling a release is valid for either.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import dp_accounting
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

PLD, RDP = "PLD", "RDP"  # how a history is priced
ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)  # of Rényi divergences
PRECISION = 1e-3  # of a calibrated noise
LEAST, LARGEST = 0.1, 1e6  # noise: below the least, sampling is ignored; above the largest, the search stops
FINEST = 0.2  # of the discretisation interval: share of a release's standard deviation of losses
COARSEST = 0.01  # the largest such interval
SMALLEST = 1e-10  # delta; below it the rounding errors of an FFT would count
MOST_POINTS = 2**21  # of a distribution; beyond that the Rényi bound is used
DROWNED = 4.0  # noise that the rest of a budget may need, relative to a whole budget


@dataclass(frozen=True, order=True)
class Release:
    """One noised release of a sum in which each member takes part independently with probability `rate`, or `size` of
    `nodes` members without replacement."""

    noise: float  # in sensitivities
    rate: float = 1.0
    nodes: int = 0
    size: int = 0

    @property
    def fixed(self) -> bool:
        """Return whether a cohort of fixed size was drawn from more members."""
        return self.size < self.nodes

    @property
    def empty(self) -> bool:
        """Return whether the cohort may be empty."""
        return not self.rate or bool(self.nodes and not self.size)


History = Counter[Release]


class BudgetSpent(ValueError):
    """A budget that is too small. `public` is the message for the other side, if it says less."""

    def __init__(self, said: str, public: str | None = None) -> None:
        super().__init__(said)
        self.public = said if public is None else public


def epsilon_of(history: Mapping[Release, int], delta: float) -> float:
    """Return the epsilon of a history at `delta`; infinite if a release had no noise.

    Raises ValueError for Poisson cohorts and cohorts of fixed size in one history.
    """
    parts = _parts(history)
    if not parts:
        return 0.0
    if any(not release.noise for release, _ in parts):
        return math.inf
    if any(release.fixed for release, _ in parts) and any(release.rate < 1 for release, _ in parts):
        raise ValueError("releases to Poisson cohorts and to cohorts of fixed size have no guarantee in common")
    return _epsilon(parts, delta)


def accountant_of(history: Mapping[Release, int], delta: float) -> str:
    """Return how the history is priced: PLD (or exactly, without sampling), or RDP."""
    parts = _parts(history)
    return RDP if all(release.noise for release, _ in parts) and _needs_rdp(parts, delta) else PLD


def least_noise(
    release: Release, times: int, epsilon: float, delta: float, spent: Mapping[Release, int] | None = None
) -> float:
    """Return the least noise, to 0.1 %, with which `times` releases like this one, after the releases in `spent`, cost
    at most `epsilon`. Raises BudgetSpent if there is none."""
    from scipy.optimize import brentq

    def excess(logarithm: float) -> float:
        added = Counter({replace(release, noise=math.exp(logarithm)): times})
        return epsilon_of(Counter(spent or {}) + added, delta) - epsilon

    low = high = 0.0
    while excess(high) > 0:
        low, high = high, high + math.log(2)
        if high > math.log(LARGEST):
            raise BudgetSpent(f"no noise is enough for epsilon = {epsilon:g} at delta = {delta:g}")
    while low == high or excess(low) <= 0:
        low, high = low - math.log(2), low
        if low < -math.log(LARGEST):
            return math.exp(high)
    logarithm = float(brentq(excess, low, high, xtol=PRECISION / 2))
    while excess(logarithm) > 0:
        logarithm += PRECISION / 2
    return math.exp(logarithm)


def fitting_noise(release: Release, times: int, epsilon: float, delta: float, spent: History) -> float:
    """Return the noise for `times` more releases after the releases in `spent`: this release's own noise if the budget
    allows it, else the least noise that it allows.

    Raises BudgetSpent if so little is left that noise would drown the release.
    """
    if release.noise and epsilon_of(spent + Counter({release: times}), delta) <= epsilon:
        return release.noise
    noise = least_noise(release, times, epsilon, delta, spent)
    if spent and noise > DROWNED * (whole := least_noise(release, times, epsilon, delta)):
        raise BudgetSpent(
            f"epsilon = {epsilon:g} is spent: {epsilon_of(spent, delta):.2f} of it is gone, and with what is left the "
            f"next {times} would need {noise:.3g} of noise, where a whole budget needs {whole:.3g}"
        )
    return noise


def written(history: Mapping[Release, int]) -> list[list[float]]:
    """Return a history as plain JSON."""
    return [[r.noise, r.rate, r.nodes, r.size, times] for r, times in sorted(history.items())]


def read(said: Sequence[Sequence[float]]) -> History:
    """Return the history that `written` wrote. Raises TypeError, ValueError."""
    history = History()
    for noise, rate, nodes, size, times in said:
        release = Release(float(noise), float(rate), int(nodes), int(size))
        if not (0 <= release.noise < math.inf and 0 <= release.rate <= 1 and times >= 0):
            raise ValueError(f"{[noise, rate, nodes, size, times]} is not a release")
        history[release] += int(times)
    return history


Parts = tuple[tuple[Release, int], ...]


def _parts(history: Mapping[Release, int]) -> Parts:
    return tuple(sorted((release, times) for release, times in history.items() if times and not release.empty))


def _merged(parts: Parts) -> tuple[float, Parts]:
    """Return the noise of one Gaussian release that replaces all releases without sampling (0: none), and the releases
    with sampling. If that noise is small, sampling does not help, and all releases count as unsampled."""
    plain = [(r, times) for r, times in parts if not r.fixed and (r.rate == 1 or r.noise < LEAST)]
    sampled = tuple(part for part in parts if part not in plain)
    precision = math.fsum(times / r.noise**2 for r, times in plain)
    if sampled and not any(r.fixed for r, _ in sampled) and precision > LEAST**-2:
        precision, sampled = math.fsum(times / r.noise**2 for r, times in parts), ()
    return (precision**-0.5 if precision else 0.0), sampled


@lru_cache(maxsize=8192)
def _epsilon(parts: Parts, delta: float) -> float:
    import dp_accounting

    if _needs_rdp(parts, delta):
        return _by_rdp(parts, delta)
    gaussian, sampled = _merged(parts)
    if sampled:
        return _by_pld(gaussian, sampled, delta)
    return float(dp_accounting.get_epsilon_gaussian(gaussian, delta))


def _needs_rdp(parts: Parts, delta: float) -> bool:
    if any(release.fixed for release, _ in parts):
        return True
    gaussian, sampled = _merged(parts)
    return bool(sampled) and (delta < SMALLEST or _too_wide(gaussian, sampled))


def _by_pld(gaussian: float, sampled: Parts, delta: float) -> float:
    interval = _interval(gaussian, sampled)
    lost = math.log(delta / 1e6 / (1 + sum(times for _, times in sampled)))  # probability that is counted as exposed
    whole = None
    for release, times in sampled:
        part = _distribution(release.noise, release.rate, interval, lost).self_compose(times)
        whole = part if whole is None else whole.compose(part)
    assert whole is not None
    if gaussian:
        whole = whole.compose(_distribution(gaussian, 1.0, interval, lost))
    return float(whole.get_epsilon_for_delta(delta))


@lru_cache(maxsize=16)
def _distribution(noise: float, rate: float, interval: float, lost: float) -> "PrivacyLossDistribution":
    """Return the loss distribution of one release; pessimistic."""
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=interval, log_mass_truncation_bound=lost
    )


def _spread(release: Release) -> float:
    """Return the approximate standard deviation of the privacy loss of one release."""
    plain = 1 / release.noise
    return min(plain, release.rate * math.sqrt(math.expm1(min(plain**2, 100.0))))


def _interval(gaussian: float, sampled: Parts) -> float:
    """Return the discretisation interval. Rounding adds at most a quarter of its square to the variance of every
    release: a few percent of the total."""
    parts = [*sampled, (Release(gaussian), 1)] if gaussian else [*sampled]
    variance = math.fsum(times * _spread(release) ** 2 for release, times in parts)
    return min(COARSEST, FINEST * math.sqrt(variance / sum(times for _, times in parts)))


def _too_wide(gaussian: float, sampled: Parts) -> bool:
    """Return whether a distribution would have too many points, for one release or for all."""
    parts = [*sampled, (Release(gaussian), 1)] if gaussian else [*sampled]
    single = max(10 / release.noise + 0.5 / release.noise**2 for release, _ in parts)
    mean = math.fsum(times * release.rate / release.noise**2 for release, times in parts)
    spread = math.sqrt(math.fsum(times * _spread(release) ** 2 for release, times in parts))
    return max(single, mean + 20 * spread) / _interval(gaussian, sampled) > MOST_POINTS


def _by_rdp(parts: Parts, delta: float) -> float:
    from dp_accounting import NeighboringRelation, rdp

    logging.getLogger("absl").setLevel(logging.ERROR)  # it logs which orders did not converge; the bound holds anyway
    poisson = not any(release.nodes for release, _ in parts)
    relation = NeighboringRelation.ADD_OR_REMOVE_ONE if poisson else NeighboringRelation.REPLACE_ONE
    accountant = rdp.RdpAccountant(ORDERS, relation)
    for release, times in parts:
        accountant.compose(_event(release), times)
    return float(accountant.get_epsilon(delta))


def _event(release: Release) -> "dp_accounting.DpEvent":
    """Return one release as dp-accounting's event. There is no sampling if everybody takes part."""
    import dp_accounting

    gaussian = dp_accounting.GaussianDpEvent(release.noise)
    if release.fixed:
        return dp_accounting.SampledWithoutReplacementDpEvent(release.nodes, release.size, gaussian)
    return dp_accounting.PoissonSampledDpEvent(release.rate, gaussian) if release.rate < 1 else gaussian
