"""Every setting of a base that could be a path, set to one: nothing outside is opened, by Python or by compiled code.

EXHAUSTIVE=1 tries four paths for each setting, instead of one for every fifth.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="compiled code is watched by inotify")
def test_no_setting_of_a_base_opens_a_file_outside(tmp_path: Path) -> None:
    temp = tmp_path / "temp"
    temp.mkdir()
    values, step = (4, 1) if os.environ.get("EXHAUSTIVE") else (1, 5)
    environment = os.environ | {
        "TMPDIR": str(temp),
        "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(temp / "hub"),
    }
    done = subprocess.run(
        [sys.executable, str(TESTS / "watched_loading.py"), str(tmp_path), str(values), str(step)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["noticed"]
    assert found["strange"] == []
    assert found["loaded"] > 30
    assert found["refused"] > 30
