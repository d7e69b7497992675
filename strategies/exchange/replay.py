"""Ways to replay an entry of a journal."""

from strategies.algebra.lowrank import products
from strategies.exchange.types import Entry
from task.models.model import TunedModel


def merge_products(model: TunedModel, entry: Entry) -> None:
    """Replay an entry of products: add scaling * B A to the base weights."""
    for name, product in products(entry.tensors):
        model.shift_product(name, model.config.tuning.product_scale() * product)
