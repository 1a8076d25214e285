"""A model as MLflow keeps it: code by path, tensors and JSON as artefacts, a signature, pinned requirements."""

from __future__ import annotations

import base64
import importlib.metadata
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.platform.errors import ModelError
from vesalius.platform.models import CARD_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vesalius.platform.models import ModelCard

ARTIFACT_FOLDER = "artifacts/model"
"""Where the two files of a model stand inside the MLflow model."""

_CODE = Path(__file__).parents[1] / "pyfunc_model.py"
_REQUIRED = ("vesalius", "mlflow", "torch", "numpy", "safetensors", "pydantic")
_PICKLES = frozenset({".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"})


def pack_brain(brain_NDHW: NDArray[np.bool_]) -> str:
    """Return brain masks (N, D, H, W) as the text that a served model's ``brain`` parameter takes."""
    return base64.b64encode(np.packbits(brain_NDHW).tobytes()).decode()


def pack(model: Path, card: ModelCard, target: Path, methods: str) -> None:
    """Write the MLflow model.

    Args:
        model: a model's folder; of it, only the two files of a model are taken.
        card: its card.
        target: a folder that is made.
        methods: where the loader finds the methods' table, ``package.module:NAME``.
    """
    chosen = target.parent / Path(ARTIFACT_FOLDER).name
    chosen.mkdir()
    for name in (WEIGHTS_FILE, CARD_FILE):
        shutil.copyfile(model / name, chosen / name)
    with warnings.catch_warnings():
        # MLflow warns of its own type hints when it is imported.
        warnings.simplefilter("ignore")
        from mlflow.pyfunc import save_model

        save_model(
            path=str(target),
            python_model=str(_CODE),
            artifacts={"model": str(chosen)},
            signature=signature(len(card.cohort.channels)),
            pip_requirements=requirements(),
            model_config={"methods": methods, "device": "cpu"},
            metadata={"method": card.method, "channels": list(card.cohort.channels), "digest": card.digest},
        )
    pickles = [path.name for path in target.rglob("*") if path.suffix in _PICKLES]
    if pickles:
        raise ModelError(f"MLflow wrote {pickles[0]} into the model, which is refused: nothing may need unpickling")


def signature(num_channels: int) -> Any:
    """Return the ``ModelSignature``: float32 volumes (N, C, D, H, W) in, maps and image scores out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, num_channels, -1, -1, -1))]),
        outputs=Schema(
            [
                TensorSpec(np.dtype(np.float32), (-1, -1, -1, -1), name="map"),
                TensorSpec(np.dtype(np.float64), (-1,), name="image_score"),
            ]
        ),
        params=ParamSchema(
            [
                ParamSpec("effort", "string", "full"),
                ParamSpec("brain", "string", ""),
                ParamSpec("spacing_mm", "double", [], shape=(-1,)),
            ]
        ),
    )


def requirements() -> list[str]:
    """Return what a served model needs, pinned to what is installed.

    Said by us: MLflow would find out by loading the model in another process, which takes seconds.
    """
    # A build's own label ("+cpu") is known to no package index.
    versions = ((name, importlib.metadata.version(name).partition("+")[0]) for name in _REQUIRED)
    return [f"{name}=={version}" for name, version in versions]
