"""E2B's JavaScript SDK, run by Node against the same daemon."""

import os
import subprocess
from pathlib import Path


def test_the_javascript_sdk() -> None:
    ran = subprocess.run(
        ["npm", "test", "--silent"], cwd=Path(__file__).parent, env=os.environ, capture_output=True, text=True, timeout=170
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
