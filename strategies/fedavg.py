"""FedAvg: every node trains, the server takes the mean weighted by rows.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", arXiv
1602.05629, Algorithm 1: w <- sum_i (n_i / n) w_i. With a tuning that trains little this is FedPEFT
(Sun et al., arXiv 2210.01708): the mean is over the trained tensors alone, and nothing else moves. With
`lora` it is FedIT (Zhang et al., arXiv 2305.05644): A and B are averaged apart, so the product of the
means differs from the mean of the products.
"""

from dataclasses import dataclass

from strategies.exchange.strategy import Strategy


@dataclass(frozen=True)
class FedAvg(Strategy):
    """The defaults of `Algorithm`, under their own name."""
