"""The quality page without a browser: what it escapes, what it overwrites, how large it grows."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vesalius.datasets.quality import CohortQuality, Finding, Limits, SubjectQuality, survey
from vesalius.datasets.quality.report import Measures
from vesalius.infra.cli.app import app
from vesalius.infra.pages import Album, page_path, write_quality_page
from vesalius.infra.pages.quality import render
from vesalius.infra.pages.slices import Slices, outline, picture_width
from vesalius.platform.errors import SettingError
from vesalius.platform.store import CohortStore, SubjectArrays

if TYPE_CHECKING:
    from pathlib import Path

EVIL = "</script><svg onload=alert(1)>\"'&"


def invented(number: int, **changes: Any) -> SubjectQuality:
    measures = Measures(similarity=0.9, overlap=0.95, template_overlap=0.94, brain_ml=1500.0 + number, cut_share=0.0)
    told: dict[str, Any] = {
        "subject_id": f"sub-{number:04d}",
        "split": "train",
        "measures": measures,
        "histograms": {"T1w": (1 / 48,) * 48},
        **changes,
    }
    return SubjectQuality(**told)


def report(subjects: list[SubjectQuality]) -> CohortQuality:
    return CohortQuality(
        num_subjects=len(subjects),
        frame="template",
        judged=True,
        limits=Limits(),
        medians={"similarity": 0.9},
        histograms={"T1w": (1 / 48,) * 48},
        subjects=tuple(subjects),
    )


def slices_of(store: CohortStore, num_subjects: int = 1) -> dict[str, Slices]:
    album = Album(num_subjects)
    record = store.subjects()[0]
    album.add(record, SubjectArrays(image=store.image(record.subject_id), brain=store.brain(record.subject_id)))
    return album.slices


# ---- what is written


def test_everything_from_data_is_escaped(toy_store: CohortStore) -> None:
    finding = Finding(kind="warning", severity="look", sentence=EVIL, advice=EVIL)
    subject = invented(1, group=EVIL, demographics={EVIL: EVIL}, person=EVIL, findings=(finding,))
    page = render(toy_store, report([subject]), {}, problems=[EVIL])
    assert EVIL not in page
    assert "<svg onload" not in page
    assert page.count("</script>") == 1
    assert page.count("&lt;/script&gt;") >= 5


def test_the_policy_allows_our_own_style_and_script_and_nothing_else(toy_store: CohortStore) -> None:
    page = render(toy_store, report([invented(1)]), {})
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert found is not None
    policy = found.group(1).replace("&#39;", "'")
    for tag in ("style", "script"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert content is not None
        digest = base64.b64encode(hashlib.sha256(content.group(1).encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert not re.search(r'(?:src|href)="(?!data:image/webp;base64,|#)', page)
    assert " style=" not in page


@pytest.mark.parametrize(
    ("subjects", "words"),
    [
        ([], "The store holds no subjects."),
        ([invented(1)], "<strong>Nothing stands out</strong> among 1 subject."),
        (
            [invented(1, findings=(Finding(kind="leak", severity="alarm", sentence="a", advice="b"),)), invented(2)],
            "<strong>1 of 2 subjects</strong> most likely has something wrong.",
        ),
        (
            [invented(1, findings=(Finding(kind="warning", severity="look", sentence="a", advice="b"),)), invented(2)],
            "<strong>1 of 2 subjects</strong> wants a look; nothing is clearly wrong.",
        ),
    ],
)
def test_the_verdict_is_one_sentence(toy_store: CohortStore, subjects: list[SubjectQuality], words: str) -> None:
    assert words in " ".join(render(toy_store, report(subjects), {}).split())


def test_a_file_keeps_its_name_at_the_head_of_a_sentence(toy_store: CohortStore) -> None:
    said = ("its brain is cut", "sub-45_T1w.nii.gz does not say where it lies")
    findings = tuple(Finding(kind="warning", severity="look", sentence=text, advice="look") for text in said)
    page = render(toy_store, report([invented(1, findings=findings)]), {})
    assert "</strong> Its brain is cut." in page
    assert "</strong> sub-45_T1w.nii.gz does not say" in page


def test_checksums_are_claimed_only_where_they_were_read(toy_store: CohortStore) -> None:
    assert "not re-read" in render(toy_store, report([]), {})
    assert "every array equals its checksum" in render(toy_store, report([]), {}, problems=[])
    assert "2 problems" in render(toy_store, report([]), {}, problems=["one", "two"])


def test_a_thousand_subjects_are_a_page_that_opens(phantom_store: CohortStore, tmp_path: Path) -> None:
    """Measured with real brains of 2 mm: 10.1 MB, 10.1 kB a subject, of which 3.6 the picture and 4.4 its outline."""
    one = next(iter(slices_of(phantom_store, 1000).values()))
    subjects = [invented(number, demographics={"age": 40, "sex": "F"}) for number in range(1000)]
    path = tmp_path / "page.html"
    num_bytes = write_quality_page(path, phantom_store, report(subjects), {s.subject_id: one for s in subjects})
    assert num_bytes == path.stat().st_size
    assert num_bytes < 16e6


# ---- pictures


def test_pictures_grow_smaller_with_the_cohort(phantom_store: CohortStore) -> None:
    assert [picture_width(number) for number in (8, 200, 1000)] == [480, 330, 240]
    for number in (8, 1000):
        one = next(iter(slices_of(phantom_store, number).values()))
        picture = Image.open(io.BytesIO(base64.b64decode(one.picture.split(",")[1])))
        assert picture.size == (one.width, one.height)
        assert abs(one.width - picture_width(number)) <= 2


def test_slices_stand_as_a_person_looks_at_them(toy_store: CohortStore) -> None:
    """A bright spot up, in front and on the right of the patient is up, to the right or above in the three planes."""
    record = toy_store.subjects()[0].model_copy(update={"shape": (40, 40, 40), "spacing_mm": (2.0, 2.0, 2.0)})
    brain = np.ones((40, 40, 40), dtype=np.bool_)
    image = np.zeros((1, 40, 40, 40), dtype=np.float32)
    middle = [round(share * 39) for share in (0.45, 0.5, 0.5)]
    image[0, middle[0], 30:, 30:] = 1  # sagittal: right is in front, up is up
    image[0, 30:, middle[1], 30:] = 1  # coronal: right is the patient's right
    image[0, 30:, 30:, middle[2]] = 1  # axial: up is in front
    album = Album(1)
    album.add(record, SubjectArrays(image=image, brain=brain))
    one = album.slices[record.subject_id]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(one.picture.split(",")[1]))).convert("L"))
    edge = one.height
    for left in (0, (one.width - edge) // 2, one.width - edge):
        plane = picture[:, left : left + edge]
        quarters = {
            (down, right): plane[: edge // 4 or None, -edge // 4 :].mean()
            if (down, right) == (0, 1)
            else plane[-edge // 4 :, : edge // 4].mean()
            for down, right in ((0, 1), (1, 0))
        }
        assert quarters[0, 1] > 150
        assert quarters[1, 0] < 60


def test_an_outline_encloses_its_mask() -> None:
    """The shoelace formula gives a disc's area back; what touches the rim is closed."""
    rows, columns = np.mgrid[:60, :80]
    disc = ((rows - 30) ** 2 + (columns - 40) ** 2 < 20**2) * 255.0
    assert area(outline(disc)) == pytest.approx(np.pi * 20**2, rel=0.02)
    assert area(outline(np.full((10, 12), 255.0))) == pytest.approx(11 * 13, rel=0.25)
    assert outline(np.zeros((5, 5))) == ""
    assert len(outline(disc)) < 1200


