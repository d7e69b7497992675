"""The rehearsal of a node before a run that trains on its own rows: the rows can be prepared, and the model trains
here.

The model runs on rows that stand in for the node's own, so the server learns nothing that depends on their values.
"""

import logging

from flwr.app import MetricRecord, RecordDict

from client_app.device import within_memory
from client_app.local import Local
from client_app.permission import check_rows
from strategies.exchange.dry_run import rehearse
from strategies.exchange.types import OutOfMemory
from strategies.protocol.instructions import strategy_of
from task.arithmetic import set_arithmetic
from task.data.stand_in import stand_in

LOG = logging.getLogger("flwr")


def rehearsed(local: Local) -> RecordDict:
    """Prepare the rows and run the model once. Raises DryRunError, and the errors of preparing and building.

    Too little memory is no error yet: a round may find a rank that fits.
    """
    set_arithmetic(local.config, local.device)
    rows, kept = local.rows()
    check_rows(local.policy, len(rows) + len(kept))
    config, base, device = local.config, local.base, local.device
    strategy = strategy_of(local.instructions)
    try:
        said = within_memory(device, lambda: rehearse(strategy, config, base, stand_in(config, base.folder), device))
    except OutOfMemory as error:
        said = (f"{OutOfMemory.SAID}, in a dry run: {error}",)
    for sentence in said:
        LOG.warning("%s", sentence)
    return RecordDict({"metrics": MetricRecord({"ready": 1})})
