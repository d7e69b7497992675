"""What the tests of a deployment share: where nodes work, and the digits as files."""

import signal
import warnings
from collections.abc import Iterator

import pytest

from benchmarks.machines import namespaces_allowed
from benchmarks.shares import Shares
from deployment.three import NODES, SPLIT


@pytest.fixture(scope="module", autouse=True)
def orderly() -> Iterator[None]:
    """SIGTERM ends these tests as Ctrl-C does: nothing that was started stays."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def apart() -> bool:
    """Have nodes network namespaces of their own? Where these are not allowed they are all on the loopback."""
    if not (allowed := namespaces_allowed()):
        warnings.warn("nodes were all on the loopback: network namespaces need root and the program ip", stacklevel=1)
    return allowed


@pytest.fixture(scope="session")
def shares(tmp_path_factory: pytest.TempPathFactory) -> Shares:
    """The split that a simulation makes, as a file a node."""
    return Shares.write(tmp_path_factory.mktemp("shares"), SPLIT, NODES)