def area(path: str) -> float:
    points = np.array([[float(part) for part in pair.split()] for pair in path.strip("MZ").split("L")])
    x, y = points.T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


# ---- where it goes


def test_a_page_is_a_named_file_or_the_index_of_a_folder(tmp_path: Path) -> None:
    assert page_path(tmp_path / "a.html") == tmp_path / "a.html"
    assert page_path(tmp_path / "report") == tmp_path / "report" / "index.html"
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(SettingError, match="notes is a file"):
        page_path(tmp_path / "notes")
    (tmp_path / "mine.html").write_text("<p>mine")
    with pytest.raises(SettingError, match="exists and is not a page of this kind"):
        page_path(tmp_path / "mine.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(SettingError, match="is a folder"):
        page_path(tmp_path / "folder.html")


def test_the_verb_writes_the_page_and_says_what_stands_out(phantom_store: CohortStore, tmp_path: Path) -> None:
    arguments = ["check", str(phantom_store.path), "--html", str(tmp_path / "report"), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["html"] == str(tmp_path / "report" / "index.html")
    assert document["problems"] == []
    assert document["quality"]["num_subjects"] == 15
    first = (tmp_path / "report" / "index.html").read_text()
    assert "every array equals its checksum" in first
    # Its own page it may write again; anything else it may not.
    assert CliRunner().invoke(app, arguments).exit_code == 0
    (tmp_path / "report" / "index.html").write_text("mine")
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert (tmp_path / "report" / "index.html").read_text() == "mine"


def test_without_a_page_nobody_is_looked_at(phantom_store: CohortStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` alone costs what it cost."""

    def looked(*given: Any, **named: Any) -> Any:
        raise AssertionError("the subjects were looked at")

    monkeypatch.setattr("vesalius.datasets.quality.survey", looked)
    assert survey is not looked
    done = CliRunner().invoke(app, ["check", str(phantom_store.path), "--json"])
    assert done.exit_code == 0
    assert "quality" not in json.loads(done.stdout)
