"""What several methods share: score maps and their windows, slices of volumes, stages that only count."""

from vesalius.methods.blocks.counting import one_pass
from vesalius.methods.blocks.maps import (
    BrainMapSettings,
    MapSettings,
    Window,
    average_pool,
    check_channels,
    erode,
    finish_map,
    image_score,
    median_pool,
    min_pool,
    smooth,
)
from vesalius.methods.blocks.slices import (
    SliceSettings,
    SliceStack,
    assemble,
    check_plane,
    crop_plane,
    pad_plane,
    padded_plane,
    take_slices,
)

__all__ = [
    "BrainMapSettings",
    "MapSettings",
    "SliceSettings",
    "SliceStack",
    "Window",
    "assemble",
    "average_pool",
    "check_channels",
    "check_plane",
    "crop_plane",
    "erode",
    "finish_map",
    "image_score",
    "median_pool",
    "min_pool",
    "one_pass",
    "pad_plane",
    "padded_plane",
    "smooth",
    "take_slices",
]
