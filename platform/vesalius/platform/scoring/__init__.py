"""A method over a split: anomaly maps in Zarr, resumable; a map in the source file's own space.

::

    SCORES/zarr.json             root group; its attributes say what was scored by which model
    SCORES/subjects/<id>/        a group: map (D, H, W), restoration (C, D, H, W), extras by name; all float16
    SCORES/manifest.json         every subject's record; written last: without it the scoring is unfinished
    SCORES/.partial/             what is being written
"""

from vesalius.platform.scoring.maps import ScoreStore
from vesalius.platform.scoring.native import native_labels, native_map, write_native
from vesalius.platform.scoring.records import ScoreInfo, ScoreRecord
from vesalius.platform.scoring.split import score_store
from vesalius.platform.scoring.volumes import score_volume, score_volumes, volume_of

__all__ = [
    "ScoreInfo",
    "ScoreRecord",
    "ScoreStore",
    "native_labels",
    "native_map",
    "score_store",
    "score_volume",
    "score_volumes",
    "volume_of",
    "write_native",
]
