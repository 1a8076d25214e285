"""The cohort store: a Zarr v3 group a subject, and a manifest, written last, that is the commit.

::

    STORE/zarr.json            root group
    STORE/manifest.json        recipe, channels, every committed subject's record and checksum
    STORE/subjects/<id>/       an OME-Zarr image: image (C, D, H, W), labels/<role>/0 (D, H, W) for brain, head, lesion,
                               structures
    STORE/.partial/            what is being written; cleared by the next writer
    STORE/.lock                held by the one writer
"""

from vesalius.platform.store.arrays import ChunkSettings
from vesalius.platform.store.checking import Problem, check_store, find_problems
from vesalius.platform.store.cohort import CohortStore
from vesalius.platform.store.creation import holds_nothing
from vesalius.platform.store.place import Place, place_of
from vesalius.platform.store.records import ArrayFacts, SourceFacts, SubjectArrays, SubjectRecord, check_subject_id
from vesalius.platform.store.remote import RemotePath
from vesalius.platform.store.space import require_space, space_errors

__all__ = [
    "ArrayFacts",
    "ChunkSettings",
    "CohortStore",
    "Place",
    "Problem",
    "RemotePath",
    "SourceFacts",
    "SubjectArrays",
    "SubjectRecord",
    "check_store",
    "check_subject_id",
    "find_problems",
    "holds_nothing",
    "place_of",
    "require_space",
    "space_errors",
]
