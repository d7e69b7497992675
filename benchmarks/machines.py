"""Machines for nodes: network namespaces with a wire to this machine, or this machine itself."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """Where a node works: `address` is the SuperLink's as seen from there, `prefix` starts a command there."""

    address: str
    prefix: tuple[str, ...] = ()


def namespaces_allowed() -> bool:
    """May this process make network namespaces?"""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    probe = f"td{os.getpid()}p"
    try:
        with _namespace(probe, 7):
            return True
    except subprocess.CalledProcessError:
        return False


@contextmanager
def machines(count: int, apart: bool) -> Iterator[list[Machine]]:
    """Machines for nodes: each a network namespace with a wire to this one (`apart`), or this one itself."""
    if not apart:
        yield [Machine("127.0.0.1")] * count
        return
    with ExitStack() as stack:
        names = [f"td{os.getpid()}n{number}" for number in range(count)]
        yield [stack.enter_context(_namespace(name, number)) for number, name in enumerate(names)]


@contextmanager
def _namespace(name: str, number: int) -> Iterator[Machine]:
    """A network namespace that reaches nothing but this machine."""
    near, far = addresses(number)
    inside = f"ip -n {name}"
    _ip(f"ip netns add {name}")
    try:
        _ip(f"ip link add {name} type veth peer name up0 netns {name}")
        _ip(f"ip address add {near}/30 dev {name}", f"ip link set {name} up")
        _ip(f"{inside} address add {far}/30 dev up0", f"{inside} link set up0 up", f"{inside} link set lo up")
        yield Machine(near, ("ip", "netns", "exec", name))
    finally:
        _ip(f"ip netns delete {name}")  # and the wire with it


def addresses(number: int) -> tuple[str, str]:
    """Of both ends of a wire; other processes that do the same at the same time have others."""
    place = (8 * os.getpid() + number) % 2**14
    net = f"10.{192 + place // 256}.{place % 256}"
    return f"{net}.1", f"{net}.2"


def _ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True, capture_output=True)
