"""The files in deploy/ and the page about them start what `thistledown up` starts: the same programs and options."""

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.common.config import parse_config_args

from thistledown.processes import commands
from thistledown.processes.commands import HERE

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
KEYS, STATE, DATA = "/etc/thistledown/keys", "/var/lib/thistledown", "/srv/thistledown"
SUPERLINK_PORT, NODE_PORT, FLEET_PORT = "8000", "9094", "9443"
PROXY = f"server:{FLEET_PORT}"
NODES = {"clinic-1": 2, "clinic-2": 4, "clinic-3": 8}  # names and ranks
Told = tuple[str, dict[str, Any]]  # a program, and its options with what they say


def told(command: Iterable[str]) -> Told:
    """What a command says, however its options are written and in whatever order."""
    program, *words = [part for word in command for part in (word.split("=", 1) if word.startswith("--") else [word])]
    options: dict[str, Any] = {}
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            options[word] = "" if following.startswith("--") else following
    if "--node-config" in options:
        options["--node-config"] = node_config(options["--node-config"])
    return program.rsplit("/", 1)[-1], options


def node_config(text: str) -> dict[str, Any]:
    """A node config as a SuperNode reads it."""
    return parse_config_args([text])


@pytest.mark.parametrize("path", ["a b", 'a"b', "a'b", "a\\b", 'a\\"', 'a" rank=1', "a=1 b=2", "ä", "a\tb", "a\x7fb"])
def test_a_node_reads_the_path_that_it_is_given(path: str) -> None:
    own: dict[str, object] = {"name": "a", "data-path": path, "rank": 4, "follow-paths": True}
    assert node_config(commands.node_config(own)) == own


def server(state: str = STATE) -> commands.Server:
    keys = (f"{KEYS}/{name}" for name in ("ca.crt", "server.crt", "server.key", "executor.secret"))
    return commands.Server(*keys, f"{state}/state.db")


def expected(superlink: str, name: str, key: str, app_hashes: str, state: str = STATE, **config: object) -> list[Told]:
    """What `up` would start: a server, and a node that reaches it at `superlink`."""
    own = {"name": name, **config}
    all_four = [
        commands.superlink(["flower-superlink"], server(state), HERE, SUPERLINK_PORT),
        commands.serverapps(["flower-superexec"], server(), f"{HERE}:{SUPERLINK_PORT}"),
        commands.supernode(["flower-supernode"], superlink, f"{KEYS}/ca.crt", f"{KEYS}/{key}", NODE_PORT, own),
        commands.clientapps(["thistledown-superexec"], NODE_PORT, "--app-hashes", app_hashes),
    ]
    return [told(command) for command in all_four]


# ------------------------------------------------------------------------------- compose


COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


@pytest.mark.parametrize(("name", "rank"), NODES.items())
def test_compose(name: str, rank: int) -> None:
    started = ["superlink", "serverapp", f"{name}-node", f"{name}-app"]
    wanted = expected(PROXY, name, name, "/etc/thistledown/app-hashes", **{"data-path": DATA}, rank=rank, device="auto")
    assert [told(COMPOSE[service]["command"]) for service in started] == wanted


def mounted(service: str) -> set[str]:
    """Where files of the machine are in a container."""
    return {volume.removesuffix(":ro").rpartition(":")[2] for volume in COMPOSE[service].get("volumes", ())}


def test_compose_mounts_what_commands_name_and_no_other_key() -> None:
    for service, said in COMPOSE.items():
        named = {path for word in said.get("command", ()) for path in re.findall(r"/(?:etc|srv|var)/[\w./-]+", word)}
        if service.endswith("-node"):  # the executor beside it reads the data
            assert DATA in named & mounted(service.replace("-node", "-app"))
            named.remove(DATA)
        assert all(any(Path(path).is_relative_to(place) for place in mounted(service)) for path in named), service
        private = {path for path in mounted(service) if path.startswith(KEYS) and not path.endswith((".crt", ".pub"))}
        assert private <= named | ({f"{KEYS}/server.key"} if service == "proxy" else set()), service


def test_programs_of_a_machine_share_its_loopback() -> None:
    """A SuperNode's port has no TLS, and the SuperLink's takes runs from whoever reaches it."""
    machines = {name: said for name, said in COMPOSE.items() if said.get("networks")}
    assert machines.keys() == {"server", *NODES}
    for service, said in COMPOSE.items():
        if service not in machines:
            machine = service.rpartition("-")[0] if service.startswith("clinic") else "server"
            assert said["network_mode"] == f"service:{machine}"
        assert (said["read_only"], said["cap_drop"]) == (True, ["ALL"])
        assert "ports" not in said


# ------------------------------------------------------------------------------- Kubernetes


