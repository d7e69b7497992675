"""Extensions are found by the names of their files."""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from task import extensions
from task.schema import ConfigError

FILES = {
    "base.py": "class Sauce: ...\n",
    "registry.py": "",
    "_private.py": "",
    "parts/__init__.py": "",
    "tomato_basil.py": "from sauces.base import Sauce\nclass Tomato(Sauce): ...\n",
    "pesto.py": "from sauces.base import Sauce\nfrom sauces.tomato_basil import Tomato\nclass Pesto(Sauce): ...\n",
    "water.py": "from sauces.base import Sauce\n",
    "two.py": "from sauces.base import Sauce\nclass One(Sauce): ...\nclass Two(Sauce): ...\n",
}


@pytest.fixture
def sauce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """The base class of an axis whose package was just written."""
    for name, text in {"__init__.py": "", **FILES}.items():
        file = tmp_path / "sauces" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("sauces.base").Sauce
    for name in [name for name in sys.modules if name.split(".")[0] == "sauces"]:
        del sys.modules[name]


def test_every_public_module_but_base_and_registry_is_one(sauce: type) -> None:
    assert extensions.names("sauces") == ["pesto", "tomato-basil", "two", "water"]
    assert "sauces.pesto" not in sys.modules


def test_a_file_that_comes_later_is_found(sauce: type, tmp_path: Path) -> None:
    """Names are remembered until the time of the folder changes, which clocks of some systems tell in hundredths."""
    assert "curry" not in extensions.names("sauces")
    file = tmp_path / "sauces" / "curry.py"
    file.write_text(FILES["tomato_basil.py"])
    later = file.parent.stat().st_mtime_ns + 10**9
    os.utime(file.parent, ns=(later, later))
    importlib.invalidate_caches()
    assert "curry" in extensions.names("sauces")
    assert extensions.load("sauces", "curry", sauce).__name__ == "Tomato"


def test_its_class_is_the_one_that_its_module_defines(sauce: type) -> None:
    assert extensions.load("sauces", "pesto", sauce).__name__ == "Pesto"
    assert extensions.load("sauces", "tomato-basil", sauce).__name__ == "Tomato"


@pytest.mark.parametrize(("name", "count"), [("water", 0), ("two", 2)])
def test_a_module_defines_exactly_one(sauce: type, name: str, count: int) -> None:
    with pytest.raises(TypeError, match=rf"sauces\.{name} must define exactly one Sauce, it defines {count}"):
        extensions.load("sauces", name, sauce)


@pytest.mark.parametrize("name", ["pestp", "PESTO"])
def test_an_unknown_name_is_refused_with_the_nearest(sauce: type, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"there is no sauce '{name}'; did you mean 'pesto'\? \(there are pesto, "):
        extensions.load("sauces", name, sauce)


@pytest.mark.parametrize("name", ["base", "parts", "_private", "os", "pesto.Pesto"])
def test_a_module_that_is_no_extension_is_not_loaded(sauce: type, name: str) -> None:
    with pytest.raises(ConfigError, match=f"there is no sauce '{name}'"):
        extensions.load("sauces", name, sauce)


def test_the_noun_is_the_name_of_the_base_class(sauce: type) -> None:
    with pytest.raises(ConfigError, match="there is no hot sauce 'ketchup'"):
        extensions.load("sauces", "ketchup", type("HotSauce", (), {}))
