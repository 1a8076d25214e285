"""What a study is judged by, and what it may never see; what fits side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from vesalius.platform.errors import SettingError
from vesalius.platform.training.selection import AVERAGE_PRECISION, HEALTHY
from vesalius.tuning import OBJECTIVES, check_resources, choose_objectives, fitting, intermediate, objective

if TYPE_CHECKING:
    from vesalius.platform.store import CohortStore


def test_annotated_validation_decides(toy_store: CohortStore, healthy_store: CohortStore) -> None:
    assert choose_objectives((), toy_store, num_workers=1) == (("average_precision",), "")
    names, said = choose_objectives((), healthy_store, num_workers=1)
    assert names == ("healthy_image_score",)
    assert "no validation subject has outlined lesions" in said
    assert "--lesions" in said


def test_a_lesion_of_the_test_split_is_no_lesion_of_validation(healthy_store: CohortStore) -> None:
    with pytest.raises(SettingError, match="has in its validation split no subjects with outlined lesions"):
        choose_objectives(("average_precision",), healthy_store, num_workers=1)
    with pytest.raises(SettingError, match="no healthy and anomalous subjects"):
        choose_objectives(("image_auroc",), healthy_store, num_workers=1)


@pytest.mark.parametrize("name", ["test_average_precision", "test/brain/auroc", "gate_dice", "gate:auroc"])
def test_gate_and_test_are_refused(name: str) -> None:
    with pytest.raises(SettingError, match="a study never sees them; it judges by validation"):
        objective(name)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_objective_is_of_another_split(name: str) -> None:
    assert objective(name) is OBJECTIVES[name]
    assert not {"test", "gate"} & set(name.replace("_", "/").split("/"))


def test_names_are_checked(toy_store: CohortStore) -> None:
    with pytest.raises(SettingError, match="did you mean 'average_precision'"):
        choose_objectives(("average_precisoin",), toy_store, num_workers=1)
    with pytest.raises(SettingError, match="given twice"):
        choose_objectives(("auroc", "auroc"), toy_store, num_workers=1)
    with pytest.raises(SettingError, match="peak_memory is measured of trials of one worker"):
        choose_objectives(("peak_memory",), toy_store, num_workers=2)
    assert choose_objectives(("auroc", "peak_memory"), toy_store, num_workers=1)[0] == ("auroc", "peak_memory")


@pytest.mark.parametrize(
    ("names", "on_toy", "on_healthy"),
    [
        (("average_precision",), AVERAGE_PRECISION, None),
        (("image_auroc",), AVERAGE_PRECISION, None),
        (("healthy_image_score",), None, HEALTHY),
        (("seconds_per_volume",), None, None),
        (("average_precision", "seconds_per_volume"), None, None),
    ],
)
def test_a_pass_stops_only_what_it_speaks_of(
    names: tuple[str, ...],
    on_toy: str | None,
    on_healthy: str | None,
    toy_store: CohortStore,
    healthy_store: CohortStore,
) -> None:
    assert intermediate(names, toy_store, 4) == on_toy
    assert intermediate(names, healthy_store, 4) == on_healthy


@pytest.mark.parametrize("name", ["seconds_per_volume", "training_seconds", "peak_memory"])
def test_what_a_trial_takes_is_measured_on_validation_too(name: str) -> None:
    class Empty:
        path = "store"

        def subjects(self, split: str) -> list[object]:
            return []

    with pytest.raises(SettingError, match=f"objective '{name}': store has in its validation split no subjects"):
        choose_objectives((name,), Empty(), num_workers=1)  # type: ignore[arg-type]


# ---- side by side


def test_a_core_is_of_one_machine_and_a_share_of_one_device() -> None:
    two = [{"CPU": 2.0}, {"CPU": 2.0}]
    assert fitting({"CPU": 4.0}, 1, 4, 0, nodes=two) == 0
    assert fitting({"CPU": 4.0}, 1, 1, 0, nodes=two) == 4
    assert fitting({"CPU": 4.0}, 2, 1, 0, nodes=two) == 2
    with pytest.raises(SettingError, match="would wait for ever"):
        check_resources({"CPU": 4.0}, concurrent=1, num_workers=1, cpus=4, gpus=0, nodes=two)
    with pytest.raises(SettingError, match="above 1 it is a whole number"):
        check_resources({"CPU": 8.0, "GPU": 2.0}, concurrent=1, num_workers=1, cpus=1, gpus=1.5)


@pytest.mark.parametrize(
    ("cluster", "workers", "cpus", "gpus", "fit"),
    [
        ({"CPU": 2.0}, 1, 1, 0, 2),
        ({"CPU": 2.0}, 1, 2, 0, 1),
        ({"CPU": 2.0}, 2, 1, 0, 1),
        ({"CPU": 2.0}, 3, 1, 0, 0),
        ({"CPU": 5.0}, 2, 1, 0, 2),
        ({"CPU": 8.0, "GPU": 1.0}, 1, 1, 0.25, 4),
        ({"CPU": 8.0, "GPU": 1.0}, 1, 1, 0.333, 3),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 1, 1, 2),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 1, 0.6, 2),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 1, 0.5, 4),
        ({"CPU": 8.0, "GPU": 4.0}, 2, 1, 1, 2),
        ({"CPU": 8.0}, 1, 1, 0.5, 0),
    ],
)
def test_what_fits_side_by_side(cluster: dict[str, Any], workers: int, cpus: int, gpus: float, fit: int) -> None:
    assert fitting(cluster, workers, cpus, gpus) == fit


def test_a_deadlock_is_seen_beforehand() -> None:
    check_resources({"CPU": 2.0}, concurrent=2, num_workers=1, cpus=1, gpus=0)
    with pytest.raises(SettingError, match=r"4 trials side by side take 1 core apiece.*2 cores.*use --concurrent 2"):
        check_resources({"CPU": 2.0}, concurrent=4, num_workers=1, cpus=1, gpus=0)
    with pytest.raises(SettingError, match=r"a trial takes 4 workers of a core each and the cluster has 2 cores"):
        check_resources({"CPU": 2.0}, concurrent=1, num_workers=4, cpus=1, gpus=0)
    with pytest.raises(SettingError, match=r"--cpus is 2: it gives cores to trials of one worker"):
        check_resources({"CPU": 8.0}, concurrent=1, num_workers=2, cpus=2, gpus=0)
    with pytest.raises(SettingError, match=r"and 0\.5 GPUs and the cluster has 2 cores and 0 GPUs"):
        check_resources({"CPU": 2.0}, concurrent=1, num_workers=1, cpus=1, gpus=0.5)
