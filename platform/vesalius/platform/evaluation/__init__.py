"""Figures of detection from counts, thresholds, and intervals over subjects."""

from vesalius.platform.evaluation.components import drop_small_components, mask_dice
from vesalius.platform.evaluation.figures import FIGURE_KEYS, Figures, evaluate
from vesalius.platform.evaluation.histogram import Histogram
from vesalius.platform.evaluation.images import ImageFigures, Kind, evaluate_images
from vesalius.platform.evaluation.intervals import (
    Interval,
    PairedResult,
    auroc_interval,
    bootstrap_intervals,
    paired_bootstrap,
)
from vesalius.platform.evaluation.marks import marked, whole
from vesalius.platform.evaluation.metrics import (
    BestDice,
    PooledFigure,
    auroc,
    average_precision,
    best_dice,
    dice_at,
    fpr_at_recall,
    image_auroc,
)
from vesalius.platform.evaluation.pairing import paired_image_auroc
from vesalius.platform.evaluation.ranking import (
    Curve,
    Detection,
    OperatingPoint,
    detection,
    operate,
    precision_recall_curve,
    roc_curve,
    youden_threshold,
)
from vesalius.platform.evaluation.readers import Agreement, agreement, fleiss_kappa
from vesalius.platform.evaluation.structures import (
    Structure,
    StructureFigures,
    StructureTask,
    evaluate_structures,
    structure_cases,
    structure_maxima,
)
from vesalius.platform.evaluation.thresholds import Policy, Threshold, fit_threshold
from vesalius.platform.evaluation.voxels import (
    VOXEL_SETS,
    SubjectVoxels,
    VoxelSet,
    resampled_onto,
    subject_histogram,
    subject_histograms,
    subject_voxels,
)

__all__ = [
    "FIGURE_KEYS",
    "VOXEL_SETS",
    "Agreement",
    "BestDice",
    "Curve",
    "Detection",
    "Figures",
    "Histogram",
    "ImageFigures",
    "Interval",
    "Kind",
    "OperatingPoint",
    "PairedResult",
    "Policy",
    "PooledFigure",
    "Structure",
    "StructureFigures",
    "StructureTask",
    "SubjectVoxels",
    "Threshold",
    "VoxelSet",
    "agreement",
    "auroc",
    "auroc_interval",
    "average_precision",
    "best_dice",
    "bootstrap_intervals",
    "detection",
    "dice_at",
    "drop_small_components",
    "evaluate",
    "evaluate_images",
    "evaluate_structures",
    "fit_threshold",
    "fleiss_kappa",
    "fpr_at_recall",
    "image_auroc",
    "marked",
    "mask_dice",
    "operate",
    "paired_bootstrap",
    "paired_image_auroc",
    "precision_recall_curve",
    "resampled_onto",
    "roc_curve",
    "structure_cases",
    "structure_maxima",
    "subject_histogram",
    "subject_histograms",
    "subject_voxels",
    "whole",
    "youden_threshold",
]
