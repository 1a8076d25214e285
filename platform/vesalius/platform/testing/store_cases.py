"""What every check of the cohort store starts from: small subjects that are hard to keep, what is asserted of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vesalius.platform.store import CohortStore, Place, SourceFacts, SubjectArrays, SubjectRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vesalius.platform.errors import InputError

StoreFactory = Callable[[Place], CohortStore]
Case = tuple[SubjectRecord, SubjectArrays]
SHAPE = (9, 7, 11)


def example_case(number: int, channels: tuple[str, ...], *, all_roles: bool = True) -> Case:
    """Return a small subject whose values are hard to keep: signed zeros, denormals, extremes of float32."""
    random = np.random.default_rng(number)
    image = random.normal(size=(len(channels), *SHAPE)).astype(np.float32)
    image[0, 0, 0, :6] = [0.0, -0.0, 1e-42, -1e-42, 3e38, 1 / 3]
    brain = random.random(SHAPE) < 0.6
    lesion = np.zeros(SHAPE, dtype=np.bool_)
    lesion[3:5, 2:4, 5:8] = number % 2 == 1
    arrays = SubjectArrays(
        image=image,
        brain=brain,
        head=brain | (random.random(SHAPE) < 0.5) if all_roles else None,
        lesion=lesion if all_roles or lesion.any() else None,
        structures=random.integers(0, 300, SHAPE) if all_roles else None,
    )
    affine = ((1.5, 0.0, 0.0, -6.0), (0.0, 1.5, 0.0, -4.5), (0.0, 0.0, 2.0, -10.0), (0.0, 0.0, 0.0, 1.0))
    record = SubjectRecord(
        subject_id=f"sub-{number:02d}",
        split="train" if number % 2 == 0 else "test",
        group="site A",
        channels=channels,
        shape=SHAPE,
        spacing_mm=(1.5, 1.5, 2.0),
        affine=affine,
        source=SourceFacts(
            files={"T1w": f"sub-{number:02d}_T1w.nii.gz"},
            sha256={"T1w": f"{number:064x}"},
            shape=(20, 21, 22),
            affine=affine,
        ),
        demographics={"age": 30.5 + number, "sex": "F", "smoker": False, "weight": None},
        labels={"bleed_left": number % 2 == 1, "fracture": "none"},
        structures={"ventricles": 1, "cortex": 255},
        notes={"registration": {"metric": -0.7, "steps": [3, 2, 1]}},
    )
    return record, arrays


def add(store: CohortStore, cases: list[Case]) -> None:
    """Take subjects in as an ingest does: lock, take up what a killed writer left, write the others, commit each."""
    with store.lock():
        wanted = {record.subject_id for record, _ in cases}
        store.commit([record for record in store.uncommitted() if record.subject_id in wanted])
        for record, arrays in cases:
            store.commit([store.write(record, arrays)])


def assert_holds(store: CohortStore, case: Case) -> None:
    """Check that a committed subject reads back bit for bit."""
    record, arrays = case
    found = store.record(record.subject_id)
    filled = {"arrays": found.arrays, "recipe_digest": store.recipe_digest, "has_lesion": found.has_lesion}
    assert found == record.model_copy(update=filled), "the record is not what was written"
    assert found.has_lesion == bool(arrays.lesion is not None and arrays.lesion.any())
    _assert_same(store.image(record.subject_id), arrays.image, "image")
    _assert_same(store.brain(record.subject_id), arrays.brain, "brain")
    _assert_same(store.mask(record.subject_id, "head"), arrays.head, "head")
    _assert_same(store.mask(record.subject_id, "lesion"), arrays.lesion, "lesion")
    structures = store.structures(record.subject_id)
    if arrays.structures is None:
        assert structures is None
    else:
        assert structures is not None
        assert np.array_equal(structures, arrays.structures), "structures are not what was written"


def _assert_same(found: NDArray[Any] | None, written: NDArray[Any] | None, role: str) -> None:
    if found is None or written is None:
        assert found is None, f"{role} was never written and is there"
        assert written is None, f"{role} was written and is not there"
        return
    assert found.dtype == written.dtype, f"{role} comes back as {found.dtype}"
    assert found.shape == written.shape, f"{role} comes back as {found.shape}"
    assert found.tobytes() == written.tobytes(), f"{role} is not bit-equal"


def assert_refused(kind: type[InputError], work: Callable[[], object], named: str) -> None:
    """Check that ``work`` is refused by an error of that kind in one sentence that says ``named``."""
    message = refusal(kind, work)
    assert message is not None, f"expected a {kind.__name__} naming {named}"
    assert named in message, f"the message does not name {named}: {message}"
    assert "\n" not in message, f"the message is more than one sentence: {message}"


def refusal(kind: type[InputError], work: Callable[[], object]) -> str | None:
    """Return what ``work`` is refused with, or None where it is not."""
    try:
        work()
    except kind as error:
        return str(error)
    return None


def files_in(folder: Place) -> dict[str, bytes]:
    """Return what every file under a folder or URL holds, by its path in it."""
    if not isinstance(folder, Path):
        return {name: (folder / name).read_bytes() for name in folder.files()}
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def written_at(path: Place) -> str:
    """Return when a file was last written, as its file system says it."""
    if isinstance(path, Path):
        return str(path.stat().st_mtime_ns)
    facts = path.facts()
    return str({key: value for key, value in facts.items() if key in ("created", "LastModified", "mtime")})
