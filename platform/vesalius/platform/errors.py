"""Everything Vesalius raises on purpose.

::

    VesaliusError                     one sentence: what is wrong, what was expected, what to do
    ├── InputError                    what the user gave cannot be used            (exit code 2)
    │   ├── VolumeError               a file: unreadable, truncated, 4D, not finite, empty
    │   ├── SettingError              a setting: unknown, of the wrong type, out of range
    │   ├── CohortError               subjects: duplicate, ill-named, in the wrong split
    │   ├── StoreError                a cohort store: not one, damaged, locked, of another recipe
    │   │   └── UnreachableError      its URL: no credentials, no bucket, no package, no answer
    │   ├── RunError                  a run: missing, unfinished, without the checkpoint asked for
    │   │   └── UnansweredError       where it is tracked: no answer, or not one that can be used
    │   ├── ModelError                a model: missing, damaged, of another cohort
    │   ├── StudyError                a study: missing, of another cohort or other spaces, its storage out of reach
    │   ├── ServiceError              a local service: does not start, does not answer, its port is taken
    │   ├── JobError                  a job: missing, its cluster out of reach or of other versions
    │   │   ├── JobRefusedError       its cluster has it not, and says so
    │   │   └── ClusterGoneError      nothing takes connections where its cluster was
    │   └── DiskSpaceError            not enough room for what is about to be written
    ├── PartialIngestError            some subjects failed; the others are committed  (exit code 2)
    ├── PartialScoreError             some volumes could not be scored; the others are kept    (exit code 2)
    ├── WorkerLostError               a worker process died, again and again         (exit code 1)
    ├── DivergenceError               a loss or gradient is not finite; names stage and step  (exit code 1)
    ├── RowsFailedError               some rows of a paper's table failed; the others stand  (exit code 1)
    └── NotPromotedError              the candidate did not beat the champion     (exit code 1)

The message is a sentence for the person at the other end. The command line prints it without a traceback
and ends with ``exit_code``.
"""

from __future__ import annotations

from typing import ClassVar


class VesaliusError(Exception):
    """Base of every error raised on purpose; ``exit_code`` is what the command line ends with."""

    exit_code: ClassVar[int] = 1


class InputError(VesaliusError):
    """What the user gave cannot be used."""

    exit_code = 2


class VolumeError(InputError):
    """A volume cannot be read or holds no usable image. The message names the file."""


class SettingError(InputError):
    """A setting is unknown, of the wrong type or out of range. The message names it."""


class CohortError(InputError):
    """Subjects are duplicated, ill-named, or in a split they may not be in. The message names them."""


class StoreError(InputError):
    """A folder is no cohort store, is damaged, is in use, or was prepared by another recipe."""


class UnreachableError(StoreError):
    """A store's URL cannot be used: no credentials, no bucket, no package, no answer. It says nothing of the store."""


class RunError(InputError):
    """A training run is missing, unfinished, or lacks the checkpoint asked for."""


class UnansweredError(RunError):
    """A tracking server gives no answer, or none that can be used. It says nothing of the run."""


class ModelError(InputError):
    """A model is missing, damaged, or was made for other data."""


class StudyError(InputError):
    """A study is missing, of another cohort or other spaces, or its storage cannot be reached."""


class ServiceError(InputError):
    """A local service cannot be started or does not answer, or its port is taken. The message names it."""


class JobError(InputError):
    """A job is missing or not in the state for this, or its cluster is out of reach or has other versions."""


class JobRefusedError(JobError):
    """A cluster answers that it does not do what it is asked to, so that nothing is left in doubt."""


class ClusterGoneError(JobError):
    """Nothing takes connections where a cluster takes jobs, or its head is known to have ended."""


class DiskSpaceError(InputError):
    """There is not enough room for what is about to be written. The message says how much is needed."""


class PartialIngestError(VesaliusError):
    """Some subjects could not be taken in. The others are committed; the message lists the failures."""

    exit_code = 2


class PartialScoreError(VesaliusError):
    """Some volumes could not be scored. The others are kept; ``failed`` says why, by name."""

    exit_code = 2

    def __init__(self, sentence: str, failed: dict[str, str]) -> None:
        super().__init__(sentence)
        self.failed = failed

    def __reduce__(self) -> tuple[type[PartialScoreError], tuple[str, dict[str, str]]]:
        return type(self), (str(self), self.failed)


class WorkerLostError(VesaliusError):
    """A worker process died each time a job was tried, or the cluster has no worker left."""


class DivergenceError(VesaliusError):
    """A loss or a gradient is not finite. The message names the stage and the step."""


class RowsFailedError(VesaliusError):
    """Some rows of a paper's table could not be reproduced. The others stand; the message lists the failures."""


class NotPromotedError(VesaliusError):
    """The candidate did not beat the champion. The message says by how much it fell short."""


def told(error: Exception) -> str:
    """Return an error as one line: its sentence, and before it its kind where it was not raised on purpose."""
    said = str(error) if isinstance(error, VesaliusError) else f"{type(error).__name__}: {error}"
    return " ".join(said.split())
