"""The tasks that studies share: real data and pretrained models from ../shared/assets."""

from benchmarks.study import Method, Options, Setting

ASSETS = "../shared/assets"
MNIST = f"{ASSETS}/mnist/mnist.npz"
FASHION = f"{ASSETS}/fashion_mnist/fashion_mnist.npz"
VIT = f"{ASSETS}/vit-fashion-mnist-0.8m"
MINILM = f"{ASSETS}/minilm-l6-v2"
AG_NEWS = f"{ASSETS}/ag_news"

RATES = {"lora": (0.003, 0.01), "full": (0.0003, 0.001)}
TARGET = 0.75
TEN = "ten nodes, Dirichlet 0.5"

MINILM_ABOUT = (
    "MiniLM (22.7 million parameters) learns the four topics of AG News: 2,000 articles of {tokens} tokens on {split}, "
    "4 local AdamW steps of 16 articles a round, adapters on all linear layers. 400 test rows: the "
    "standard error of one accuracy near .8 is two points."
)
VIT_ABOUT = (
    "A vision transformer (0.8 million parameters) that was trained on Fashion-MNIST learns MNIST: 3,000 digits on "
    "{split}, 5 local AdamW steps of 8 digits a round, adapters on all linear layers, {rows:,} test rows."
)


def minilm(
    rounds: int, ranks: str, said: str, methods: tuple[Method, ...], split: str = TEN, tokens: int = 40
) -> Setting:
    """On the preset `ag-news`; `said` is what there is to say of the ranks, `split` names that of the rows."""
    options: Options = {
        "model.name": MINILM,
        "data.name": AG_NEWS,
        "data.max-length": tokens,
        "data.train-rows": 2000,
        "data.validation-rows": 100,
        "data.test-rows": 400,
        **_federation(rounds, ranks, steps=4, batch=16),
    }
    about, assets = f"{MINILM_ABOUT.format(split=split, tokens=tokens)} {said}", (MINILM, AG_NEWS)
    return Setting("minilm", about, options, methods, RATES, TARGET, preset="ag-news", assets=assets)


def fashion_vit(
    rounds: int, ranks: str, said: str, methods: tuple[Method, ...], split: str = TEN, rows: int = 1000
) -> Setting:
    """On the defaults; `said` and `split` as of `minilm`; `rows` are tested on."""
    options: Options = {
        "model.name": VIT,
        "data.name": MNIST,
        "data.train-rows": 3000,
        "data.validation-rows": 300,
        "data.test-rows": rows,
        "data.partitioner": "dirichlet",
        "data.alpha": 0.5,
        **_federation(rounds, ranks, steps=5, batch=8),
    }
    about = f"{VIT_ABOUT.format(split=split, rows=rows)} {said}"
    return Setting("fashion-vit", about, options, methods, RATES, TARGET, assets=(VIT, MNIST))


def _federation(rounds: int, ranks: str, steps: int, batch: int) -> Options:
    return {
        "lora.targets": "all-linear",
        "lora.ranks": ranks,
        "local-steps": steps,
        "batch-size": batch,
        "num-server-rounds": rounds,
        "head-rate": 1.0,  # as everything was measured, before a head had a rate of its own
    }