def manifests(*files: str) -> dict[tuple[str, str], Any]:
    """Manifests by kind and name."""
    texts = [(DEPLOY / "kubernetes" / file).read_text() for file in files]
    return {(one["kind"], one["metadata"]["name"]): one for text in texts for one in yaml.safe_load_all(text)}


def containers(files: str, name: str, variables: Mapping[str, str]) -> dict[str, Any]:
    """Containers of a StatefulSet by name, with their variables filled in."""
    found = manifests(files)["StatefulSet", name]["spec"]["template"]["spec"]["containers"]
    for container in found:
        filled = [re.sub(r"\$\((\w+)\)", lambda name: variables[name[1]], w) for w in container.get("command", ())]
        container["command"] = filled
    return {container["name"]: container for container in found}


@pytest.mark.parametrize(("name", "rank"), NODES.items())
def test_kubernetes(name: str, rank: int) -> None:
    (generated,) = yaml.safe_load((DEPLOY / "kubernetes" / name / "kustomization.yaml").read_text())[
        "configMapGenerator"
    ]
    variables = dict(literal.split("=", 1) for literal in generated["literals"])
    both = containers("server.yaml", "server", {}) | containers("node/node.yaml", "node", variables)
    superlink = f"server.thistledown.svc:{FLEET_PORT}"
    apps = "/etc/thistledown/apps/app-hashes"
    wanted = expected(superlink, name, "node", apps, **{"data-path": DATA}, rank=rank, device="auto")
    assert [told(both[c]["command"]) for c in ("superlink", "serverapp", "supernode", "clientapp")] == wanted


def test_pods_are_as_restricted_as_can_be() -> None:
    for file, name in (("server.yaml", "server"), ("node/node.yaml", "node")):
        pod = manifests(file)["StatefulSet", name]["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            volumes = [mount["name"] for mount in container["volumeMounts"]]
            assert "keys" not in volumes or container["name"] != "clientapp"  # it runs code of the server
    service = manifests("server.yaml")["Service", "server"]["spec"]["ports"]
    assert [port["port"] for port in service] == [int(FLEET_PORT)]


def test_flwr_can_write_beside_its_settings() -> None:
    """It keeps credentials there, and fails where it cannot."""
    client, home = COMPOSE["flwr"], "/etc/thistledown/flwr"
    assert client["environment"]["FLWR_HOME"] == home
    assert home in client["tmpfs"]
    serverapp = containers("server.yaml", "server", {})["serverapp"]
    assert {mount["mountPath"]: mount["name"] for mount in serverapp["volumeMounts"]}[home] == "scratch"
    assert f"FLWR_HOME={home} flwr" in (ROOT / "docs" / "deploy.md").read_text()


# ------------------------------------------------------------------------------- systemd, and the page


def settings(file: str) -> dict[str, str]:
    """The variables of an environment file."""
    return dict(word.split("=", 1) for word in shlex.split((DEPLOY / file).read_text(), comments=True))


def unit(name: str) -> Told:
    """What a unit starts, for the node clinic-1."""
    text = (DEPLOY / f"{name}.service").read_text().replace("\\\n", " ").replace("%i", "clinic-1")
    (command,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    variables = settings("thistledown.env") | settings("clinic-1.env")
    return told(shlex.split(re.sub(r"\$\{(\w+)\}", lambda found: variables[found[1]], command)))


def test_units() -> None:
    config = {"data-path": "/srv/thistledown/letters.parquet", "rank": 4, "device": "auto"}
    own = ("clinic-1", "clinic-1", "/etc/thistledown/app-hashes", f"{STATE}/superlink")
    wanted = expected(settings("clinic-1.env")["SUPERLINK"], *own, **config)
    names = ("superlink", "serverapp", "supernode@", "clientapp@")
    assert [unit(f"thistledown-{name}") for name in names] == wanted


def test_the_page_starts_them_with_the_same_options() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    walk = " ".join("".join(re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)).split("\\\n"))
    started = {
        program: set(re.findall(r"--[a-z\-]+", options))
        for program, options in re.findall(r"exec (\S+) (.*?)\) >", walk)
    }
    wanted = expected("", "", "", "")
    assert started == {program: set(options) for program, options in wanted}


def test_the_image_is_set_up_as_the_units_are() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    final = text[text.rindex("\nFROM") :]
    variables = dict(re.findall(r"(\w+)=(\S+)", re.search(r"^ENV (.*?[^\\])$", final, re.MULTILINE | re.DOTALL)[1]))  # type: ignore[index]
    shared = {key: value for key, value in settings("thistledown.env").items() if not key.startswith("SUPERLINK")}
    assert shared.items() <= variables.items()
    assert "USER 10001:10001" in final
    copied = {name for names in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE) for name in names.split()}
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text()
    assert set(re.findall(r"^!(.*)$", ignored, re.MULTILINE)) == copied
    assert all((ROOT / name).exists() for name in copied)
