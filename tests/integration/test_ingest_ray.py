"""Ingest on Ray: more workers change who prepares, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vesalius.datasets.ingest import ingest
from vesalius.datasets.layouts.bids import BidsLayout
from vesalius.datasets.recipes import centered
from vesalius.platform.store import CohortStore

if TYPE_CHECKING:
    from pathlib import Path


def test_two_workers_equal_none_and_report_what_failed(tmp_path: Path, ray_session: None) -> None:
    root = BidsLayout().write_example(tmp_path / "raw")
    broken = root / "sub-07/anat/sub-07_T1w.nii.gz"
    broken.parent.mkdir(parents=True)
    broken.write_text("no volume")
    reports = [ingest("bids", root, tmp_path / f"store{num}", recipe=centered(8.0), num_workers=num) for num in (0, 2)]
    alone, shared = (report.model_copy(update={"store": "", "seconds": 0.0}) for report in reports)
    assert shared == alone
    assert len(shared.added) == 5
    assert list(shared.failed) == ["sub-07"]
    assert f"{broken} is not a NIfTI file" in shared.failed["sub-07"]
    assert CohortStore.open(tmp_path / "store2").check() == []
    again = ingest("bids", root, tmp_path / "store2", recipe=centered(8.0), num_workers=2)
    assert again.unchanged == shared.added
    assert again.digest == shared.digest
