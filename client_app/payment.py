"""What a message to this node costs in privacy, and whether the node's owner allows it.

A wrapper states what its message releases (`Wrapper.payment`), and the node's account (`client_app.account`) adds it
up. `client_app.permission` has already checked the instructions against the policy. If the policy asks for privacy,
answers that no wrapper covers are refused here: scores and trials are computed from rows too. So are instructions whose
strategy, wrappers and settings are not compatible, because no guarantee would hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from client_app import public_errors
from client_app.account import KIND, Account
from client_app.local import Local
from client_app.permission import NotPermitted
from client_app.policy import Privacy
from client_app.store import ClientStore
from strategies.algebra.tensors import Tensors
from strategies.exchange.compatibility import problems as incompatibilities
from strategies.exchange.privacy import Payment
from strategies.exchange.strategy import Strategy
from strategies.exchange.types import Assignment
from strategies.protocol.instructions import RUN
from task.schema import ConfigError

COUNTS = ("rounds", "steps")  # keys of a version without accounts: what a wrapper kept, all at one noise


@dataclass(frozen=True)
class Bill:
    """The payments for one answer, and their account."""

    account: Account
    payments: tuple[Payment, ...]
    run: str
    node: str
    round: int
    limits: Privacy

    @classmethod
    def of(cls, local: Local, strategy: Strategy, assignment: Assignment, rows: int, memory: ClientStore) -> "Bill":
        """Return the bill for a round's training on so many rows. Raises NotPermitted, and ConfigError for instructions
        under which no guarantee would hold."""
        payments = tuple(p for w in strategy.wrappers if (p := w.payment(assignment, local.config, rows)) is not None)
        limits = local.policy.privacy
        if payments and (problems := incompatibilities(strategy, local.config)):
            raise ConfigError(problems)  # no guarantee would hold
        if not payments:
            check_uncovered(local, "update")
        run = str(local.instructions.get(RUN, ""))
        return cls(account_of(local, memory), payments, run, local.name, assignment.round, limits)

    def carry(self, client_state: Mapping[str, Tensors]) -> None:
        """Pay for what an earlier version counted in this run, at the noise of this round."""
        counted = {p.wrapper: count for p in self.payments if (count := _counted(client_state.get(p.wrapper, {})))}
        if counted and not any(line["run"] == self.run for line in self.account.entries()):
            earlier = tuple(replace(p, times=counted[p.wrapper]) for p in self.payments if p.wrapper in counted)
            replace(self, payments=earlier, round=self.round - 1).pay()

    def check(self) -> None:
        """Raise BudgetSpent if the payments exceed a budget, before any work. Raises AccountError."""
        if self.payments:
            self.account.check(self.payments, self.run, self.limits)

    def pay(self) -> None:
        """Pay; the answer may leave only afterwards. Raises BudgetSpent, AccountError."""
        self.account.pay(self.payments, self.run, self.node, self.round, self.limits)


def check_uncovered(local: Local, what: str) -> None:
    """Raise NotPermitted for an answer from rows that no privacy covers, if the policy asks for privacy."""
    if local.policy.privacy.kinds or local.policy.privacy.epsilon:
        raise NotPermitted([("privacy", f"it asks for privacy, which this {what} has none of")])


def account_of(local: Local, memory: ClientStore) -> Account:
    """Return the account: of the data set on a deployed node, of the run in a simulation."""
    if public_errors.simulated():
        return Account(memory.account, f"run of node {local.name}")
    return Account.at(accounts_of(local), local.data_set)


def accounts_of(local: Local) -> Path:
    """Return the folder of a node's accounts: `account-path` of its node config, else in its store."""
    own = dict(local.node).get("account-path")
    return Path(str(own)).expanduser() if own else local.store.path(KIND, "")


def _counted(client_state: Tensors) -> int:
    return sum(int(client_state.pop(name)) for name in COUNTS if name in client_state)
