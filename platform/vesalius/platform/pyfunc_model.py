"""What MLflow runs when it loads a registered model: a model from code, with tensors and JSON as its artefacts.

The file is handed to MLflow by path at registration and copied beside the model; nothing is pickled. It holds no
numbers of its own: :func:`vesalius.platform.models.load_model` reads the artefacts, so that

>>> mlflow.pyfunc.load_model("models:/NAME@champion").predict(image_NCDHW)  # doctest: +SKIP
{"map": (N, D, H, W) float32, "image_score": (N,) float64}

answers what the method itself answers, bit for bit. Vesalius' own commands do not come this way: they take the
tensors and the JSON from the registry and run no code from it.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from vesalius.platform.contracts import Volume
from vesalius.platform.errors import SettingError, VolumeError
from vesalius.platform.geometry import grid_affine
from vesalius.platform.models import load_model
from vesalius.platform.scoring import score_volume
from vesalius.platform.tables import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from vesalius.platform.contracts import Matrix4


class VesaliusModel(PythonModel):  # type: ignore[misc]  # MLflow's base class is untyped
    """A trained method behind MLflow's ``predict``."""

    def load_context(self, context: Any) -> None:
        """Read the model; the methods' table and the device come from MLflow's ``model_config``."""
        self._device = str(context.model_config["device"])
        methods = resolve(str(context.model_config["methods"]))
        self._method, self._card = load_model(Path(context.artifacts["model"]), methods, self._device)

    # MLflow reads these type hints when the class is made: a bare ndarray it leaves to the signature.
    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Score prepared volumes, each on its own.

        Args:
            context: MLflow's.
            model_input: (N, C, D, H, W) float32, prepared by the model's recipe.
            params: ``effort`` ("full" or "quick"); ``spacing_mm`` of the volumes, the cohort's where it is empty;
                ``brain``, the volumes' brain masks as :func:`vesalius.platform.registry.pack_brain` writes them,
                where it is empty every voxel that is not zero in all channels.

        Returns:
            ``map`` (N, D, H, W) float32 and ``image_score`` (N,) float64, higher is more anomalous.

        Raises:
            VolumeError: a voxel is not finite, or the mask is not of these volumes.
        """
        image_NCDHW = np.ascontiguousarray(model_input, dtype=np.float32)
        if not np.isfinite(image_NCDHW).all():
            raise VolumeError("the volumes hold NaN or infinite voxels: prepare them by the model's recipe")
        given = dict(params or {})
        effort = given.get("effort", "full")
        if effort not in ("full", "quick"):
            raise SettingError(f"effort is '{effort}': expected 'full' or 'quick'")
        brain_NDHW = _brain(given, image_NCDHW)
        spacing_mm = tuple(float(edge) for edge in given.get("spacing_mm", ())) or self._card.cohort.spacing_mm
        answers = [
            score_volume(self._method, self._volume(image, brain, spacing_mm), self._device, effort=effort)[0]
            for image, brain in zip(image_NCDHW, brain_NDHW, strict=True)
        ]
        return {
            "map": np.stack([answer.map.numpy() for answer in answers]),
            "image_score": np.array([answer.image_score for answer in answers], dtype=np.float64),
        }

    def _volume(self, image: NDArray[np.float32], brain: NDArray[np.bool_], spacing_mm: tuple[float, ...]) -> Volume:
        if len(spacing_mm) != 3 or min(spacing_mm) <= 0:
            raise VolumeError(f"spacing_mm is {list(spacing_mm)}: expected three edges of a voxel in mm")
        shape = image.shape[1:]
        cohort = self._card.cohort
        affine: Matrix4 = cohort.affine
        if shape != cohort.grid or spacing_mm != cohort.spacing_mm:
            # Every grid of a cohort shares the centre of its box.
            middle = (np.array(cohort.grid) - 1) / 2
            matrix = np.array(cohort.affine)
            placed = grid_affine(shape, spacing_mm, tuple(matrix[:3, :3] @ middle + matrix[:3, 3]))
            affine = cast("Matrix4", tuple(map(tuple, placed.tolist())))
        return Volume(
            subject_id="request",
            image=torch.from_numpy(image),
            brain=torch.from_numpy(brain),
            spacing_mm=(spacing_mm[0], spacing_mm[1], spacing_mm[2]),
            affine=affine,
        )


def _brain(params: Mapping[str, Any], image_NCDHW: NDArray[np.float32]) -> NDArray[np.bool_]:
    text = params.get("brain", "")
    if not text:
        return cast("NDArray[np.bool_]", (image_NCDHW != 0).any(axis=1))
    shape = (image_NCDHW.shape[0], *image_NCDHW.shape[2:])
    count = int(np.prod(shape))
    try:
        packed = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    except binascii.Error:
        packed = np.empty(0, dtype=np.uint8)
    if packed.size != -(-count // 8):
        raise VolumeError(f"the brain masks are not {count} packed bits in base64: write them with pack_brain")
    return np.unpackbits(packed, count=count).astype(np.bool_).reshape(shape)


set_model(VesaliusModel())
