"""Data sets: folder layouts, recipes, splits, ingest, the phantom and synthetic lesions.

A layout is one file in ``layouts/`` and one line in :data:`LAYOUTS`.
"""

from vesalius.platform.tables import TableEntry

LAYOUTS: dict[str, TableEntry] = {
    "bids": TableEntry(
        path="vesalius.datasets.layouts.bids:BidsLayout",
        summary="sub-XX[/ses-YY]/anat/*_<modality>.nii[.gz] with participants.tsv; masks from derivatives/",
    ),
    "dicom": TableEntry(
        path="vesalius.datasets.layouts.dicom:DicomLayout",
        summary="a folder a patient or study with DICOM series below it; the best series of each modality is taken",
    ),
    "manifest": TableEntry(
        path="vesalius.datasets.layouts.manifest:ManifestLayout",
        summary="a CSV file: subject_id, image or one column a modality, brain_mask, lesion_mask, split, group, ...",
    ),
    "phantom": TableEntry(
        path="vesalius.datasets.layouts.phantom:PhantomLayout",
        summary="generated heads with folded cortex and planted lesions; needs no data",
    ),
}
"""Every folder layout by the name that ``vesalius ingest`` knows it by."""
