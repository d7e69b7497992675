"""Three nodes of ranks 2, 4 and 8 that share the digits, under RBLA."""

from benchmarks.shares import LABELS, Shares

NODES = ["0", "1", "2"]  # as a simulation names them: seeds and order go by the name
RANKS = [2, 4, 8]
SPLIT = {"data.labels": LABELS, "data.partitioner": "dirichlet"}
SETTINGS: dict[str, object] = {
    "strategy": "rbla",
    "lora.ranks": "2,4,8",
    "num-server-rounds": 2,
    "local-epochs": 1,
    "threads": 1,
    **SPLIT,
}


def deployed(shares: Shares) -> dict[str, object]:
    """The settings of a deployment over these shares."""
    own = {"data.name": str(shares.whole), "data.partitioner": "none", "min-available-nodes": len(NODES)}
    return SETTINGS | own


def node_config(shares: Shares, name: str) -> dict[str, object]:
    """What a node of this name is told."""
    number = NODES.index(name)
    return {"data-path": str(shares.files[number]), "rank": RANKS[number], "device": "cpu"}
