"""Pictures of image scores: what is drawn is what was given, and odd cases are drawn too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from vesalius.infra.figures import KindCurve, KindScores, RocRow, draw_kinds, draw_precision_recall, draw_roc
from vesalius.infra.figures.images import _GROUPS as GROUPS
from vesalius.infra.figures.images import COLOURS
from vesalius.platform.evaluation import detection, precision_recall_curve, roc_curve, youden_threshold

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = {"title": "Title", "caption": "A caption that says how to read it"}


def pixels(path: Path, colour: str | np.ndarray) -> int:
    wanted = np.array(to_rgb(colour)) if isinstance(colour, str) else colour
    image = imread(path)[..., :3]
    return int((np.abs(image - wanted).max(-1) < 0.02).sum())


def faded(colour: str) -> np.ndarray:
    """Return the colour of a dot on white that lets two fifths through."""
    return 0.6 * np.array(to_rgb(colour)) + 0.4


def images(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.arange(60) < 25
    return np.exp(random.normal(labels * 0.8, 1.0)), labels


def test_every_method_has_its_curve_and_its_points(tmp_path: Path) -> None:
    rows = []
    for number in range(8):
        scores, labels = images(number)
        found, curve = detection(scores, labels, bootstrap=100), roc_curve(scores, labels)
        threshold = youden_threshold(scores, labels)
        assert threshold is not None
        point = (float((scores[~labels] >= threshold).mean()), float((scores[labels] >= threshold).mean()))
        rows.append(
            RocRow(
                name=f"method {number}", x=curve.x, y=curve.y, auroc=found.auroc,
                interval=found.intervals.get("auroc"), chosen=(point[0] / 2, point[1]), own=point,
            )
        )  # fmt: skip
    path = draw_roc(rows, tmp_path / "roc.png", **TEXTS)
    assert all(pixels(path, colour) > 100 for colour in COLOURS)
    # Of 31 names none runs into the caption.
    many = draw_roc([rows[number % 8] for number in range(31)], tmp_path / "many.png", title="", caption="")
    picture = imread(many)[..., :3]
    inch = picture.shape[1] // 9
    assert picture[-inch // 2 :].min() == 1
    assert picture[-3 * inch // 2 :, -3 * inch :].min() < 0.5
    bare = draw_roc([RocRow(name="nothing", x=(), y=())], tmp_path / "bare.png", **TEXTS)
    assert pixels(bare, COLOURS[0]) < pixels(path, COLOURS[0])


def test_every_kind_has_its_curve(tmp_path: Path) -> None:
    panels = []
    for number in range(4):
        kinds: list[KindCurve] = []
        for name in ("epidural", "subdural", "intraparenchymal"):
            scores, labels = images(len(kinds) + 10 * number)
            curve = precision_recall_curve(scores, labels)
            average = detection(scores, labels, bootstrap=0).average_precision
            kinds.append(KindCurve(name=name, recall=curve.x, precision=curve.y, average=average, share=25 / 60))
        panels.append((f"method {number}", kinds))
    path = draw_precision_recall(panels, tmp_path / "kinds.png", **TEXTS)
    assert all(pixels(path, colour) > 400 for colour in COLOURS[:3])
    assert imread(path).shape[0] > imread(draw_precision_recall(panels[:2], tmp_path / "2.png", **TEXTS)).shape[0]


def test_scores_are_drawn_by_kind_whatever_their_sign(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    kinds = [
        KindScores(name="healthy", scores=tuple(np.exp(random.normal(0, 0.4, 34)).tolist()), group="healthy"),
        *(
            KindScores(
                name=name, scores=tuple(np.exp(random.normal(1, 0.6, num)).tolist()), group=group, auroc=0.8
            )
            for name, num, group in (
                ("epidural", 12, "lesion"), ("subdural", 12, "lesion"), ("intraparenchymal", 12, "lesion"),
                ("artefact", 12, "quality"), ("wrong orientation", 4, "quality"), ("wrong registration", 4, "quality"),
                ("post operative", 8, "quality"),
            )
        ),
    ]  # fmt: skip
    path = draw_kinds(
        [(name, kinds) for name in ("3D f-AnoGAN", "2D f-AnoGAN", "atlas", "x")], tmp_path / "a.png", **TEXTS
    )
    assert imread(path).shape[1] > 2000
    for colour in GROUPS.values():
        assert pixels(path, faded(colour)) > 200
    negative = [KindScores(name="bleeds", scores=(-1.0, 0.0, 2.0), group="lesion")]
    path = draw_kinds([("toy", negative)], tmp_path / "b.png", **TEXTS)
    assert imread(path).shape[0] > 200
    # Where the dots are is what their scores are.
    columns = np.flatnonzero((np.abs(imread(path)[..., :3] - faded(GROUPS["lesion"])).max(-1) < 0.02).sum(0) > 2)
    first, second, third = (dot.mean() for dot in np.split(columns, np.flatnonzero(np.diff(columns) > 20) + 1))
    assert (third - second) / (second - first) == pytest.approx(2.0, abs=0.1)
