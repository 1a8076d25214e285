"""Fixtures shared by every kind of test: small cohorts, real data where it is at hand."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from vesalius.platform.config import digest
from vesalius.platform.geometry import as_matrix
from vesalius.platform.store import CohortStore, SubjectArrays, SubjectRecord
from vesalius.platform.testing import servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vesalius.infra.pipeline.estimating import Estimate
    from vesalius.platform.testing.servers import PostgreSQL

torch.set_num_threads(1)
# A terminal that says how wide it is (and pytest's workers do) would fold the tables that tests read.
os.environ.pop("COLUMNS", None)
# A search for counterexamples belongs to whoever sits before it; a gate should say the same thing twice. A busy machine
# is no counterexample.
settings.register_profile("search", deadline=None)
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady" if os.environ.get("CI") else "search")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real brains, or skip."""
    folder = Path(os.environ.get("VESALIUS_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "ds002748").is_dir():
        pytest.skip(f"no real data in {folder}: set VESALIUS_DATA to the folder that holds ds002748")
    return folder


def write_cohort(
    path: Path,
    splits: dict[str, int],
    *,
    shape: tuple[int, int, int] = (12, 10, 8),
    channels: Sequence[str] = ("T1w",),
    lesions_in: Sequence[str] = ("validation", "gate", "test"),
    seed: int = 0,
) -> CohortStore:
    """Write a cohort of smooth random volumes: every second subject of ``lesions_in`` carries a bright cube."""
    recipe = {"name": "toy"}
    store = CohortStore.create(path, recipe=recipe, channels=channels)
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    records = []
    with store.lock():
        for split, num in splits.items():
            for index in range(num):
                radius = (grid**2).sum(axis=0)
                brain = radius < 0.9
                image = np.stack(
                    [
                        brain * (0.5 + 0.2 * np.cos(3 * grid[0] * random.uniform(0.8, 1.2)) * grid[1])
                        + brain * random.normal(0, 0.02, shape)
                        for _ in channels
                    ]
                ).astype(np.float32)
                lesion = np.zeros(shape, dtype=bool)
                if split in lesions_in and index % 2 == 0:
                    lesion[5:8, 4:7, 3:5] = True
                    image[:, lesion] += 0.4
                record = SubjectRecord(
                    subject_id=f"{split}-{index:02d}",
                    split=split,
                    channels=tuple(channels),
                    shape=shape,
                    spacing_mm=(2.0, 2.0, 2.0),
                    affine=(
                        (2.0, 0.0, 0.0, -float(shape[0])),
                        (0.0, 2.0, 0.0, -float(shape[1])),
                        (0.0, 0.0, 2.0, -float(shape[2])),
                        (0.0, 0.0, 0.0, 1.0),
                    ),
                    recipe_digest=digest(recipe),
                )
                arrays = SubjectArrays(image=image, brain=brain, lesion=lesion if lesion.any() else None)
                records.append(store.write(record, arrays))
        store.commit(records)
    return CohortStore.open(path)


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory: pytest.TempPathFactory) -> CohortStore:
    """Return a tiny cohort: 6 train, 4 validation, 4 gate, 4 test."""
    folder = tmp_path_factory.mktemp("toy")
    return write_cohort(folder / "toy.zarr", {"train": 6, "validation": 4, "gate": 4, "test": 4})


@pytest.fixture(scope="session")
def healthy_store(tmp_path_factory: pytest.TempPathFactory) -> CohortStore:
    """Return a tiny cohort whose lesions lie in the test split alone: 6 train, 4 validation, 2 test."""
    folder = tmp_path_factory.mktemp("healthy")
    return write_cohort(folder / "healthy.zarr", {"train": 6, "validation": 4, "test": 2}, lesions_in=("test",))


@pytest.fixture(scope="session")
def phantom_store(tmp_path_factory: pytest.TempPathFactory) -> CohortStore:
    """Return a phantom cohort small enough for every contract test: 6 train, 3 each of the other splits."""
    from vesalius.datasets.phantom import PhantomSettings, phantom_cohort

    path = tmp_path_factory.mktemp("phantom") / "phantom.zarr"
    recipe = {"name": "phantom"}
    store = CohortStore.create(path, recipe=recipe, channels=("T1w",))
    cases = phantom_cohort(
        num_train=6, num_validation=3, num_gate=3, num_test=3, settings=PhantomSettings(shape=(20, 24, 20)), seed=1
    )
    with store.lock():
        records = []
        for case in cases:
            subject = case.make()
            affine = as_matrix(subject.affine)
            records.append(
                store.write(
                    SubjectRecord(
                        subject_id=case.subject_id,
                        split=case.split,
                        channels=subject.channels,
                        shape=subject.brain.shape,
                        spacing_mm=subject.spacing_mm,
                        affine=affine,
                        structures=subject.structure_names,
                    ),
                    SubjectArrays(
                        image=subject.image,
                        brain=subject.brain,
                        head=subject.head,
                        lesion=subject.lesion if subject.lesion.any() else None,
                        structures=subject.structures,
                    ),
                )
            )
        store.commit(records)
    return CohortStore.open(path)


@pytest.fixture
def measured() -> Callable[..., Estimate]:
    """Return what makes up an estimate of a stage without and one with an optimiser; keywords change its fields."""
    from vesalius.infra.pipeline.estimating import Estimate

    def made_up(**changes: Any) -> Estimate:
        plain = {
            "steps": {"classes": 10, "decoder": 100},
            "step_seconds": {"classes": 0.1, "decoder": 0.5},
            "quick_seconds": 0.25,
            "volume_seconds": 1.0,
            "num_volumes": 8,
            "passes": 8,
            "fixed": ("classes",),
            "peak_bytes": {"classes": 1, "decoder": 2},
            "scoring_peak_bytes": 1,
            "complete": True,
        }
        return Estimate.model_validate({**plain, **changes})

    return made_up


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgreSQL]:
    """Hold a running PostgreSQL for the tests of a file, or skip."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(servers.postgresql())
        except (FileNotFoundError, PermissionError) as error:
            pytest.skip(str(error))
        yield server


@pytest.fixture
def no_access(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """Begin without any access to a Ray, and leave what Ray keeps of it in this process as it was."""
    from ray._private.authentication_test_utils import reset_auth_token_state

    with monkeypatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            patch.setenv(name, "")
            patch.delenv(name)
        patch.setenv("HOME", str(tmp_path))
        reset_auth_token_state()
        yield patch
    reset_auth_token_state()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """Run a Redis that keeps on disk what it is told; yields its address. `make test-all` installs it."""
    try:
        with servers.redis_server(tmp_path / "redis") as address:
            yield address
    except FileNotFoundError as error:
        pytest.skip(str(error))
