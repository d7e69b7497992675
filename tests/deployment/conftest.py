"""What the tests of a deployment share: where nodes work, and the digits as files."""

import signal
from collections.abc import Iterator

import pytest
from three import NODES, SPLIT

from benchmarks.machines import namespaces_allowed
from benchmarks.shares import Shares


@pytest.fixture(scope="session", autouse=True)
def orderly() -> Iterator[None]:
    """SIGTERM ends a session as Ctrl-C does: nothing that was started stays."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def apart(pytestconfig: pytest.Config) -> bool:
    """Have nodes network namespaces of their own? Where these are not allowed they are all on the loopback."""
    allowed = namespaces_allowed()
    where = "in network namespaces of their own" if allowed else "on the loopback: network namespaces are not allowed"
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():  # type: ignore[union-attr]
        print(f"\nnodes are {where}")
    return allowed


@pytest.fixture(scope="session")
def shares(tmp_path_factory: pytest.TempPathFactory) -> Shares:
    """The split that a simulation makes, as a file a node."""
    return Shares.write(tmp_path_factory.mktemp("shares"), SPLIT, NODES)
