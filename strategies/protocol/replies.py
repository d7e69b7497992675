"""Names of records and metrics in a node's reply."""

from strategies.exchange.types import LacksBase, OutOfMemory

INSTALLED = "installed"  # the metric that reports what the node installed
PROOF = "proof"  # the record of a reply that reports the node's weights
RECORDS = frozenset(
    {"arrays", "index", "metrics", PROOF, OutOfMemory.RECORD, LacksBase.RECORD}
)  # that a reply may have
