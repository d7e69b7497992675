"""The node's privacy account: what its rows have paid, one account per data set, on the node's own disk.

Every message that a privacy wrapper covers is paid for before it leaves, even if the same round is asked for again: the
noise of its answer is new. On a deployed node the account belongs to the data set (its path, or the node's share of a
named one) over all runs, tokens, names and restarts; the policy's `privacy.epsilon` is its upper limit. The budget in
the instructions belongs to their run. If Flower simulates the nodes, the rows are the server's own, and the account
belongs to the run.

A file has one line of JSON per payment, is append-only, and is synced before the answer leaves. Every line seals the
lines before it, so an edited or damaged file is detected; the node then refuses to answer rather than start anew.
"""

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client_app.policy import Privacy
from strategies.algebra.accountant import BudgetSpent, History, epsilon_of, read, written
from strategies.exchange.privacy import Payment
from strategies.protocol.checkpoint import sync
from task.storage.store import recipe_hash

KIND, SUFFIX = "accounts", ".jsonl"
SEAL = "seal"


class AccountError(ValueError):
    """An account that cannot be read or written. The message is for the owner alone."""

    public = "the node's privacy account cannot be used: its owner must look at it"


@dataclass(frozen=True)
class Account:
    """The account of one data set."""

    path: Path
    data: str  # which data set, for its owner

    @classmethod
    def at(cls, folder: Path, data: str) -> "Account":
        """Return the account of a data set in a folder."""
        return cls(folder / (recipe_hash([data]) + SUFFIX), data)

    def entries(self) -> list[dict[str, Any]]:
        """Return all payments so far, oldest first. Raises AccountError."""
        return self._lines()[1:]

    def check(self, payments: Sequence[Payment], run: str, limits: Privacy) -> None:
        """Raise BudgetSpent if these payments exceed a budget, AccountError if the account cannot be read."""
        _check(self.entries(), payments, run, limits)

    def pay(self, payments: Sequence[Payment], run: str, node: str, round: int, limits: Privacy) -> None:
        """Write these payments and return when they are on the disk. Raises BudgetSpent, AccountError."""
        if not payments:
            return
        try:
            with self._alone():
                before = self._lines()
                _check(before[1:], payments, run, limits)
                lines = [] if before else [{"account": self.data}]
                lines += [_line(payment, run, node, round) for payment in payments]
                self._append(_sealed(lines, before[-1][SEAL] if before else ""), new=not before)
        except OSError as error:
            raise AccountError(f"cannot write {self.path}: {error}") from error

    def _lines(self) -> list[dict[str, Any]]:
        """Return all lines; none if there is no file yet."""
        return read_lines(self.path) if self.path.exists() else []

    def _append(self, content: bytes, new: bool) -> None:
        """Append to the file, all or nothing; a new file appears with its content."""
        place = self.path.with_suffix(".part") if new else self.path
        handle = os.open(place, os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if new else os.O_APPEND), 0o600)
        try:
            size = os.fstat(handle).st_size
            if os.write(handle, content) < len(content):
                os.ftruncate(handle, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        finally:
            os.close(handle)
        if new:
            os.replace(place, self.path)
            sync(self.path.parent)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes of this machine from writing to the account."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of an account, its header first. Raises AccountError for anything that is not as it was
    written."""
    found: list[dict[str, Any]] = []
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AccountError(f"cannot read {path}: {error}") from error
    seal = ""
    for number, text in enumerate(content.split(b"\n")[:-1], 1):
        try:
            line = json.loads(text)
            body = {key: value for key, value in line.items() if key != SEAL}
            if line[SEAL] != (seal := _seal(body, seal)):
                raise ValueError("it does not continue the line before")
            if number > 1:
                read(body["paid"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise AccountError(f"{path}, line {number} is damaged: {error}. {ADVICE}") from error
        found.append(line)
    if not content.endswith(b"\n") or "account" not in found[0]:
        raise AccountError(f"{path} is cut off or is not an account. {ADVICE}")
    return found


ADVICE = (
    "This node answers nothing under privacy until the file is put back from a backup. Only if its last line is "
    "incomplete, after a power cut: that payment's answer never left, and the line may be taken off by hand"
)


def total(lines: Sequence[dict[str, Any]]) -> History:
    """Return everything that the payments of an account released."""
    history = History()
    for line in lines:
        history += read(line["paid"])
    return history


def _check(lines: Sequence[dict[str, Any]], payments: Sequence[Payment], run: str, limits: Privacy) -> None:
    more = sum((History({payment.release: payment.times}) for payment in payments), History())
    of_run = total([line for line in lines if line["run"] == run]) + more
    for payment in payments:
        if payment.epsilon and (cost := epsilon_of(of_run, payment.delta)) > payment.epsilon:
            raise BudgetSpent(
                f"its budget of epsilon {payment.epsilon:g} is spent: this message would make it {cost:.2f}"
            )
    if limits.epsilon and (cost := epsilon_of(total(lines) + more, limits.delta)) > limits.epsilon:
        said = f"privacy.epsilon = {limits.epsilon:g} of the policy is spent: this message would make it {cost:.2f}"
        raise BudgetSpent(said, "the privacy that its owner allows is spent")


def _line(payment: Payment, run: str, node: str, round: int) -> dict[str, Any]:
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "run": run,
        "node": node,
        "round": round,
        "wrapper": payment.wrapper,
        "paid": written({payment.release: payment.times}),
    }


def _sealed(lines: Sequence[dict[str, Any]], seal: str) -> bytes:
    texts = []
    for line in lines:
        seal = _seal(line, seal)
        texts.append(json.dumps(line | {SEAL: seal}) + "\n")
    return "".join(texts).encode()


def _seal(body: dict[str, Any], before: str) -> str:
    text = before + json.dumps(body, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
