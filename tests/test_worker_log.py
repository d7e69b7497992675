"""What workers log: levels, texts and tracebacks."""

import logging
import multiprocessing

from flwr.app import Context, Message, RecordDict

from thistledown.simulation import frames
from thistledown.simulation.log import all_lines, handled, log_again
from thistledown.simulation.worker import _Kept

LOG = logging.getLogger("flwr")


def test_tracebacks_of_workers_reach_the_log() -> None:
    kept, lines = _Kept(), list[str]()
    with handled(kept):
        try:
            raise ValueError("of a callback")
        except ValueError:
            LOG.warning("it failed", exc_info=True)
        LOG.info("it goes on")
    ours, theirs = multiprocessing.Pipe()
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    with ours, theirs, all_lines(lines.append):
        frames.send(ours, Message(RecordDict(), dst_node_id=1, message_type="query"), context, kept.records)
        for record in frames.receive(theirs)[2]:
            log_again(record)
    assert lines[0].endswith("it failed\n")
    assert lines[1] == "Traceback (most recent call last):\n"
    assert lines[-2] == "ValueError: of a callback\n"
    assert lines[-1].endswith("it goes on\n")
