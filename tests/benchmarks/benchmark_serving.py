"""What a server and a pool of scoring workers cost and bring, as ratios of one run.

- serving: wall time of some requests from four clients at once, against as many bare calls of ``score_volumes`` with
  the same model on the same volumes, one after another, in a process with the same number of threads. The requests pay
  for the way over HTTP, the recipe and the answer's JSON; what runs beside the scoring, and on a GPU batching, pay some
  back.
- pool: what a volume takes with two actors against one. Each runs few volumes and many; what the many take beyond the
  few is divided by the volumes beyond, so that starting Ray and loading the model count for neither.

The targets, at most 10 % (of calls of a third of a second and longer; what is paid is paid for each call) and at least
1.8 x, are of two free cores: on a machine that computes something else the figures say more about that. The first
request and the last have nothing to run beside: of eight volumes that alone is some hundredths.

    python tests/benchmarks/benchmark_serving.py [--volumes 24] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from vesalius.datasets.phantom import PhantomSettings, make_phantom
from vesalius.datasets.prepare import prepare_file
from vesalius.datasets.recipes.general import as_is
from vesalius.infra.application import volume_from
from vesalius.infra.pipeline.judging import METHODS_PATH
from vesalius.infra.serving.testing.server import served
from vesalius.methods import METHODS
from vesalius.platform.cluster import session
from vesalius.platform.cluster.holding import map_held
from vesalius.platform.cluster.scoring import SplitWork
from vesalius.platform.config import override
from vesalius.platform.geometry import as_matrix, write_nifti
from vesalius.platform.models import ModelCard, load_model, save_model
from vesalius.platform.scoring import score_volumes
from vesalius.platform.store import CohortStore
from vesalius.platform.tables import lookup

_METHOD = "implicit_field"
_EDGE = 48
_CLIENTS = 4
_FEW = 2


def _cohort(folder: Path, num: int) -> tuple[CohortStore, list[Path]]:
    """Write phantoms as files and as a store."""
    recipe = as_is().model_dump(mode="json")
    store = CohortStore.create(folder / "cohort", recipe=recipe, channels=("T1w",))
    files, records = [], []
    with store.lock():
        for seed in range(num):
            subject = make_phantom(seed, PhantomSettings(shape=(_EDGE, _EDGE, _EDGE)))
            files.append(folder / f"volume-{seed}.nii.gz")
            write_nifti(files[-1], subject.image[0], as_matrix(subject.affine))
            record, arrays = prepare_file({"T1w": files[-1]}, recipe)
            record = record.model_copy(update={"subject_id": f"volume-{seed}", "split": "train"})
            records.append(store.write(record, arrays))
        store.commit(records)
    return CohortStore.open(store.path), files


def _model(folder: Path, store: CohortStore, iterations: int) -> Path:
    """Write a model with random weights: what it finds is nothing, and takes as long as what a trained one finds."""
    kind = lookup(METHODS, _METHOD, "method")
    settings = override(kind.presets()["tiny"], {"restoration.steps": (iterations,)})
    torch.manual_seed(0)
    method = kind(settings, store.facts())
    card = ModelCard(
        method=_METHOD, settings=settings.model_dump(mode="json"), cohort=method.cohort, recipe=store.recipe
    )
    save_model(folder, method, card)
    return folder


def _bare(model: Path, files: list[Path]) -> float:
    method, card = load_model(model, METHODS)
    volumes = [volume_from(*prepare_file({"T1w": file}, card.recipe)) for file in files]
    score_volumes(method, volumes[:1])
    begun = time.perf_counter()
    for volume in volumes:
        score_volumes(method, [volume])
    return time.perf_counter() - begun


def _requests(server: Any, files: list[Path]) -> float:
    bodies = [file.read_bytes() for file in files]
    server.json("/v1/score", bodies[0])
    begun = time.perf_counter()
    with ThreadPoolExecutor(_CLIENTS) as clients:
        list(clients.map(lambda body: server.json("/v1/score", body), bodies))
    return time.perf_counter() - begun


def _pool(model: Path, store: CohortStore, num_workers: int, num: int) -> float:
    work = SplitWork(model=model, methods=METHODS_PATH, store=store.path, device="cpu")
    ids = [record.subject_id for record in store.subjects()]
    items = [[ids[number % len(ids)]] for number in range(num)]
    begun = time.perf_counter()
    for _, outcome in map_held(work, items, num_workers=num_workers):
        assert not isinstance(outcome, Exception)
        assert not outcome[0].problem
    return time.perf_counter() - begun


def measure(num_volumes: int, rounds: int, iterations: int) -> dict[str, Any]:
    """Return the two ratios and the seconds behind them."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, files = _cohort(folder, num_volumes)
        model = _model(folder / "model", store, iterations)
        with served(folder / "server", str(model)) as server:
            pairs = [(_bare(model, files), _requests(server, files)) for _ in range(rounds)]
        spread: dict[int, list[float]] = {1: [], 2: []}
        with session(2):
            for _ in range(rounds):
                for workers, seconds in spread.items():
                    few, many = _FEW * workers, _FEW * workers + num_volumes
                    beyond = _pool(model, store, workers, many) - _pool(model, store, workers, few)
                    seconds.append(beyond / num_volumes)
    bare, asked = (statistics.median(one) for one in zip(*pairs, strict=True))
    one, two = (statistics.median(spread[workers]) for workers in (1, 2))
    return {
        "volumes": num_volumes,
        "rounds": rounds,
        "bare_seconds_per_volume": bare / num_volumes,
        "served_seconds_per_volume": asked / num_volumes,
        "serving_overhead": asked / bare - 1,
        "one_actor_seconds_per_volume": one,
        "two_actors_seconds_per_volume": two,
        "two_actors_against_one": one / two,
    }


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_server_and_a_pool_run() -> None:
    figures = measure(4, 1, 2)
    assert figures["bare_seconds_per_volume"] > 0
    assert figures["two_actors_against_one"] > 0


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=160, help="of each restoration")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    figures = measure(given.volumes, given.rounds, given.iterations)
    if given.json:
        print(json.dumps(figures, indent=1))
        return
    print(f"bare call            {figures['bare_seconds_per_volume']:.3f} s a volume")
    print(f"served, 4 clients    {figures['served_seconds_per_volume']:.3f} s a volume")
    print(f"overhead             {100 * figures['serving_overhead']:+.1f} %  (target: at most 10 % on free cores)")
    print(f"one actor            {figures['one_actor_seconds_per_volume']:.3f} s a volume")
    print(f"two actors           {figures['two_actors_seconds_per_volume']:.3f} s a volume")
    print(f"two against one      {figures['two_actors_against_one']:.2f} x  (target: at least 1.8 x on free cores)")


if __name__ == "__main__":
    main()
