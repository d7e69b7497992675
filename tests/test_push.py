"""`thistledown export --push`: the files of the export, and no others, reach a repository that nobody else reads."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants
from in_process import Outcome, federate
from model_hub import TOKEN, ModelHub, Repository, model_hub

from thistledown.main import DONE, FAILED, WRONG, main


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return federate(tmp_path_factory.mktemp("push"), {"num-server-rounds": 1, "tuning": "full", "local-steps": 2})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    with model_hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the Hub's own protocol for large files
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pushed(outcome: Outcome, to: Path, *more: str) -> int:
    return main(["export", str(outcome.folder), "--to", str(to), "--push", "me/tuned", *more])


@pytest.mark.parametrize("public", [False, True])
def test_the_files_of_the_export_and_no_others_are_pushed(
    outcome: Outcome, hub: ModelHub, public: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.txt").write_text("beside the model")
    assert pushed(outcome, tmp_path, *(["--public"] if public else [])) == DONE
    [(name, there)] = hub.repositories.items()
    assert (name, there.private) == ("me/tuned", not public)
    assert there.files == files(tmp_path / "best")
    card = ModelCard(there.files["README.md"].decode())
    assert card.data.library_name == "transformers"
    assert {one.metric_type for one in card.data.eval_results} == {"accuracy", "loss"}
    assert capsys.readouterr().out.endswith(f"the model is at {hub.url}/me/tuned\n")


@pytest.mark.parametrize(
    ("asked", "said"),
    [([], "exists and is public; add --public"), (["--public"], "exists and is private; leave out --public")],
)
def test_a_repository_that_exists_is_used_if_it_is_as_public_as_asked(
    asked: list[str], said: str, outcome: Outcome, hub: ModelHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories["me/tuned"] = Repository(private=bool(asked))
    assert pushed(outcome, tmp_path, *asked) == WRONG
    assert said in capsys.readouterr().err
    assert hub.repositories["me/tuned"].files == {}
    hub.repositories["me/tuned"].private = not asked
    assert pushed(outcome, tmp_path, *asked) == DONE
    assert hub.repositories["me/tuned"].files == files(tmp_path / "best")


def test_a_hub_that_refuses_leaves_the_model_here(
    outcome: Outcome,
    hub: ModelHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert pushed(outcome, tmp_path) == FAILED
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "the Hub did not take the model (" in said
    assert f"it is in {tmp_path / 'best'}" in said
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert pushed(outcome, tmp_path) == FAILED
    assert hub.repositories == {}


def test_an_adapter_whose_base_is_a_folder_here_is_not_pushed(
    hub: ModelHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its base is the embedded one, which others do not have under that path; merged, it is a whole model."""
    lora = federate(tmp_path / "run", {"num-server-rounds": 1, "tuning": "lora", "local-steps": 2})
    assert pushed(lora, tmp_path / "to") == WRONG
    assert "adapter_config.json names " in (said := capsys.readouterr().err)
    assert "add --merge" in said
    assert hub.asked == []
    assert pushed(lora, tmp_path / "to", "--merge") == DONE
    assert hub.repositories["me/tuned"].files == files(tmp_path / "to" / "best-merged")
    assert not any(str(tmp_path).encode() in content for content in hub.repositories["me/tuned"].files.values())
