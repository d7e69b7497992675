"""The server's accounts of nodes that protect their own rows: one per node, of the messages that it was asked for.

The server sets the noise, and counts a message when it is requested, whether or not an answer arrives. So its report
depends only on its own instructions and on the number of rows in a node's profile; nothing that a node claims about its
privacy is read. The node's own account (`client_app.account`) decides what the node answers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from strategies.algebra.accountant import (
    PLD,
    BudgetSpent,
    History,
    Release,
    accountant_of,
    epsilon_of,
    fitting_noise,
    read,
    written,
)
from strategies.exchange.privacy import Mechanism, Plan
from strategies.exchange.types import Profile, RunFailed
from strategies.wrappers.parts.private_wrapper import PrivateWrapper


@dataclass
class Account:
    """One node's account: the messages it was asked for, and what its next message releases."""

    spent: History = field(default_factory=History)
    release: Release = Release(0.0)  # of the next message; noise 0: not found yet
    times: int = 0  # releases per message
    allowed: int = 0  # further messages that are known to fit with this noise


class NodeAccounts(Mechanism):
    """All accounts of a run."""

    ahead = True

    def __init__(self, name: str, options: PrivateWrapper, plan: Plan) -> None:
        self.name, self.options, self.plan = name, options, plan
        self.accounts: dict[str, Account] = {}
        self.round = plan.done  # the last round that has begun
        self.before = 0  # messages that every node is assumed to have sent under a version without accounts
        self.unknown = ""  # why the rest of the budget is unknown

    # ------------------------------------------------------------------ a round

    def able(self, present: Sequence[Profile], round: int) -> Sequence[Profile]:
        """Return the nodes whose budget is enough for this round, and for all remaining rounds if the noise is not
        given."""
        for profile in present:
            self._meet(profile)
        left = self.plan.rounds - round + 1
        return [profile for profile in present if self._affords(self.accounts[profile.name], left)]

    def spend(self, present: Sequence[Profile], cohort: Sequence[Profile], round: int) -> None:
        self.round = round
        for profile in cohort:
            account = self.accounts[profile.name]
            if not account.spent and not self._fits(account, self.plan.rounds - round + 1):
                raise RunFailed(f"{self.name}: no noise is enough for epsilon = {self.options.epsilon:g}")
            account.spent[account.release] += account.times
            account.allowed -= 1

    def ordered(self, node: str) -> float:
        return 0.0 if self.options.noise else self.accounts[node].release.noise * self._scale

    # ------------------------------------------------------------------ the account

    def spent(self) -> dict[str, float | str | None]:
        """Return the epsilon of the node with the highest account."""
        delta = self.options.delta
        costs = [epsilon_of(account.spent, delta) for account in self.accounts.values()]
        most = max(costs, default=0.0) if not self.unknown else self.options.epsilon or math.inf
        how = {accountant_of(account.spent, delta) for account in self.accounts.values()}
        return {
            "epsilon": most if math.isfinite(most) else None,
            "delta": delta,
            "accountant": "+".join(sorted(how or {PLD})),
        }

    def exhausted(self) -> str:
        if self.unknown:
            return self.unknown
        left = self.plan.rounds - self.round
        if not self.accounts or not left or any(self._affords(a, left) for a in self.accounts.values()):
            return ""
        return f"{self.name}.epsilon = {self.options.epsilon:g} is spent on every connected node"

    def memory(self) -> dict[str, Any]:
        nodes = {
            name: {
                "spent": written(account.spent),
                "next": written({account.release: account.times}),
                "allowed": account.allowed,
            }
            for name, account in self.accounts.items()
        }
        return {"nodes": nodes, "before": self.before}

    def restore(self, memory: Mapping[str, Any]) -> None:
        """Restore the accounts. Raises KeyError, TypeError, ValueError for invalid memory."""
        if "nodes" not in memory:
            self.restore_counts(memory)
            return
        self.before = memory["before"]
        for name, said in memory["nodes"].items():
            ((release, times),) = read(said["next"]).items()
            self.accounts[name] = Account(read(said["spent"]), release, times, said["allowed"])

    def restore_counts(self, memory: Mapping[str, Any]) -> None:
        """Restore the memory of a version without histories."""
        raise NotImplementedError

    # ------------------------------------------------------------------ one node

    @property
    def _scale(self) -> float:
        """Return the clips of noise per sensitivity."""
        return 1 / self.options.release(self.plan.config, 1, 1.0)[0].noise

    def _meet(self, profile: Profile) -> None:
        """Add or update the account of this node, given what a message of its rows releases."""
        account = self.accounts.get(profile.name)
        noise = self.options.noise or (account.release.noise * self._scale if account else 0.0)
        release, times = self.options.release(self.plan.config, profile.num_examples, noise)
        if account is None:
            spent = History({release: times * self.before}) if self.before else History()
            self.accounts[profile.name] = Account(spent, release, times)
        elif (release, times) != (account.release, account.times):
            account.release, account.times, account.allowed = release, times, 0

    def _affords(self, account: Account, left: int) -> bool:
        """Return whether the node's budget is enough for one more message, and for all remaining ones if the noise is
        not given."""
        new = not self.options.noise and not account.spent  # finding noise takes time: only for nodes that are drawn
        return new or self._fits(account, left)

    def _fits(self, account: Account, left: int) -> bool:
        options = self.options
        if not options.epsilon:
            return True
        if options.noise:
            after = account.spent + History({account.release: account.times})
            return epsilon_of(after, options.delta) <= options.epsilon
        if account.allowed >= left and account.release.noise:
            return True
        try:
            noise = fitting_noise(account.release, account.times * left, options.epsilon, options.delta, account.spent)
        except BudgetSpent:
            return False
        account.release, account.allowed = replace(account.release, noise=noise), left
        return True
