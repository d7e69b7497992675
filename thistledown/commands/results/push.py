"""`thistledown export --push`: the folder of a tuned model on the Hugging Face Hub."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from task.schema import ConfigError

FAILURES = (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, httpx.HTTPError, OSError)
LARGEST = 2**20  # bytes of a file of settings; larger ones, such as vocabularies, hold no settings


class NotPushed(Exception):
    """A model that the Hub did not take."""


def check_name(repo: str) -> None:
    """Raise ConfigError for what cannot be the name of a repository."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError([f"--push '{repo}' is no name of a repository on the Hub, such as me/my-model"]) from error


def push(folder: Path, repo: str, public: bool, say: Callable[[str], None]) -> None:
    """Upload the files of `folder`, and no others, to a repository, which is made if there is none: private unless
    `public`. Endpoint and token are those of huggingface_hub (HF_ENDPOINT, HF_TOKEN, `hf auth login`).

    Raises ConfigError for files that name places of this machine, and for a repository that exists and is public or
    private against `public`; NotPushed if the Hub refuses or cannot be reached.
    """
    for said in _places(folder):
        raise ConfigError([f"{said}, so others could not load the model; add --merge, or name a base of the Hub"])
    hub = HfApi()
    try:
        url = hub.create_repo(repo, private=not public, exist_ok=True)
        private = bool(hub.repo_info(url.repo_id).private)
        if private == public:  # it was there before
            is_there, instead = ("private", "leave out") if private else ("public", "add")
            raise ConfigError(
                [f"--push {repo}: the repository exists and is {is_there}; {instead} --public to upload to it"]
            )
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        size = sum(path.stat().st_size for path in files)
        say(f"uploading {len(files)} files of {folder}, {size / 1e6:.1f} MB, to {url}")
        hub.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="Model tuned by thistledown")
    except FAILURES as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotPushed(f"--push {repo}: the Hub did not take the model ({reason}); it is in {folder}") from error
    say(f"the model is at {url}")


def _places(folder: Path) -> Iterator[str]:
    """Yield where files of settings name a path of this machine."""
    for path in sorted(folder.glob("*.json")):
        if path.stat().st_size <= LARGEST:
            for value in _texts(json.loads(path.read_text(encoding="utf-8"))):
                if value.startswith("/") and len(value) > 1 and "\0" not in value and _exists(value):
                    yield f"{path.name} names {value}, which is on this machine alone"


def _exists(value: str) -> bool:
    try:
        return Path(value).exists()
    except OSError:  # too long for a name
        return False


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
