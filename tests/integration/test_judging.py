"""A run is judged on images that it was not trained on, whatever store they come in."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from vesalius.infra import pipeline
from vesalius.platform.errors import CohortError
from vesalius.platform.store import CohortStore, SubjectArrays

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vesalius.platform.runs import RunFolder


def _moved(store: CohortStore, path: Path, splits: Mapping[str, str], *, renamed: bool = True) -> CohortStore:
    """Return a copy of a store in which the subjects of ``splits`` have another split, and another name."""
    copy = CohortStore.create(path, recipe=store.recipe, channels=store.channels)
    with copy.lock():
        records = []
        for record in store.subjects():
            name = record.subject_id
            changes = {"split": splits.get(name, record.split)}
            if renamed and name in splits:
                changes["subject_id"] = f"again-{name}"
            arrays = SubjectArrays(image=store.image(name), brain=store.brain(name), lesion=store.mask(name, "lesion"))
            records.append(copy.write(record.model_copy(update={"arrays": {}, **changes}), arrays))
        copy.commit(records)
    return CohortStore.open(path)


def _trained(home: Path, store: CohortStore) -> RunFolder:
    run = pipeline.start_run(
        "healthy_atlas", store.path, home=home, assignments=["training.threads=1"], num_workers=0, name="atlas"
    )
    pipeline.train(run)
    return run


@pytest.mark.parametrize("split", ["test", "validation"])
def test_images_that_were_trained_on_are_not_judged_on(toy_store: CohortStore, tmp_path: Path, split: str) -> None:
    run = _trained(tmp_path / "home", toy_store)
    other = _moved(toy_store, tmp_path / "other", {"train-03": split})
    with pytest.raises(CohortError, match=f"trained on the image of 'again-train-03', which .* in the split '{split}'"):
        pipeline.evaluate_run(run, "test", store=other)
    assert pipeline.evaluate_run(run, "train", store=other) if split == "test" else True
    rearranged = _moved(toy_store, tmp_path / "fine", {"gate-00": split})
    assert pipeline.evaluate_run(run, "test", store=rearranged)["all"].num_subjects == (5 if split == "test" else 4)


def test_a_store_that_changed_where_it_lies_is_looked_at_again(toy_store: CohortStore, tmp_path: Path) -> None:
    store = CohortStore.open(shutil.copytree(toy_store.path, tmp_path / "store"))
    run = _trained(tmp_path / "home", store)
    for name, num_test in (("test-00", 3), ("train-00", None)):
        splits = {name: "test" if name == "train-00" else "gate"}
        changed = _moved(toy_store, tmp_path / f"with-{name}", splits, renamed=False)
        shutil.rmtree(store.path)
        shutil.copytree(changed.path, store.path)
        if num_test is None:
            with pytest.raises(CohortError, match="trained on the image of 'train-00'"):
                pipeline.evaluate_run(run, "test")
        else:
            assert pipeline.evaluate_run(run, "test")["all"].num_subjects == num_test
