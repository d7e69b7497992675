"""The environment variables of a run's processes: the user's, without those meant for other programs.

Flower, Ray, gRPC and Python read addresses, colours, proxies and paths from variables. A run's processes talk to each
other over loopback, their output is parsed, and they work in their own folder.
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

NOTHING: Mapping[str, str] = {}  # added to an environment
PACKAGES = ("task", "strategies", "server_app", "client_app", "thistledown")
# Variables that make Flower and Ray join other servers, change how Python runs or warns, or switch on colours.
FOREIGN = ("FLWR_", "RAY_", "CLICOLOR", "TTY_", "OTEL_")
UNWANTED = (
    "FORCE_COLOR", "PY_COLORS", "PYTHONSTARTUP", "PYTHONHOME", "PYTHONWARNINGS", "PYTHONINSPECT", "PYTHONOPTIMIZE",
    "PYTHONDEBUG", "PYTHONVERBOSE", "PYTHONPROFILEIMPORTTIME", "PYTHONEXECUTABLE", "PYTHONCASEOK", "PYTHONPLATLIBDIR",
    "grpc_proxy", "no_grpc_proxy", "GRPC_VERBOSITY", "GRPC_TRACE", "LINES", "LOG_LEVEL",
)  # fmt: skip
KEPT = ("RAY_memory_usage_threshold", "RAY_memory_monitor_refresh_ms")  # the user's limits on memory
# Folders; a relative path would mean another place in the run's folder.
FOLDERS = (
    "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "HF_HOME", "HF_HUB_CACHE",
    "HF_ASSETS_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_TOKEN_PATH", "HUGGINGFACE_HUB_CACHE",
    "TORCH_HOME", "MPLCONFIGDIR",
    "THISTLEDOWN_CACHE", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HOME", "TMPDIR",
)  # fmt: skip
PROXIES = ("all_proxy", "http_proxy", "https_proxy", "ftp_proxy")


def clean(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for a run's processes, with folders made absolute."""
    found = {name: value for name, value in environment.items() if name in KEPT or not _is_foreign(name)}
    for name in FOLDERS:
        if found.get(name):
            found[name] = str(Path(found[name]).expanduser().absolute())
    for name in ("NO_PROXY", "no_proxy"):
        found[name] = ",".join(filter(None, [environment.get(name), "127.0.0.1", "localhost"]))
    for name in [name for name in found if name.lower() in PROXIES]:
        found[name] = _proxy(found[name].strip())
    found.pop("PYTHONPATH", None)
    found = {name: value for name, value in found.items() if value or name.lower() not in PROXIES}
    if paths := _others(environment.get("PYTHONPATH", "")):
        found["PYTHONPATH"] = os.pathsep.join(paths)
    return found | {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "160", "PYTHONIOENCODING": "utf-8"}


def _proxy(value: str) -> str:
    """Return a proxy with a scheme, as the client of Flower and of the Hub (httpx) needs it.

    Returns "" for a kind of proxy that httpx does not support: with it, httpx fails to start even if it is not used.
    """
    value = value if "://" in value else f"http://{value}"
    socks = value.startswith("socks")
    return value if value.startswith(("http", "socks5")) and (not socks or find_spec("socksio")) else ""


def _is_foreign(name: str) -> bool:
    return name in UNWANTED or name.startswith(FOREIGN)


def _others(path: str) -> list[str]:
    """Return the folders of PYTHONPATH that have no module with the name of one of our packages."""
    folders = [Path(entry).expanduser().absolute() for entry in path.split(os.pathsep) if entry]
    return [str(folder) for folder in folders if not any(_has(folder, name) for name in PACKAGES)]


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_dir() or (folder / f"{name}.py").exists()
