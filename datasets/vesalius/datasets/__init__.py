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
    "hcp": TableEntry(
        path="vesalius.datasets.layouts.hcp:HcpLayout",
        summary="Human Connectome Project: <id>/T1w/T{1,2}w_acpc_dc_restore_brain.nii.gz, healthy",
    ),
    "ixi": TableEntry(
        path="vesalius.datasets.layouts.ixi:IxiLayout",
        summary="IXI: IXI002-Guys-0828-T1.nii.gz, healthy, three hospitals as groups",
    ),
    "oasis1": TableEntry(
        path="vesalius.datasets.layouts.oasis1:Oasis1Layout",
        summary="OASIS-1: Analyze pairs in Talairach space, brain-masked; dementia as label",
    ),
    "brats": TableEntry(
        path="vesalius.datasets.layouts.brats:BratsLayout",
        summary="BraTS 2018 to 2025: four contrasts, tumour masks; every year's names and labels",
    ),
    "open_ms": TableEntry(
        path="vesalius.datasets.layouts.open_ms:OpenMsLayout",
        summary="Ljubljana MS database in MNI space: FLAIR, T1w, T1ce, T2w, consensus lesion masks",
    ),
    "cq500": TableEntry(
        path="vesalius.datasets.layouts.cq500:Cq500Layout",
        summary="CQ500 head CT: DICOM series and reads.csv; bleeds by hemisphere, fractures: two of three readers",
    ),
    "ct_ich": TableEntry(
        path="vesalius.datasets.layouts.ct_ich:CtIchLayout",
        summary="PhysioNet CT-ICH 1.3.1 head CT: bleed masks, kinds of bleed and fracture slice by slice",
    ),
    "phantom": TableEntry(
        path="vesalius.datasets.layouts.phantom:PhantomLayout",
        summary="generated heads with folded cortex and planted lesions; needs no data",
    ),
}
"""Every folder layout by the name that ``vesalius ingest`` knows it by."""
