"""Local services: PostgreSQL, MLflow, a Ray head and optuna-dashboard, started and stopped together for one home.

::

    state.py        what is kept of them on disk
    processes.py    processes that outlive their starter, found again by more than a number
    ports.py        ports that are liked, free or taken
    addresses.py    loopback or not
    asking.py       over HTTP, past any proxy
    credentials.py  secrets in files of mode 0600
    database.py     PostgreSQL and what is kept in it
    redis.py        where the head keeps what it knows, if anywhere
    kinds.py        how each is started and asked
    lifecycle.py    up, down
    inspection.py   status
    joining.py      how the verbs come to use them
"""

from vesalius.infra.services.joining import JOB, JOB_SECONDS, VARIABLE, jobs_access, join, join_tracking, study_storage

__all__ = ["JOB", "JOB_SECONDS", "VARIABLE", "jobs_access", "join", "join_tracking", "study_storage"]
