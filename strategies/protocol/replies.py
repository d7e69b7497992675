"""Names of records and metrics in a node's reply."""

from strategies.exchange.types import LacksBase, OutOfMemory

INSTALLED = "installed"  # the metric that says what the node installed
PROOF = "proof"  # the record of a reply that says which weights the node stands on
RECORDS = frozenset(
    {"arrays", "index", "metrics", PROOF, OutOfMemory.RECORD, LacksBase.RECORD}
)  # that a reply may have
