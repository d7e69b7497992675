"""`thistledown certs`: keys that Flower and OpenSSL take, private halves that nobody else reads, and nothing lost."""

import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from task.schema import ConfigError
from thistledown.commands.certs import Keys
from thistledown.main import DONE, WRONG, main

NAMES = ["superlink.example.org", "10.0.0.1", "::1"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    made = Keys(tmp_path / "keys", NAMES, ["clinic-1", "clinic-2"], days=30)
    made.make()
    return made


def greeted(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """A TLS handshake of the two in memory. Raises ssl.SSLError where one refuses the other."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=name)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (one, other, one, other):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue


def server_of(keys: Keys) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys.server.public, keys.server.private)
    return context


@pytest.mark.parametrize("name", [*NAMES, "localhost", "127.0.0.1"])
def test_a_client_that_trusts_the_authority_trusts_the_superlink(keys: Keys, name: str) -> None:
    client = ssl.create_default_context(cafile=str(keys.authority.public))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    greeted(server_of(keys), client, name)


def test_under_another_name_or_authority_it_does_not(keys: Keys, tmp_path: Path) -> None:
    client = ssl.create_default_context(cafile=str(keys.authority.public))
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        greeted(server_of(keys), client, "elsewhere.example.org")
    other = Keys(tmp_path / "other", NAMES, [], days=30)
    other.make()
    with pytest.raises(ssl.SSLCertVerificationError):
        greeted(server_of(other), client, NAMES[0])


def test_node_keys_are_of_the_kind_that_flower_takes(keys: Keys) -> None:
    pair = keys.node("clinic-1")
    private = load_ssh_private_key(pair.private.read_bytes(), password=None)
    assert isinstance(private, EllipticCurvePrivateKey)
    public = load_ssh_public_key(pair.public.read_bytes())
    assert private.public_key().public_numbers() == public.public_numbers()  # type: ignore[union-attr]
    written = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    assert written.startswith(b"ecdsa-sha2-nistp384 ")
    assert pair.public.read_bytes() == written + b" clinic-1\n"


def test_private_halves_are_their_owners(keys: Keys) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in keys.folder.rglob("*")}
    private = {"ca.key", "server.key", "clinic-1", "clinic-2"}
    assert {name for name, mode in modes.items() if mode == 0o600} == private
    assert modes["nodes"] == 0o700


def test_nodes_are_added_and_nothing_is_written_again(keys: Keys) -> None:
    before = contents(keys.folder)
    more = Keys(keys.folder, [], ["clinic-2", "clinic-3"], days=30)
    assert more.make() == [more.node("clinic-3").public]
    after = contents(keys.folder)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"nodes/clinic-3", "nodes/clinic-3.pub"}
    assert more.make() == []


def test_every_problem_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    wrong = Keys(tmp_path / "keys", ["one two", "1.2.3", "-x"], ["../up", "a", "a", "b.pub"], days=0)
    with pytest.raises(ConfigError) as caught:
        wrong.make()
    said = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 7, said
    for part in ("'one two'", "'1.2.3'", "'-x'", "'../up'", "'b.pub'", "names 'a' twice", "--days 0"):
        assert part in said
    assert not (tmp_path / "keys").exists()


def test_names_of_a_superlink_are_not_changed_behind_its_back(keys: Keys) -> None:
    with pytest.raises(ConfigError, match=r"server\.crt and server\.key are for other names than new\.example\.org"):
        Keys(keys.folder, ["new.example.org"], [], days=30).make()


@pytest.mark.parametrize("lost", ["ca.key", "server.crt", "nodes/clinic-1"])
def test_half_a_key_is_said(keys: Keys, lost: str) -> None:
    (keys.folder / lost).unlink()
    before = contents(keys.folder)
    with pytest.raises(ConfigError, match=f"is there, but not .*{lost}"):
        Keys(keys.folder, [], ["clinic-1"], days=30).make()
    assert contents(keys.folder) == before


def test_a_race_loses_no_key(tmp_path: Path) -> None:
    pair = Keys(tmp_path, NAMES, [], days=30).node("a")
    outcomes: list[bool] = []

    def write(number: int) -> None:
        try:
            pair.write(str(number).encode() * 9, b"")
        except FileExistsError:
            outcomes.append(False)
        else:
            outcomes.append(True)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 7 + [True]
    assert len(set(pair.private.read_bytes())) == 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "keys")
    assert main(["certs", folder]) == WRONG
    assert "--names: give the host names" in capsys.readouterr().err
    assert main(["certs", folder, "--names", "10.0.0.1, superlink", "--nodes", "a,b"]) == DONE
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}/{name}" for name in ("ca.crt", "server.crt", "nodes/a.pub", "nodes/b.pub")
    ]
