"""Natural clients: nodes are called by their sites, and rows without an id are no site."""

from pathlib import Path

import pytest
from in_process import federate
from samples import TEXTS
from tuned import samples

from task.config import TaskConfig
from task.data.partition import node_names, partition, table
from task.data.prepared import data_index
from task.data.raw import DataError
from task.storage.store import Store

LONG = "1234567890123456789"  # beyond whole numbers of 64 bits, with another digit
SITES = "text,label,site\na,x,Oslo\nb,y,Bergen\nc,x,Oslo \nd,y,Narvik\ne,x,Bergen\nf,y,Oslo\n"


WHOLE = {"data.test-split": "", "data.test-fraction": 0.0, "data.validation-fraction": 0.0}
NATURAL = {"task.kind": "text-classification", "data.partitioner": "natural", "data.id-column": "site"}


def by_site(path: Path, content: str = SITES) -> TaskConfig:
    path.write_text(content)
    return TaskConfig.read({**NATURAL, **WHOLE, "model.name": "given", "data.name": str(path)})


def test_nodes_are_called_by_their_sites(store: Store, tmp_path: Path) -> None:
    config = by_site(tmp_path / "rows.csv")
    plan = data_index(config, store)
    parts = partition(config, plan, 3, store)
    names = node_names(config, plan, parts)
    assert names == ["Bergen", "Narvik", "Oslo"]
    assert {name: part.tolist() for name, part in zip(names, parts, strict=True)} == {
        "Bergen": [1, 4],
        "Narvik": [3],
        "Oslo": [0, 2, 5],
    }
    lines = table(parts, plan.train.labels, plan.labels, names).splitlines()
    assert [line.split()[:2] for line in lines] == [["node", "rows"], ["Bergen", "2"], ["Narvik", "1"], ["Oslo", "3"]]
    assert node_names(config, plan, partition(config, plan, 2, store)) == ["0", "1"], "a node of two sites has a number"


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("text,label,site\na,x,10\nb,y,9\nc,x,10\n", ["9", "10"]),
        ("text,label,site\na,x,007\nb,y,7\nc,x,8\n", ["007", "7", "8"]),
        ("text,label,site\na,x,NA\nb,y,None\nc,x,US\n", ["NA", "None", "US"]),
        (f"text,label,site\na,x,{LONG}0\nb,y,{LONG}1\n", [f"{LONG}0", f"{LONG}1"]),
        (f"text,label,site\na,x,{'s' * 101}\nb,y,Oslo\n", ["0", "1"]),  # too long for a name
    ],
)
def test_ids_stay_what_they_are(content: str, names: list[str], store: Store, tmp_path: Path) -> None:
    config = by_site(tmp_path / "rows.csv", content)
    plan = data_index(config, store)
    assert node_names(config, plan, partition(config, plan, len(names), store)) == names


@pytest.mark.parametrize("missing", ["", " ", "NA"])
def test_rows_without_an_id_are_no_site(missing: str, store: Store, tmp_path: Path) -> None:
    """NA is a name among names, and nothing among numbers."""
    first, other = ("1", "2") if missing == "NA" else ("Oslo", "Bergen")
    rows = [f"a,x,{first}", f"b,y,{missing}", f"c,x,{other}", f"d,y,{missing}"]
    config = by_site(tmp_path / "rows.csv", "\n".join(["text,label,site", *rows]))
    with pytest.raises(DataError, match=r"rows\.csv, row 1 \(line 3\), column 'site': no id, .* 2 of 4 rows") as error:
        data_index(config, store)
    assert error.value.public == "column 'site': no id"


def test_simulated_nodes_say_the_names_of_their_sites(tmp_path: Path, words: Path) -> None:
    sample = samples(tmp_path / "server", words)["bert"]
    rows = [f"{text},{label},{site}" for text, label in TEXTS for site in ("Oslo", "Bergen")]
    by_site(tmp_path / "rows.csv", "\n".join(["text,label,site", *rows]))
    flat = {**sample.flat, **NATURAL, "data.name": str(tmp_path / "rows.csv"), "simulation.num-supernodes": 2}
    outcome = federate(tmp_path / "out", flat | {"tuning": "head", "local-steps": 1, "evaluate": "both"})
    assert outcome.summary["status"] == "completed"
    assert {node["node"] for node in outcome.rounds[1]["nodes"]} == {"Oslo", "Bergen"}
