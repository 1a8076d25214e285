"""A method over a split: anomaly maps in Zarr, resumable; a map in the source file's own space.

::

    SCORES/zarr.json                         root group; its attributes say what was scored by which model
    SCORES/subjects/<id>/                    an OME-Zarr image: map (D, H, W)
    SCORES/subjects/<id>/restoration/        an OME-Zarr image, where there is one: 0 (C, D, H, W)
    SCORES/subjects/<id>/extras/<name>/      an OME-Zarr image for each further map: 0 (D, H, W)
    SCORES/scores.json                       every subject's record; written last: without it the scoring is unfinished
    SCORES/.partial/                         what is being written

Values are float16's; in the files they are float32, which every reader of OME-Zarr opens.
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
