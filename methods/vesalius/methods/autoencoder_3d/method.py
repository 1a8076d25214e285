"""The 3D autoencoder as the platform sees it: one stage and a score."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from vesalius.methods.autoencoder_3d.network import VolumeAutoencoder
from vesalius.methods.autoencoder_3d.settings import Autoencoder3DSettings, demo, fracture, tiny
from vesalius.methods.blocks import finish_map, image_score, score_in_portions
from vesalius.methods.blocks.variational import SELECTED
from vesalius.platform.contracts import Deviation, Method, MethodSettings, Score, Stage, WholeVolumes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from vesalius.platform.contracts import Batch, CohortFacts, Effort, Metrics, Update, Volume

DEVIATIONS = (
    Deviation(
        paper="the network is figure 8, which the text at hand lacks (appendix C)",
        here="the layers of the cited code of Baur et al. 2021 with a third axis, its 32 channels the width m",
        why="the paper says that it adapts this layout to volumes; how m enters is not in the text",
    ),
    Deviation(
        paper="the width and the code's length are not said (section 3.4)",
        here="m = 16, in the middle of the paper's 1 to 64, and 128 (network.width, network.latent_dim)",
        why="figure 3 tries all widths; 128 is Baur's",
    ),
    Deviation(
        paper="Baur's layers have biases, and TensorFlow's padding of even edges begins a voxel later",
        here="no bias before a normalisation; two voxels of zeros on either side",
        why="a normalisation takes a bias away again; the mirrored decoder then meets the encoder's grid",
    ),
    Deviation(
        paper="a pixel-wise l1 loss; sum or mean is not said (appendix C)",
        here="a mean over a volume's values",
        why="so the learning rate does not depend on the grid",
    ),
    Deviation(
        paper="batches of 4; what batch statistics are taken over is not said (section 4.1)",
        here="over groups of 4 volumes (group_size); network.norm = instance takes each volume alone",
        why="the result must not depend on the number of workers",
    ),
    Deviation(
        paper="filter and size are chosen for each of two tasks by their figures (section 3.4)",
        here="the erosion of 5 by default, the median of 5 as the preset fracture (map.min_pool, map.median_pool)",
        why="a model has one map; what is chosen here is chosen on the validation split",
    ),
    Deviation(
        paper="the error is judged within skull and hemispheres, by its maximum (section 4)",
        here="the volume's number is the maximum within the brain; structures are for the evaluation",
        why="a method is given the masks of brain and head and no structure",
    ),
    SELECTED,
)


class Autoencoder3D(Method):
    """Whole volumes through a dense bottleneck; score = |x - reconstruction|, then a filter (section 3.4).

    Attributes:
        network: encoder, bottleneck, decoder.
    """

    settings_type: ClassVar[type[MethodSettings]] = Autoencoder3DSettings
    deviations: ClassVar[Sequence[Deviation]] = DEVIATIONS
    settings: Autoencoder3DSettings

    def __init__(self, settings: Autoencoder3DSettings, cohort: CohortFacts) -> None:
        """Build the network.

        Raises:
            SettingError: the halvings do not fit the cohort's grid.
        """
        super().__init__(settings, cohort)
        self.network = VolumeAutoencoder(settings.network, cohort)

    @classmethod
    def presets(cls) -> Mapping[str, MethodSettings]:
        """``paper`` is for haemorrhages, ``fracture`` for fractures; ``demo`` and ``tiny`` say what they are for."""
        return {"paper": Autoencoder3DSettings(), "fracture": fracture(), "demo": demo(), "tiny": tiny()}

    def stages(self) -> Sequence[Stage]:
        """One stage, ``autoencoder``."""
        settings = self.settings
        return [
            Stage(
                name="autoencoder",
                view=WholeVolumes(),
                batch_size=settings.batch_size,
                group_size=settings.group_size if settings.network.norm == "batch" else 1,
                epochs=settings.epochs,
                trains=(self.network,),
                optimizers={"adam": torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate)},
                step=self._step,
                selectable=True,
            )
        ]

    def _step(self, batch: Batch, update: Update) -> Metrics:
        return {"loss": update("adam", self.loss, batch)}

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Return the l1 distances of the batch's volumes from their reconstructions, summed, and their number."""
        error = (self.network(batch.image) - batch.image).abs()
        return error.flatten(1).mean(1).sum(), len(batch)

    def code_shape(self) -> tuple[int]:
        """Return (Z,)."""
        return (self.settings.network.latent_dim,)

    def score(self, volumes: Sequence[Volume], *, effort: Effort = "full") -> Sequence[Score]:
        """Reconstruct every volume once, ``together`` at a time; one pass is all there is, ``quick`` or not.

        The map is the absolute difference, of several channels the largest, then filtered.

        Raises:
            VolumeError: a volume has other channels, or another grid, than the cohort.
        """
        return score_in_portions(volumes, self.cohort, self.settings.together, self._scored)

    def _scored(self, volumes: Sequence[Volume]) -> list[Score]:
        device, maps = next(self.parameters()).device, self.settings.map
        image = torch.stack([volume.image for volume in volumes]).to(device)
        restored = self.network(image)
        errors = (image - restored).abs().amax(1)
        scores = []
        for volume, error, healthy in zip(volumes, errors, restored, strict=True):
            brain = volume.brain.to(device)
            map_DHW = finish_map(error, brain, maps)
            home = volume.image.device
            number = image_score(map_DHW, brain, maps)
            scores.append(Score(map=map_DHW.to(home), image_score=number, restoration=healthy.to(home)))
        return scores
