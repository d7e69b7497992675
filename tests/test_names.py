"""Names belong to keys: the SuperLink knows the key of every node, and under which name it was registered."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from flwr.proto.node_pb2 import NodeInfo
from in_process import InProcessGrid, federate

import client_app
from strategies.exchange.types import Profile, Refused
from strategies.rounds.handshake.names import REGISTER, Identity, Names, fingerprint, identities
from strategies.rounds.run_state import RunState
from thistledown.commands.certs import Keys

CLINICS = ["clinic-1", "clinic-2", "clinic-3", "clinic-4"]
THIEF, ROBBED = 3, 1  # partitions
OPTIONS: dict[str, Any] = {"num-server-rounds": 3, "tuning": "head", "min-available-nodes": 2}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Public keys of four nodes, as the SuperLink keeps them."""
    made = Keys(tmp_path_factory.mktemp("keys"), ["localhost"], CLINICS, days=2)
    made.make()
    public = [load_ssh_public_key(made.node(name).public.read_bytes()) for name in CLINICS]
    return [key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in public]


class Authenticated(InProcessGrid):
    """The SuperLink of a deployment with node authentication: it tells keys, and names as far as there are any.

    Node 3 says that it is clinic-2. The real one is away until the second round, unless it is `there`.
    """

    def __init__(self, keys: list[bytes], names: list[str], there: bool = False, ids: int = 0) -> None:
        said = {number: {"name": name} for number, name in enumerate([*CLINICS[:3], "clinic-2"])}
        super().__init__(client_app.app, 4, said, ids=ids)
        self.keys, self.names, self.looks = keys, names, 0
        self.away = set() if there else {ROBBED}

    def get_nodes(self) -> Iterable[NodeInfo]:
        self.looks += 1
        if self.looks == 4:  # twice before round 1, then once a round
            self.away = set()
        for node_id in self.get_node_ids():
            number = self.partitions[node_id]
            yield NodeInfo(node_id=node_id, public_key=self.keys[number], name=self.names[number] or None)


def taking_part(rounds: list[dict[str, Any]]) -> list[list[str]]:
    return [[line["node"] for line in entry["nodes"]] for entry in rounds[1:]]


@pytest.mark.first(1)
@pytest.mark.parametrize("rule", ["auto", "registered"])
def test_a_name_belongs_to_its_key_also_while_that_is_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, keys: list[bytes], rule: str
) -> None:
    rounds = federate(tmp_path, OPTIONS | {"node-names": rule}, Authenticated(keys, CLINICS)).rounds
    assert taking_part(rounds) == [["clinic-1", "clinic-3"], CLINICS[:3], CLINICS[:3]]
    refused = rf"left out node \d+: it says it is 'clinic-2', but its key \({re.escape(fingerprint(keys[THIEF]))}\)"
    assert re.search(refused + " is registered as 'clinic-4'", caplog.text)
    assert "names are not verified" not in caplog.text


@pytest.mark.first(1)
@pytest.mark.parametrize("ids", range(4))
def test_the_lower_id_does_not_win(tmp_path: Path, keys: list[bytes], ids: int) -> None:
    rounds = federate(tmp_path, OPTIONS, Authenticated(keys, CLINICS, there=True, ids=ids)).rounds
    assert taking_part(rounds) == [CLINICS[:3]] * 3


@pytest.mark.slow
def test_without_names_of_keys_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, keys: list[bytes]
) -> None:
    """Then the thief is believed while nobody else is there. The one who comes back is told of, and may not come in."""
    rounds = federate(tmp_path, OPTIONS, Authenticated(keys, [""] * 4)).rounds
    assert taking_part(rounds) == [CLINICS[:3]] * 3
    assert caplog.text.count("names are not verified") == 1
    assert REGISTER in caplog.text
    waits = re.findall(r"node (\d+) does not take part yet: it says it is 'clinic-2', which node \d+ is", caplog.text)
    assert len(waits) == 1  # once, not in every round


def test_simulated_nodes_have_no_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    federate(tmp_path, OPTIONS)
    assert "names are not verified" not in caplog.text


def test_two_that_say_one_name_are_both_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, keys: list[bytes]
) -> None:
    rounds = federate(tmp_path, OPTIONS, Authenticated(keys, [""] * 4, there=True)).rounds
    assert taking_part(rounds) == [["clinic-1", "clinic-3"]] * 3
    both = [fingerprint(keys[number]) for number in (ROBBED, THIEF)]
    line = next(record.message for record in caplog.records if "2 nodes say that they are 'clinic-2'" in record.message)
    assert all(key in line for key in both)


def profile(node_id: int, name: str) -> Profile:
    return Profile(node_id, name, 0, 1, "")


def test_as_soon_as_one_key_has_a_name_all_must() -> None:
    """Also where the one that has is away, and after the run was resumed."""
    run_state = RunState()
    names = Names("auto", run_state, {})
    names.see({1: Identity("SHA256:one", "clinic-1")})
    again = Names("auto", RunState.read(run_state.about()), {})
    again.see({2: Identity("SHA256:two", "")})
    for one in (names, again):
        one.see({2: Identity("SHA256:two", "")})
        with pytest.raises(Refused, match=r"'clinic-1', but its key \(SHA256:two\) is registered without a name"):
            one.checked(profile(2, "clinic-1"))


def test_a_name_may_stay_with_the_first_key(caplog: pytest.LogCaptureFixture) -> None:
    run_state = RunState()
    names = Names("first-key", run_state, {1: Identity("SHA256:one"), 2: Identity("SHA256:two")})
    first = names.checked(profile(1, "clinic-1"))
    assert first.key == "SHA256:one"
    names.bind(first)
    again = Names("first-key", RunState.read(run_state.about()), names.nodes)
    with pytest.raises(Refused, match=r"its key \(SHA256:two\) is not the first that said so: SHA256:one"):
        again.checked(profile(2, "clinic-1"))
    assert again.checked(profile(1, "clinic-1")) == first
    believing = Names("auto", again.run_state, names.nodes)
    believing.bind(believing.checked(profile(2, "clinic-1")))
    assert "node clinic-1 has another key: SHA256:two, before it was SHA256:one" in caplog.text


def test_a_key_is_named_as_openssh_does(tmp_path: Path, keys: list[bytes]) -> None:
    assert fingerprint(b"") == fingerprint(b"\x00" * 32) == ""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("there is no ssh-keygen")
    made = Keys(tmp_path, ["localhost"], ["one"], days=2)
    made.make()
    public = load_ssh_public_key(made.node("one").public.read_bytes())
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    said = subprocess.run(["ssh-keygen", "-lf", str(made.node("one").public)], capture_output=True, text=True)
    assert said.stdout.split()[1] == fingerprint(pem)


def test_a_grid_that_knows_ids_alone_will_do() -> None:
    grid = InProcessGrid(client_app.app, 2)
    assert list(identities(grid)) == sorted(grid.get_node_ids())
    assert set(identities(grid).values()) == {Identity()}
