"""A cluster's Jobs API, with every failure in one sentence."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import time
from typing import TYPE_CHECKING, Any

from vesalius.infra.jobs.environment import check_ray
from vesalius.infra.services.state import PROBE
from vesalius.platform import own_runtime
from vesalius.platform.errors import ClusterGoneError, JobError, JobRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

_POLL_SECONDS = 0.3
ANSWER_SECONDS = 60.0
"""How long a cluster may send nothing before it counts as one that does not answer: Ray's own client waits for ever."""

_SENDING_SECONDS = 600.0
"""How long a wheel may take to be sent."""

_QUIET_SECONDS = 120.0
"""After which the log of a job that writes nothing is asked for anew: its head may have stopped meanwhile."""

_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


class Cluster:
    """A cluster that takes jobs.

    Attributes:
        address: of its Jobs API.
        session: Ray's name for its life; after a restart it is another.
    """

    def __init__(
        self,
        address: str,
        *,
        headers: Mapping[str, str] | None = None,
        check_version: bool = True,
        seconds: float = ANSWER_SECONDS,
    ) -> None:
        """Reach a cluster.

        Args:
            address: of its dashboard.
            headers: that let one in; None leaves that to Ray, which reads RAY_AUTH_MODE and the token it names.
            check_version: refuse another Ray than ours.
            seconds: that it may send nothing while it is asked something.

        Raises:
            ClusterGoneError: nothing takes connections there.
            JobError: it does not answer, lets nobody in without its token, or its Ray is of another version.
        """
        self.address = address.rstrip("/")
        self._seconds = seconds
        if not re.fullmatch(r"https?://[^/@\s]+(/[^@\s]*)?", self.address):
            raise JobError(
                "--address names no Jobs API: expected http://HOST:PORT of a Ray dashboard, such as "
                "http://127.0.0.1:8265, without a password (Ray's token goes into RAY_AUTH_TOKEN_PATH)"
            )
        own_runtime.forget_token()
        with self._answering():
            with _unset(_ADDRESSES):  # Ray lets them take the place of the address that it is given
                self._client: Any = _client(self.address, headers, seconds)
            for name in ("dashboard_sdk", "job.sdk"):  # that a file is sent and a connection closed is no news
                logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
            answer = self._client._do_request("GET", "/api/version").json()
        self.session = str(answer.get("session_name", ""))
        if check_version:
            check_ray(str(answer["ray_version"]), self.address)

    def submit(
        self,
        submission: str,
        entrypoint: str,
        *,
        wheel: Path,
        environment: Mapping[str, str],
        metadata: Mapping[str, str],
        cpus: float,
        gpus: float,
    ) -> None:
        """Submit a job that computes with a wheel's code.

        Raises:
            JobRefusedError: the cluster will not.
            JobError: it does not answer, or has failed at it; whether the job is there is not known.
        """
        with self._answering():
            self._client.submit_job(
                entrypoint=entrypoint,
                submission_id=submission,
                runtime_env={"py_modules": [str(wheel)], "env_vars": dict(environment)},
                metadata=dict(metadata),
                entrypoint_num_cpus=cpus or None,
                entrypoint_num_gpus=gpus or None,
            )

    def jobs(self) -> dict[str, Any]:
        """Return Ray's details of all jobs by their submission.

        Raises:
            JobError: the cluster does not answer.
        """
        with self._answering():
            return {one.submission_id: one for one in self._client.list_jobs() if one.submission_id}

    def job(self, submission: str) -> Any | None:
        """Return Ray's details of a job, or None where it knows none of that name.

        Raises:
            JobError: the cluster does not answer.
        """
        with self._answering():
            try:
                return self._client.get_job_info(submission)
            except RuntimeError as error:
                if re.search(r"status code 404\b", str(error)):
                    return None
                raise

    def log(self, submission: str) -> str:
        """Return what a job has written so far.

        Raises:
            JobError: the cluster does not answer, or does not know it.
        """
        with self._answering():
            return str(self._client.get_job_logs(submission))

    def stop(self, submission: str) -> None:
        """Ask a job to end.

        Raises:
            JobError: the cluster does not answer, or does not know it.
        """
        with self._answering():
            self._client.stop_job(submission)

    def follow(self, submission: str, write: Callable[[str], None]) -> Any:
        """Hand on what a job writes, as it is written, until it has ended; return Ray's details of it.

        Raises:
            JobError: the cluster does not answer any more, or has forgotten the job.
        """
        written = 0
        while True:
            found = self.job(submission)
            if found is None:
                raise JobError(f"the cluster at {self.address} does not know this job any more: was it restarted?")
            if found.status.is_terminal():
                # The whole of it is there now; a connection that broke in between has lost nothing.
                write(self.log(submission)[written:])
                return found
            if str(found.status.value) == "RUNNING":
                # A new connection begins with the first line.
                skip = written
                with contextlib.suppress(JobError), self._answering():  # the next look says what is wrong
                    for text in _tail(self._client, submission):
                        left = text[skip:]
                        skip = max(0, skip - len(text))
                        written += len(left)
                        write(left)
            time.sleep(_POLL_SECONDS)

    def run_briefly(self, entrypoint: str, seconds: float) -> str:
        """Run a command on the head node, forget it there and return what it wrote.

        Raises:
            JobError: it has not ended in time.
        """
        submission = f"{PROBE}-{secrets.token_hex(4)}"
        with self._answering():
            self._client.submit_job(entrypoint=entrypoint, submission_id=submission)
            deadline = time.monotonic() + seconds
            while not self._client.get_job_status(submission).is_terminal():
                if time.monotonic() > deadline:
                    with contextlib.suppress(RuntimeError):
                        self._client.stop_job(submission)
                    raise JobError(
                        f"the cluster at {self.address} has not run a command of a second for {seconds:.0f} s: is its "
                        "head node well, and has it room?"
                    )
                time.sleep(_POLL_SECONDS)
            log = str(self._client.get_job_logs(submission))
            with contextlib.suppress(RuntimeError):
                self._client.delete_job(submission)
        return log

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        import requests

        try:
            yield
        except (ConnectionError, requests.exceptions.RequestException) as error:
            raise self._unanswered(error) from None
        except RuntimeError as error:
            if type(error) is not RuntimeError:
                raise
            said = " ".join(str(error).split())[:300]
            kind = JobRefusedError if re.search(r"status code 4\d\d\b", said) else JobError
            raise kind(f"the cluster at {self.address} answers that it will not: {said}") from None
        except Exception as error:  # what is neither Ray's word nor an answer that is none of Ray's goes on
            from ray.exceptions import AuthenticationError, RayError

            if isinstance(error, AuthenticationError):
                raise JobRefusedError(
                    f"the cluster at {self.address} lets nobody in without its token: set RAY_AUTH_MODE=token and "
                    "RAY_AUTH_TOKEN_PATH to the file that holds it"
                ) from None
            if not isinstance(error, RayError | ValueError | KeyError):
                raise
            said = " ".join(str(error).split())[:300]
            raise JobError(
                f"what answers at {self.address} does not answer as a Ray dashboard does ({said}): name one with "
                "--address"
            ) from None

    def _unanswered(self, error: Exception) -> JobError:
        """Return the error that says why no answer came; urllib3's own texts are about pools and retries."""
        from requests import exceptions

        # Ray raises Python's own in the place of what it has met.
        met = error if isinstance(error, exceptions.RequestException) else error.__context__ or error
        advice = "start it (here: `vesalius up`), or name another with --address"
        if isinstance(met, exceptions.ReadTimeout) or "Read timed out" in str(met):
            return JobError(
                f"the cluster at {self.address} has sent no answer for {self._seconds:.0f} s: is its head node well?"
            )
        response = getattr(met, "response", None)
        if response is not None:
            return JobError(
                f"no Ray cluster takes jobs at {self.address} (it answers {response.status_code}): {advice}"
            )
        if isinstance(met, exceptions.InvalidJSONError):
            return JobError(
                f"what answers at {self.address} does not answer as a Ray dashboard does (what it sends is no JSON): "
                "name one with --address"
            )
        if isinstance(met, exceptions.SSLError | exceptions.ProxyError) or not isinstance(
            met, ConnectionError | exceptions.ConnectionError
        ):
            return JobError(f"no Ray cluster takes jobs at {self.address} ({type(met).__name__}): {advice}")
        was_there = "aborted" in str(met)
        if was_there and "timed out" in str(met):  # in the middle of what was sent
            return JobError(f"the cluster at {self.address} takes no more of what it is sent: is its head node well?")
        why = "it closed the connection" if was_there else "nothing answers"
        return ClusterGoneError(f"no Ray cluster takes jobs at {self.address} ({why}): {advice}")


def _client(address: str, headers: Mapping[str, str] | None, seconds: float) -> Any:
    """Return Ray's client, which gives up where an answer stays away."""
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):  # type: ignore[misc]  # Ray has no types
        def _do_request(self, *arguments: Any, **options: Any) -> Any:
            # The first limit is for the connection and for all that is sent, the second for each silence after that.
            limits = (max(seconds, _SENDING_SECONDS) if options.get("data") else seconds, seconds)
            return super()._do_request(*arguments, **{"timeout": limits, **options})

    return Client(address, headers=dict(headers) if headers else None)


@contextlib.contextmanager
def _unset(names: Sequence[str]) -> Iterator[None]:
    """Take variables out of the environment for a moment."""
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _tail(client: Any, submission: str) -> Iterator[str]:
    """Yield what a job writes until the connection ends, or has brought nothing for a long while."""
    import aiohttp

    texts = client.tail_job_logs(submission)
    with asyncio.Runner() as runner:
        try:
            while True:
                try:
                    yield runner.run(asyncio.wait_for(anext(texts), _QUIET_SECONDS))
                except (StopAsyncIteration, TimeoutError, aiohttp.ClientError):
                    return
        finally:
            with contextlib.suppress(RuntimeError):
                runner.run(texts.aclose())
