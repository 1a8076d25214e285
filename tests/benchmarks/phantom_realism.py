"""Is the phantom as variable as real brains? The same figures of a folder of T1w brains and of as many phantoms.

    python tests/benchmarks/phantom_realism.py [--cache FOLDER] [--json FILE] [--num-phantoms 40] [--picture FILE]

Real data (skull-stripped T1w, BIDS) is looked for at ``$VESALIUS_DATA/ds002748`` or ``../shared/data/ds002748``;
each brain is registered to MNI152 by an affine transform and read on the phantom's default grid, after smoothing
to its voxel size. Both cohorts then go through :func:`measure`. Nothing here detects anything: the figures say how
healthy brains differ, and the tables in docs/decisions/0003-phantom.md are this script's output: the variation, how
far lesion intensities lie within healthy ones, and what a volume costs against five Gaussian filters of its size.
"""

from __future__ import annotations

import argparse
import importlib.resources
import itertools
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage
from scipy.cluster.vq import kmeans2

from vesalius.datasets.phantom import LesionSettings, PhantomSettings, make_phantom, phantom_cohort

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

CLASSES = ("csf", "grey matter", "white matter")


def measure(images: NDArray[np.float32], spacing_mm: float) -> dict[str, float]:
    """Return the figures of a cohort of skull-stripped, aligned volumes (S, D, H, W), background 0."""
    brains = images > 0
    scaled = np.stack([image / np.percentile(image[brain], 98) for image, brain in zip(images, brains, strict=True)])
    mean = scaled.mean(0)
    inside = brains.mean(0) >= 0.5
    level = float(mean[inside].mean())
    deviation = scaled.std(0)
    figures: dict[str, float] = {}
    for name, quantile in (("lower quartile", 25), ("median", 50), ("upper quartile", 75)):
        figures[f"voxel deviation / mean, {name}"] = float(np.percentile(deviation[inside], quantile)) / level
    for sigma_mm in (4.0, 8.0):
        smooth = np.stack([ndimage.gaussian_filter(image, sigma_mm / spacing_mm) for image in scaled])
        figures[f"the same after smoothing by {sigma_mm:g} mm, median"] = (
            float(np.median(smooth.std(0)[inside])) / level
        )
    tissues, centers, deviations = zip(
        *(_tissues(image, brain) for image, brain in zip(scaled, brains, strict=True)), strict=True
    )
    consensus = np.stack([np.mean([t == number for t in tissues], axis=0) for number in range(3)])
    winner = np.where(inside, consensus.argmax(0), -1)
    for number, name in enumerate(CLASSES):
        where = winner == number
        figures[f"voxel deviation / mean where most have {name}"] = float(np.median(deviation[where])) / level
    figures["overlap of brain outlines (Dice)"] = _overlap(list(brains))
    for number, name in enumerate(CLASSES):
        figures[f"overlap of {name} (Dice)"] = _overlap([t == number for t in tissues])
    total = [brain.sum() for brain in brains]
    for number, name in enumerate(CLASSES):
        share = np.array([(t == number).sum() for t in tissues]) / total
        figures[f"share of {name}, mean"] = float(share.mean())
        figures[f"share of {name}, deviation"] = float(share.std())
    for number, name in enumerate(CLASSES):
        figures[f"intensity of {name}, mean"] = float(np.mean([c[number] for c in centers]))
        figures[f"intensity of {name}, deviation over subjects"] = float(np.std([c[number] for c in centers]))
        figures[f"intensity of {name}, deviation within"] = float(np.mean([d[number] for d in deviations]))
    figures["deviation within a brain"] = float(
        np.mean([image[brain].std() for image, brain in zip(scaled, brains, strict=True)])
    )
    deep = ndimage.binary_erosion(inside, iterations=max(1, round(6 / spacing_mm)))
    detail = [(image - ndimage.gaussian_filter(image, 6 / spacing_mm))[deep].std() for image in scaled]
    figures["detail finer than 6 mm, deviation"] = float(np.mean(detail))
    others = [
        np.corrcoef(image[deep], ((mean * len(scaled) - image) / (len(scaled) - 1))[deep])[0, 1] for image in scaled
    ]
    figures["correlation with the mean of the others"] = float(np.mean(others))
    left = scaled[:, : scaled.shape[1] // 2][:, ::-1]
    right = scaled[:, (scaled.shape[1] + 1) // 2 :]
    both = deep[: deep.shape[0] // 2][::-1] & deep[(deep.shape[0] + 1) // 2 :]
    residual_left, residual_right = left - left.mean(0), right - right.mean(0)
    figures["correlation of the hemispheres' departures from the mean"] = float(
        np.mean([np.corrcoef(a[both], b[both])[0, 1] for a, b in zip(residual_left, residual_right, strict=True)])
    )
    noise = [_noise(image, tissue == 2) for image, tissue in zip(scaled, tissues, strict=True)]
    figures["neighbour difference in white matter"] = float(np.mean(noise))
    return figures


def _tissues(image: NDArray[np.float32], brain: NDArray[np.bool_]) -> tuple[NDArray[np.int8], list[float], list[float]]:
    values = image[brain].astype(np.float64)
    start = np.percentile(values, [8, 45, 85])
    centers, nearest = kmeans2(values, start, minit="matrix", iter=30)
    order = np.argsort(centers)
    rank = np.argsort(order)
    tissue = np.full(image.shape, -1, np.int8)
    tissue[brain] = rank[nearest]
    return tissue, [float(c) for c in centers[order]], [float(values[nearest == n].std()) for n in order]


def _overlap(masks: list[NDArray[np.bool_]]) -> float:
    flat = np.stack([mask.ravel() for mask in masks]).astype(np.float32)
    both = flat @ flat.T
    size = np.diag(both)
    return float(
        np.median([2 * both[a, b] / (size[a] + size[b]) for a, b in itertools.combinations(range(len(flat)), 2)])
    )


def _noise(image: NDArray[np.float32], white: NDArray[np.bool_]) -> float:
    """Deviation of the difference of neighbours deep in the white matter, by the median, divided by sqrt(2)."""
    deep = ndimage.binary_erosion(white)
    both = deep[1:] & deep[:-1]
    difference = (image[1:] - image[:-1])[both]
    return (
        float(1.4826 * np.median(np.abs(difference - np.median(difference))) / np.sqrt(2))
        if both.any()
        else float("nan")
    )


def real_brains(folder: Path, settings: PhantomSettings, cache: Path | None) -> NDArray[np.float32]:
    """Return (S, D, H, W): every T1w under ``folder``, registered to MNI152 and read on the phantom's grid."""
    if cache is not None and (cache / "real.npz").is_file():
        with np.load(cache / "real.npz") as archive:
            return np.asarray(archive["image"])
    import SimpleITK as sitk

    template = importlib.resources.files("nilearn") / "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    with importlib.resources.as_file(template) as path:
        fixed = _downsampled(sitk.ReadImage(str(path), sitk.sitkFloat32), 3.0)
    spacing = settings.spacing_mm
    first = [c - (n - 1) / 2 * s for c, n, s in zip(settings.center_mm, settings.shape, spacing, strict=True)]
    grid = sitk.Image(list(settings.shape), sitk.sitkFloat32)
    grid.SetSpacing(spacing)
    grid.SetDirection([-1, 0, 0, 0, -1, 0, 0, 0, 1])  # RAS order of voxels in ITK's LPS world
    grid.SetOrigin([-first[0], -first[1], first[2]])
    brains = []
    for file in sorted(folder.glob("sub-*/anat/*_T1w.nii.gz")):
        moving = sitk.ReadImage(str(file), sitk.sitkFloat32)
        small = _downsampled(moving, 3.0)
        start = sitk.CenteredTransformInitializer(
            sitk.Cast(fixed > 1, sitk.sitkFloat32),
            sitk.Cast(small > 1e-3, sitk.sitkFloat32),
            sitk.AffineTransform(3),
            sitk.CenteredTransformInitializerFilter.MOMENTS,
        )
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(48)
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(0.5)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsGradientDescent(1.0, 300, 1e-7, 15)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([2, 1])
        method.SetSmoothingSigmasPerLevel([1, 0])
        method.SetInitialTransform(start, inPlace=False)
        transform = method.Execute(fixed, small)
        mask = sitk.Resample(sitk.Cast(moving > 0, sitk.sitkFloat32), grid, transform, sitk.sitkLinear, 0.0)
        image = sitk.Resample(
            sitk.SmoothingRecursiveGaussian(moving, 0.4 * float(np.mean(spacing))),
            grid,
            transform,
            sitk.sitkLinear,
            0.0,
        )
        brain = sitk.GetArrayFromImage(mask) > 0.5
        brains.append((np.maximum(sitk.GetArrayFromImage(image), 1e-3) * brain).transpose(2, 1, 0))
        print(f"{file.name}: mutual information {-method.GetMetricValue():.3f}", flush=True)
    result = np.stack(brains).astype(np.float32)
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(cache / "real.npz", image=result)
    return result


def _downsampled(image: Any, spacing_mm: float) -> Any:
    import SimpleITK as sitk

    size = [int(n * s / spacing_mm) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    smooth = sitk.SmoothingRecursiveGaussian(image, 0.4 * spacing_mm)
    where = (image.GetOrigin(), [spacing_mm] * 3, image.GetDirection())
    return sitk.Resample(smooth, size, sitk.Transform(), sitk.sitkLinear, *where, 0.0)


def phantoms(num: int, settings: PhantomSettings, first_seed: int = 0) -> NDArray[np.float32]:
    """Return (S, D, H, W): healthy phantoms, a floor under the brain's noise so that its mask stays its mask."""
    made = (make_phantom(first_seed + number, settings) for number in range(num))
    return np.stack([np.maximum(p.image[0], 1e-3) * p.brain for p in made])


def lesion_overlap(settings: PhantomSettings, num: int = 36, seed: int = 5) -> dict[str, dict[str, float]]:
    """Return, by kind of lesion, how far its intensities are also those of healthy tissue of the same subject."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for case in phantom_cohort(0, 0, 0, num, settings, seed):
        if not case.lesions:
            continue
        subject = case.make()
        inside = subject.image[0][subject.lesion]
        healthy = subject.image[0][subject.brain & ~subject.lesion]
        low, high = np.percentile(healthy, [1, 99])
        least, most = (float(value) for value in np.percentile(healthy, [0.1, 99.9]))
        edges = np.concatenate([[-np.inf], np.linspace(least, most, 40), [np.inf]])
        shares = [np.histogram(values, edges)[0] / len(values) for values in (inside, healthy)]
        common = float(np.minimum(*shares).sum())
        rows.setdefault(case.group, []).append((float(((inside > low) & (inside < high)).mean()), common))
    return {
        group: {
            "lesions": len(values),
            "voxels within the 1st to 99th percentile of healthy tissue": float(np.mean([a for a, _ in values])),
            "common area of the two histograms": float(np.mean([b for _, b in values])),
        }
        for group, values in rows.items()
    }


def speed(settings: PhantomSettings, num: int = 8) -> dict[str, float]:
    """Return CPU seconds of a volume (the fastest of ``num``) and the ratio to five Gaussian filters of its size."""

    def fastest(work: Callable[[int], object]) -> float:
        seconds = []
        for number in range(num):
            start = time.process_time()
            work(number)
            seconds.append(time.process_time() - start)
        return min(seconds)

    noise = np.random.default_rng(0).standard_normal(settings.shape, dtype=np.float32)

    def yardstick(number: int) -> None:
        for sigma in range(1, 6):
            ndimage.gaussian_filter(noise, sigma)

    make_phantom(0, settings)  # what all subjects share is made once
    own = fastest(lambda number: make_phantom(number, settings))
    return {"seconds": own, "ratio": own / fastest(yardstick)}


def picture(path: Path) -> None:
    """Draw three healthy subjects, and one with a lesion in every contrast."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shape = (128, 128, 128)
    healthy = [make_phantom(seed, PhantomSettings(shape=shape)) for seed in (1, 2, 3)]
    whole = PhantomSettings(
        shape=shape, modalities=("T1w", "T2w", "FLAIR", "CT"), skull_stripped=False, box_mm=(208.0, 240.0, 216.0)
    )
    ill = make_phantom(4, whole, lesions=[LesionSettings(size_mm=32, center_mm=(-28.0, -22.0, 26.0))])
    figure, axes = plt.subplots(3, 6, figsize=(11, 7.4), facecolor="black")
    i, j, k = slice(10, 118), slice(2, 126), slice(6, 116)
    for row, subject in zip(axes, healthy, strict=True):
        image = subject.image[0]
        views = (image[i, j, 52], image[i, j, 64], image[i, j, 80], image[i, 62, k], image[50, j, k])
        for cell, view in zip(row, views, strict=False):
            cell.imshow(view.T, origin="lower", cmap="gray", vmin=0, vmax=1.15)
        labels = np.ma.masked_equal(subject.structures[i, j, 64].T, 0)
        row[5].imshow(labels, origin="lower", cmap="tab20", vmin=1, vmax=20)
    for cell in axes.flat:
        cell.axis("off")
    figure.subplots_adjust(0.005, 0.37, 0.995, 0.995, 0.02, 0.02)
    level = int(ill.lesion.sum((0, 1)).argmax())
    for number, modality in enumerate(ill.channels):
        view = ill.channel(modality)[:, 16:-8, level]
        high = 75 if modality == "CT" else float(np.percentile(ill.channel(modality)[ill.brain], 99.8))
        cell = figure.add_axes((0.005 + number * 0.2485, 0.005, 0.245, 0.36))
        cell.imshow(view.T, origin="lower", cmap="gray", vmin=0, vmax=high)
        cell.contour(ill.lesion[:, 16:-8, level].T, [0.5], colors="tab:red", linewidths=0.8)
        cell.text(0.03, 0.92, modality, color="white", transform=cell.transAxes)
        cell.axis("off")
    figure.savefig(path, dpi=66, facecolor="black", pil_kwargs={"optimize": True})


def main() -> None:
    """Print the table; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="folder that keeps the registered brains")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--num-phantoms", type=int, default=40)
    parser.add_argument("--picture", type=Path, help="draw some phantoms here and stop")
    arguments = parser.parse_args()
    if arguments.picture is not None:
        picture(arguments.picture)
        return
    data = Path(os.environ.get("VESALIUS_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data") / "ds002748"
    settings = PhantomSettings()
    columns = {"phantom": measure(phantoms(arguments.num_phantoms, settings), settings.spacing_mm[0])}
    if data.is_dir():
        columns["real"] = measure(real_brains(data, settings, arguments.cache), settings.spacing_mm[0])
    else:
        print(f"no real brains at {data}: set VESALIUS_DATA to compare")
    names = [name for name in ("real", "phantom") if name in columns]
    print("| figure | " + " | ".join(names) + " |\n|---" + "|---" * len(names) + "|")
    for figure in columns["phantom"]:
        print(f"| {figure} | " + " | ".join(f"{columns[name][figure]:.3f}" for name in names) + " |")
    overlap = lesion_overlap(settings)
    for group, row in overlap.items():
        print(f"{group} lesions: " + ", ".join(f"{name} {value:.2f}" for name, value in row.items()))
    cost = speed(settings)
    print(f"a {settings.shape} volume: {cost['seconds']:.3f} CPU seconds, {cost['ratio']:.1f} x five Gaussian filters")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({**columns, "lesions": overlap, "speed": cost}, indent=2))


if __name__ == "__main__":
    main()
