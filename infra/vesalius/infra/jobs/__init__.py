"""Jobs: verbs that run on a Ray cluster, submitted from here with the code that is here.

::

    command.py      what is to run, read and checked by the command line's own parser
    wheel.py        the code that runs here, packed
    environment.py  whether the cluster has the same versions and sees the same folders
    cluster.py      Ray's Jobs API, its failures in sentences
    records.py      what is kept of a job on this side
    submission.py   submit, stop, submit again
    outcome.py      what a job came to
    driver.py       what runs on the cluster
"""
