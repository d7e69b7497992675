"""What a study declares: settings, methods, a grid of learning rates and seeds; and the runs that follow from it.

One option, by default the learning rate, is searched for every method alike: on the first seed each value of the grid
is run, and the one with the best mean of the validation metric over the last rounds is used for the other seeds. A grid
whose best value is at an end is extended there, by the ratio of its last two values. A setting may go by what was found
in another: take it over, or search among shares of it, or hold it and search a second option.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

Option = str | int | float | bool
Options = Mapping[str, Option]
Measured = dict[str, Any]  # what one run left, see benchmarks.federation
LAST = 5  # rounds at the end that are averaged
LOSS = "loss"  # the one metric of which less is better


@dataclass(frozen=True)
class Method:
    """`options` are run-config keys, `strategy` and `tuning` among them; `tied` are multiples of what is searched."""

    name: str
    options: Options
    tied: Mapping[str, float] = field(default_factory=dict)
    rates: tuple[float, ...] = ()  # its own grid
    searched: str = "learning-rate"


@dataclass(frozen=True)
class Setting:
    """A task on which methods compete. `{seed}` in a text option stands for the seed of the run.

    `rates` are the grids by tuning; a method may have its own. `rates_of` is another setting with the same methods:
    what was found there, times each of `shares`, is the grid here. `holds` is another such setting whose findings are
    used here, with those that it holds itself; `searched` replaces the methods' own option. `search_only`: there are no
    runs but the search, and no section on the page. `target` is the value of `metric` whose first round is reported,
    `level` computes one to compare with (what it is, and its value), `assets` are the files and folders that must be
    there, from the root of the clone.
    """

    name: str
    about: str
    options: Options
    methods: tuple[Method, ...]
    rates: Mapping[str, tuple[float, ...]]
    target: float
    preset: str = ""
    assets: tuple[str, ...] = ()
    metric: str = "accuracy"
    level: Callable[[], tuple[str, float]] | None = None
    rates_of: "Setting | None" = None
    shares: tuple[float, ...] = (1.0,)
    holds: "Setting | None" = None
    searched: str = ""
    search_only: bool = False

    def searches(self, method: Method) -> str:
        """Return the option that is searched for a method."""
        return self.searched or method.searched

    def declared(self, method: Method) -> tuple[float, ...]:
        """Return the learning rates that are declared for a method."""
        return method.rates or self.rates[str(method.options["tuning"])]

    def tries(self, method: Method) -> int:
        """Return how many learning rates are tried for a method."""
        return len(self.shares if self.rates_of else self.declared(method))

    @property
    def rule(self) -> str:
        """Return how rates are chosen."""
        return f"mean validation {self.metric} of the last {LAST} rounds, first seed"


@dataclass(frozen=True)
class Run:
    """One federation; `options` and `preset` say all that it depends on."""

    setting: str
    method: str
    seed: int
    rate: float
    preset: str
    options: Options
    held: Options = field(default_factory=dict)  # those of them that earlier searches found

    @property
    def key(self) -> str:
        """Return the key of the run, which depends on its options."""
        return key(self.preset, self.options)

    @property
    def arguments(self) -> list[str]:
        """Return the arguments of `thistledown run`."""
        return [*([self.preset] if self.preset else []), "-c", " ".join(map(_pair, self.options.items()))]


@dataclass(frozen=True)
class Study:
    """`about` and `published` are paragraphs of its page; other methods are compared to `reference`, and the page says
    which are not ahead of `floor`. `extensions` values may be added at each end of a grid."""

    name: str
    title: str
    about: tuple[str, ...]
    published: tuple[str, ...]
    settings: tuple[Setting, ...]
    reference: str
    savings: bool = False  # report parameters saved against the reference
    seeds: tuple[int, ...] = (0, 1, 2)
    floor: str = ""
    extensions: int = 3

    @property
    def size(self) -> int:
        """Return the number of runs if every search finds a rate."""
        return sum(len(self._later(setting)) + setting.tries(method) for setting, method in self.contests())

    def contests(self) -> Iterator[tuple[Setting, Method]]:
        """Yield every method in every setting."""
        return ((setting, method) for setting in self.settings for method in setting.methods)

    def runs(self, done: Mapping[str, Measured]) -> Iterator[Run]:
        """All runs that are known, in the order they are wanted: the searches, then seed by seed.

        The later seeds of a method are known when its search is over and found a rate that works.
        """
        ready = [contest for contest in self.contests() if self._ready(*contest, done)]
        for setting, method in ready:
            for rate in self.grid(setting, method, done):
                yield self._run(setting, method, self.seeds[0], rate, done)
        rates = [
            (setting, method, self.chosen(setting, method, done))
            for setting, method in ready
            if self.settled(setting, method, done)
        ]
        for seed in self.seeds[1:]:
            for setting, method, chosen in rates:
                if chosen is not None and seed in self._later(setting):
                    yield self._run(setting, method, seed, chosen, done)

    def possible(self, done: Mapping[str, Measured]) -> Iterator[Run]:
        """Yield every run that the searches may need, in the order of `runs`."""
        for seed in self.seeds:
            for setting, method in self.contests():
                for rate in self.grid(setting, method, done):
                    yield self._run(setting, method, seed, rate, done)

    def grid(self, setting: Setting, method: Method, done: Mapping[str, Measured]) -> tuple[float, ...]:
        """Return the learning rates that are tried; none while they depend on another setting's search."""
        grid = self._declared(setting, method, done)
        for _ in range(2 * self.extensions):
            further = self._further(setting, method, grid, done)
            if further is None:
                break
            grid = (*grid, further)
        return grid

    def settled(self, setting: Setting, method: Method, done: Mapping[str, Measured]) -> bool:
        """Return whether the search is over: all rates were run, and none is to be added."""
        grid = self.grid(setting, method, done)
        return bool(grid) and all(self._run(setting, method, self.seeds[0], rate, done).key in done for rate in grid)

    def at_an_end(self, setting: Setting, method: Method, done: Mapping[str, Measured]) -> bool:
        """Return whether the chosen rate is the lowest or the highest of several that were run."""
        scores, chosen = self.scores(setting, method, done), self.chosen(setting, method, done)
        return chosen is not None and len(scores) > 1 and chosen in (min(scores), max(scores))

    def held(self, setting: Setting, method: Method, done: Mapping[str, Measured]) -> Options | None:
        """Return what other settings found for the options that this one holds; None while a search has no result."""
        held: dict[str, Option] = {}
        source = setting.holds
        while source is not None:
            found = self.chosen(source, method, done)
            if found is None:
                return None
            held[source.searches(method)], source = found, source.holds
        return held

    def _ready(self, setting: Setting, method: Method, done: Mapping[str, Measured]) -> bool:
        """Return whether the searches are over that a setting goes by."""
        return all(self.settled(source, method, done) for source in (setting.rates_of, setting.holds) if source)

    def _later(self, setting: Setting) -> tuple[int, ...]:
        return () if setting.search_only else self.seeds[1:]

    def _run(self, setting: Setting, method: Method, seed: int, rate: float, done: Mapping[str, Measured]) -> Run:
        return run_of(setting, method, seed, rate, self.held(setting, method, done) or {})

    def _declared(self, setting: Setting, method: Method, done: Mapping[str, Measured]) -> tuple[float, ...]:
        if self.held(setting, method, done) is None:
            return ()
        if setting.rates_of is None:
            return setting.declared(method)
        found = self.chosen(setting.rates_of, method, done)
        return () if found is None else tuple(round(found * share, 6) for share in setting.shares)

    def _further(
        self, setting: Setting, method: Method, grid: tuple[float, ...], done: Mapping[str, Measured]
    ) -> float | None:
        """Return the rate beyond the end of the grid where the best one is; None if there is nothing to add."""
        scores = self._scores(setting, method, grid, done)
        worked = {rate: score for rate, score in scores.items() if score is not None}
        if len(grid) < 2 or len(scores) < len(grid) or not worked:
            return None
        best, ordered, declared = self._best(setting, worked), sorted(grid), self._declared(setting, method, done)
        if best == ordered[-1] and sum(rate > max(declared) for rate in grid) < self.extensions:
            return _rounded(ordered[-1] * ordered[-1] / ordered[-2])
        if best == ordered[0] and sum(rate < min(declared) for rate in grid) < self.extensions:
            return _rounded(ordered[0] * ordered[0] / ordered[1])
        return None

    def scores(self, setting: Setting, method: Method, done: Mapping[str, Measured]) -> dict[float, float | None]:
        """Validation metric by rate, for the rates that were run; None where the run failed."""
        return self._scores(setting, method, self.grid(setting, method, done), done)

    def _scores(
        self, setting: Setting, method: Method, grid: tuple[float, ...], done: Mapping[str, Measured]
    ) -> dict[float, float | None]:
        runs = [self._run(setting, method, self.seeds[0], rate, done) for rate in grid]
        return {run.rate: validation(done[run.key]) for run in runs if run.key in done}

    def _best(self, setting: Setting, worked: Mapping[float, float]) -> float:
        return (min if setting.metric == LOSS else max)(worked, key=worked.__getitem__)

    def chosen(self, setting: Setting, method: Method, done: Mapping[str, Measured]) -> float | None:
        """Return the best rate; None while the search is running, or if all its runs failed. Ties go to the first."""
        scores = self.scores(setting, method, done)
        worked = {rate: score for rate, score in scores.items() if score is not None}
        if not worked or len(scores) < setting.tries(method):
            return None
        return self._best(setting, worked)


