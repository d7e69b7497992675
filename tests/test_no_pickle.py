"""Nothing in the packages can unpickle or run what it reads: every call is looked at."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

APP = Path(__file__).parent.parent
PACKAGES = ("task", "strategies", "server_app", "client_app", "thistledown", "benchmarks")
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "pandas"}
BANNED = {"torch.load", "read_pickle", "load_pickle", "loads_pickle", "eval", "exec", "__import__"}


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((APP / package).rglob("*.py"))]


def dotted(node: ast.expr) -> str:
    """`np.load` of a call's function."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}".removeprefix(".")
    return node.id if isinstance(node, ast.Name) else ""


def faults(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield from (f"{node.module}.{n.name}" for n in node.names)
        elif isinstance(node, ast.Call):
            name, given = dotted(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
            if name in BANNED or name.rsplit(".", 1)[-1] in BANNED - {"eval", "exec"}:
                yield name
            if name in ("np.load", "numpy.load") and not is_constant(given.get("allow_pickle"), False):
                yield f"{name} without allow_pickle=False"
            if name.endswith(("from_pretrained", "snapshot_download")) and is_constant(
                given.get("trust_remote_code"), True
            ):
                yield f"{name} with trust_remote_code=True"
            if "Auto" in name and name.endswith(".from_pretrained") and "trust_remote_code" not in given:
                yield f"{name} does not say trust_remote_code"
            yield from (
                f"{name} with {key}=True"
                for key in ("allow_pickle", "trust_remote_code")
                if is_constant(given.get(key), True)
            )


def is_constant(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(APP)))
def test_nothing_unpickles_and_no_code_is_trusted(path: Path) -> None:
    assert not list(faults(path.read_text(encoding="utf-8")))


def test_there_is_something_to_look_at() -> None:
    assert len(sources()) > 100


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import yaml",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "pd.read_pickle(path)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoTokenizer.from_pretrained(x)",
        "load_dataset(x, trust_remote_code=True)",
        "eval(text)",
    ],
)
def test_the_look_finds_what_it_looks_for(source: str) -> None:
    assert list(faults(source))


@pytest.mark.parametrize(
    "source", ["np.load(path, allow_pickle=False)", "model.eval()", "safetensors.torch.load_file(path)"]
)
def test_the_look_lets_the_rest_be(source: str) -> None:
    assert not list(faults(source))
