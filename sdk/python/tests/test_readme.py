"""What the README shows is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def test_the_quickstart_runs(state_dir: Path) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    quickstart = re.search(r"```python\n(.*?)```", readme, re.S)
    assert quickstart is not None
    environment = {**os.environ, "OFFSHOOT_HOME": str(state_dir)}
    ran = subprocess.run(
        [sys.executable, "-c", quickstart.group(1)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count(" 42\n") == 4
    assert "undone: the process exited with 1" in ran.stdout