def run_of(setting: Setting, method: Method, seed: int, rate: float, held: Options = MappingProxyType({})) -> Run:
    """Return the run of a method in a setting at a learning rate, with what other searches found."""
    tied = {name: rate * factor for name, factor in method.tied.items()}
    options = {**setting.options, **method.options, **held, setting.searches(method): rate, **tied, "seed": seed}
    filled = {name: v.format(seed=seed) if isinstance(v, str) else v for name, v in options.items()}
    return Run(setting.name, method.name, seed, rate, setting.preset, filled, held)


def _rounded(rate: float) -> float:
    """Return a rate with four significant digits, so that its key is short and the same on every machine."""
    return float(f"{rate:.4g}")


def key(preset: str, options: Options) -> str:
    """Return preset and options as one text."""
    return json.dumps([preset, options], sort_keys=True)


def validation(measured: Measured) -> float | None:
    """Return the mean validation metric of the last rounds; None for a run that failed."""
    return None if measured["error"] else mean_of_last(measured["chosen-by"])


def mean_of_last(values: Sequence[float | None]) -> float:
    """Return the mean of the last measured rounds, without the one before training (the first value)."""
    last = [value for value in values[1:] if value is not None][-LAST:]
    return round(sum(last) / len(last), 6)


def _pair(option: tuple[str, Option]) -> str:
    name, value = option
    return f"{name}={repr(value).lower() if isinstance(value, bool) else repr(value)}"
