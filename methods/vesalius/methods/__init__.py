"""The methods: one file or folder each, and one line in the table.

A method imports torch and the contracts, nothing else: no Ray, no MLflow, no file.
"""

from __future__ import annotations

from vesalius.platform.tables import TableEntry

METHODS: dict[str, TableEntry] = {
    "implicit_field": TableEntry(
        path="vesalius.methods.implicit_field:ImplicitField",
        summary="3D implicit-field auto-decoder over intensity classes (Naval Marimont and Tarroni 2021)",
    ),
    "implicit_field_2d": TableEntry(
        path="vesalius.methods.implicit_field_2d:ImplicitField2D",
        summary="2D implicit-field auto-decoder, a code per slice (Naval Marimont and Tarroni 2021)",
    ),
    "healthy_atlas": TableEntry(
        path="vesalius.methods.healthy_atlas:HealthyAtlas",
        summary="Baseline: distance from the voxel-wise healthy mean in voxel-wise deviations",
    ),
    "intensity_threshold": TableEntry(
        path="vesalius.methods.intensity_threshold:IntensityThreshold",
        summary="Baseline: distance of the intensity from the healthy brain's mean, wherever the voxel lies",
    ),
}
