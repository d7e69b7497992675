"""What a run says of itself while it goes on."""

import pytest

from server_app.callbacks.progress import progress
from server_app.results.amounts import clock, human

TITLES = {"accuracy": "accuracy", "loss": "loss"}


def said(done: int, over: list[float], **more: object) -> str:
    line = {"round": done, "accuracy": 0.5, "loss": 1.25, "bytes_up": 1200, "bytes_down": 3_400_000, "seconds": 40.0}
    return progress(line | more, TITLES, 12, over)


def test_a_round_says_quality_traffic_seconds_and_what_is_left() -> None:
    assert said(2, [0, 40, 42]) == "round 2/12  accuracy 0.500  loss 1.250  up 1.2 kB  down 3.4 MB  40.0 s  ETA 0:20"
    assert said(0, [0]) == "round 0/12  accuracy 0.500  loss 1.250  (before training)"


@pytest.mark.parametrize(
    ("done", "over", "left"),
    [
        pytest.param(1, [0, 40], "7:20", id="the first round is all there is to go by"),
        pytest.param(2, [0, 40, 42], "0:20", id="nodes started in it, and do not start again"),
        pytest.param(3, [0, 40, 42, 48], "0:36", id="the mean of the others"),
        pytest.param(12, [0, *range(40, 64, 2)], "0:00", id="nothing is left"),
        pytest.param(6, [100], "4:00", id="resumed: one round, its own seconds"),
        pytest.param(7, [100, 103], "0:15", id="resumed: two rounds"),
    ],
)
def test_what_is_left(done: int, over: list[float], left: str) -> None:
    assert said(done, over).endswith(f"  ETA {left}")


def test_a_round_that_was_not_evaluated_says_so() -> None:
    line = {"round": 1, "bytes_up": 0, "bytes_down": 0, "seconds": 1.0}
    assert progress(line, TITLES, 1, [0, 1]).startswith("round 1/1  not evaluated  up 0 B")


@pytest.mark.parametrize(("epsilon", "written"), [(2.5, "2.50"), (None, "unbounded")])
def test_privacy_that_is_spent_is_said(epsilon: float | None, written: str) -> None:
    assert f"  epsilon {written}  up" in said(2, [0, 1, 2], epsilon=epsilon)


def test_numbers_for_people() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 125)] == ["0:00", "1:00", "2:05"]
    assert [human(count) for count in (0, 999, 1200, 3.4e6, 5e12)] == ["0 B", "999 B", "1.2 kB", "3.4 MB", "5000.0 GB"]
