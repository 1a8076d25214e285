"""A head of `vesalius up` that dies and finds in Redis what it knew.

That other nodes go on meanwhile is tested on Ray's own cluster of several nodes on one machine
(``tests/chaos/test_training_head.py``): `ray start --head` refuses to start beside a node that waits for it there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.conftest import ServedHome

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

_TELL = """
import sys
import ray
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

ray.init(sys.argv[1], log_to_driver=False)
print((_internal_kv_get("vesalius-test") or b"nothing").decode())
_internal_kv_put("vesalius-test", "kept")
"""


def test_a_killed_head_knows_again_what_it_was_told(served_homes: Callable[[], ServedHome], redis: str) -> None:
    home = served_homes()
    home.up("--redis", redis)
    status = home.ask("status")
    assert status["redis"] == redis
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": status["ray_token_file"]}

    def told() -> str:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _TELL, status["cluster_address"]],
            env={**home.environment, **access},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert told() == "nothing"
    os.kill(home.services()["ray"]["pid"], signal.SIGKILL)
    home.call("up")
    assert told() == "kept"
