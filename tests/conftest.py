"""Once per session: a store of our own (so that the embedded base is trained once), one thread, Flower's identity."""

import os
from collections.abc import Iterator

import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import settings

settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(scope="session", autouse=True)
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set for this process and for those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THISTLEDOWN_CACHE", str(tmp_path_factory.mktemp("cache")))
        torch.set_num_threads(1)
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 7, 7, 1
        yield
