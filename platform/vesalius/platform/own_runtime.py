"""The Ray runtime that this process has begun for itself, if any: whether it lives, and the token that guards it."""

from __future__ import annotations

import os
import secrets
import threading

_given: dict[str, str] = {}
"""What :func:`let_no_one_else_in` has put into the environment."""

lives = threading.Event()
"""Set while it lives: there is one a process."""


def let_no_one_else_in() -> None:
    """Give Ray a token that only this process and those it starts know, unless the environment says how it is guarded.

    Ray's own ports are open on every interface, whatever address it is given, and whoever reaches them may run code. A
    runtime of its own Ray guards by itself, with a token that it would write into the user's home and take for every
    cluster from then on.
    """
    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        _given["RAY_AUTH_TOKEN"] = os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def forget_token() -> None:
    """Take back the token of a runtime that has ended: Ray would offer it to the cluster that is reached now."""
    if lives.is_set():
        return
    token = _given.pop("RAY_AUTH_TOKEN", None)
    if token is None:
        return
    # Ray keeps both, and has no public way to look anew.
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # its stub lacks them

    if os.environ.get("RAY_AUTH_TOKEN") == token:  # else somebody has put another there since
        del os.environ["RAY_AUTH_TOKEN"]
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.pop("RAY_AUTH_MODE", None)  # set by Ray, for that runtime
    Config.initialize("")  # first: whoever finds the mode without a token ends the process
    AuthenticationTokenLoader.instance().reset_cache()
