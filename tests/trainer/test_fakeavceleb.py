# SPDX-License-Identifier: Apache-2.0
"""FakeAVCeleb as it lies on disk: labels, identities, duplicates, what is missing or wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from runtime.errors import MediaError, UsageError
from tests.trainer.fakeavceleb import from_forged, identity
from trainer.data.fakeavceleb import list_fakeavceleb
from trainer.data.layouts import CATEGORIES, LabelledClip, Listing
from trainer.prepare import list_clips

HEADER = [
    "source",
    "target1",
    "target2",
    "method",
    "category",
    "type",
    "race",
    "gender",
    "path",
    "",
]
A, B, C, D = CATEGORIES
RACE = "Asian (East)"


def make(root: Path, rows: list[tuple[str, ...]], *, header: list[str] | None = None) -> Path:
    """Empty clips and a CSV of (type, source, target1, target2, method, name) rows."""
    for category in CATEGORIES:
        (root / category).mkdir(parents=True, exist_ok=True)
    with (root / "meta_data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header or HEADER)
        for category, source, target1, target2, method, name in rows:
            folder = f"{category}/{RACE}/women/{source}"
            letter = "ABCD"[CATEGORIES.index(category)]
            labels = [method, letter, category, RACE, "women", name, f"FakeAVCeleb/{folder}"]
            writer.writerow([source, target1, target2, *labels])
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / name).touch()
    return root


def only(listing: Listing) -> LabelledClip:
    assert len(listing.clips) == 1
    return listing.clips[0]


class TestLabels:
    @pytest.mark.parametrize(
        ("category", "target1", "target2", "method", "voice", "swapped", "matched"),
        [
            (A, "-", "-", "real", "id00001", None, True),
            (B, "-", "-", "rtvc", "id00001", None, False),
            (C, "id00002", "-", "faceswap", "id00001", "id00002", True),
            (C, "3", "-", "fsgan", "id00001", None, True),
            (C, "id00002", "-", "wav2lip", "id00002", None, True),
            (D, "id00002", "-", "wav2lip", "id00002", None, True),
            (D, "id00002", "id00003", "faceswap-wav2lip", "id00003", "id00002", True),
            (D, "0", "id00003", "fsgan-wav2lip", "id00003", None, True),
            (D, "id00003", "0", "fsgan-wav2lip", "id00003", None, True),
            (D, "-", "-", "a later method", None, None, True),
        ],
    )
    def test_who_is_seen_and_heard(
        self,
        tmp_path: Path,
        category: str,
        target1: str,
        target2: str,
        method: str,
        voice: str | None,
        swapped: str | None,
        matched: bool,
    ):
        root = make(tmp_path, [(category, "id00001", target1, target2, method, "00109_x.mp4")])
        clip = only(list_fakeavceleb(root))
        assert clip.identity == "id00001"
        assert (clip.voice_identity, clip.swapped_identity) == (voice, swapped)
        assert (clip.method, clip.category, clip.matched) == (method, category, matched)
        assert clip.fake_video == category.startswith("FakeVideo")
        assert clip.fake_audio == clip.synthetic_voice == category.endswith("FakeAudio")
        assert clip.groups == {"race": RACE, "gender": "women"}
        assert clip.clip == "00109"
        assert clip.split is None
        assert clip.file == f"{category}/{RACE}/women/id00001/00109_x.mp4"


class TestTable:
    def test_a_file_named_again_counts_once_with_the_plainer_method(self, tmp_path: Path):
        twice = [
            (D, "id00001", "id00002", "-", m, "00109_id00002_wavtolip.mp4")
            for m in ("faceswap-wav2lip", "wav2lip")
        ]
        again = (A, "id00001", "-", "-", "real", "00109.mp4")
        listing = list_fakeavceleb(make(tmp_path, [*twice, again, again]))
        assert [c.method for c in listing.clips] == ["real", "wav2lip"]
        assert listing.notes == [
            "2 rows of meta_data.csv name a file again (1 with all the same, 1 with another "
            "method): the plainer method counts"
        ]

    def test_a_row_whose_file_is_missing_is_dropped_by_name(self, tmp_path: Path):
        rows = [(A, "id00001", "-", "-", "real", f"{n}.mp4") for n in ("00109", "00110")]
        root = make(tmp_path, rows)
        gone = root / A / RACE / "women" / "id00001" / "00110.mp4"
        gone.unlink()
        listing = list_fakeavceleb(root)
        assert only(listing).clip == "00109"
        assert listing.dropped == {
            gone.relative_to(root).as_posix(): "meta_data.csv names it, but the file is missing"
        }

    def test_a_file_without_a_row_gets_its_labels_from_its_folder(self, tmp_path: Path):
        root = make(tmp_path, [(A, "id00001", "-", "-", "real", "00109.mp4")])
        (root / C / RACE / "women" / "id00001").mkdir(parents=True)
        (root / C / RACE / "women" / "id00001" / "00109_id00002_wavtolip.mp4").touch()
        listing = list_fakeavceleb(root)
        assert [c.method for c in listing.clips] == ["real", "unknown"]
        assert listing.notes == ["1 clips are not in meta_data.csv: labels from their folders"]

    @pytest.mark.parametrize("name", ["Unnamed: 9", None])
    def test_the_tenth_column_may_have_been_through_pandas_or_lost_its_comma(
        self, tmp_path: Path, name: str | None
    ):
        header = HEADER[:9] + ([name] if name else [])
        row = (C, "id00001", "id00002", "-", "fsgan", "00109_1.mp4")
        assert only(list_fakeavceleb(make(tmp_path, [row], header=header))).method == "fsgan"

    def test_without_the_tenth_value_the_folder_is_put_together(self, tmp_path: Path):
        root = make(tmp_path, [(C, "id00001", "id00002", "-", "fsgan", "00109_1.mp4")])
        lines = (root / "meta_data.csv").read_text().splitlines()
        bare = "\n".join([lines[0], lines[1].rsplit(",", 1)[0] + ","])
        (root / "meta_data.csv").write_text(bare + "\n")
        assert only(list_fakeavceleb(root)).method == "fsgan"

    def test_races_may_be_spelt_without_brackets_on_disk(self, tmp_path: Path):
        root = make(tmp_path, [(C, "id00001", "id00002", "-", "fsgan", "00109_1.mp4")])
        (root / C / RACE).rename(root / C / "Asian-East")
        clip = only(list_fakeavceleb(root))
        assert clip.method == "fsgan"
        assert clip.groups["race"] == "Asian-East"

    def test_without_the_csv_the_folders_say_what_they_can(self, tmp_path: Path):
        rows = [
            (A, "id00001", "-", "-", "real", "00109.mp4"),
            (B, "id00001", "-", "-", "rtvc", "00109_fake.mp4"),
            (D, "id00001", "id00002", "-", "wav2lip", "00109_id00002_wavtolip.mp4"),
        ]
        root = make(tmp_path, rows)
        (root / "meta_data.csv").unlink()
        listing = list_fakeavceleb(root)
        found = [(c.method, c.identity, c.voice_identity, c.fake_audio) for c in listing.clips]
        assert found == [
            ("real", "id00001", "id00001", False),
            ("rtvc", "id00001", "id00001", True),
            ("unknown", "id00001", None, True),
        ]
        assert listing.notes[0].startswith("no meta_data.csv: categories and identities are the")

    def test_other_columns_are_named(self, tmp_path: Path):
        root = make(tmp_path, [], header=["file", "label", "method"])
        with pytest.raises(UsageError, match=r"meta_data\.csv has no column source, target1.*file"):
            list_fakeavceleb(root)

    def test_a_row_that_names_no_clip_is_pointed_at(self, tmp_path: Path):
        root = make(tmp_path, [(A, "id00001", "-", "-", "real", "00109.mp4")])
        with (root / "meta_data.csv").open("a") as file:
            file.write("id1,-,-,real,A,Nonsense,x,y,1.mp4,FakeAVCeleb/Nonsense/x/y/id1\n")
        with pytest.raises(UsageError, match=r"meta_data\.csv, line 3: .* is no path of a clip"):
            list_fakeavceleb(root)

    def test_a_binary_file_is_no_csv(self, tmp_path: Path):
        root = make(tmp_path, [])
        (root / "meta_data.csv").write_bytes(bytes(range(256)))
        with pytest.raises(UsageError, match=r"meta_data\.csv cannot be read"):
            list_fakeavceleb(root)


class TestBuilder:
    def test_a_forged_set_takes_the_shape_of_fakeavceleb(self, tmp_path: Path):
        """The builder that other tests use: nothing of the forged set is lost or renamed away."""
        records = [
            {"file": f"{i}/{n}-{c}{k}.mp4", "identity": i, "clip": n, "category": c, "donor": d}
            for i, d in (("anna", "ben"), ("ben", None))
            for n in ("x", "y")
            for c in CATEGORIES
            for k in range(1 if c == A else 3)
        ]
        for record in records:
            path = tmp_path / "forged" / str(record["file"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(record["file"]))
        (tmp_path / "forged" / "forge.json").write_text(json.dumps({"clips": records}))
        built = from_forged(tmp_path / "forged", tmp_path / "set")
        listing = list_fakeavceleb(tmp_path / "set")
        assert len(listing.clips) == len(records) == 40
        assert sorted(c.file for c in listing.clips) == sorted(built.files)
        assert {c.path.read_text() for c in listing.clips} == {str(r["file"]) for r in records}
        assert list(listing.dropped) == [built.missing]
        by_person = {c.identity: c for c in listing.clips if c.category == C}
        assert by_person[identity(0)].swapped_identity == identity(1)
        assert by_person[identity(1)].swapped_identity == identity(1)
        genuine = {(c.identity, c.clip) for c in listing.clips if c.category == A}
        assert genuine == {(c.identity, c.clip) for c in listing.clips}


class TestFolders:
    def test_missing_categories_are_named(self, tmp_path: Path):
        (tmp_path / A).mkdir()
        (tmp_path / D).mkdir()
        with pytest.raises(UsageError, match=f"lacks {B}, {C}; FakeAVCeleb has four"):
            list_fakeavceleb(tmp_path)

    def test_a_folder_above_the_set_is_looked_into_once(self, tmp_path: Path):
        root = make(tmp_path / "FakeAVCeleb", [(A, "id00001", "-", "-", "real", "00109.mp4")])
        (root / "meta_data.csv").rename(tmp_path / "meta_data.csv")
        assert only(list_fakeavceleb(tmp_path)).method == "real"
        assert list_clips(tmp_path).layout == "fakeavceleb"

    def test_empty_categories_are_said_so(self, tmp_path: Path):
        make(tmp_path, [])
        with pytest.raises(MediaError, match="the folders of FakeAVCeleb, but no clips"):
            list_fakeavceleb(tmp_path)

    def test_a_clip_at_another_depth_is_dropped_by_name(self, tmp_path: Path):
        root = make(tmp_path, [(A, "id00001", "-", "-", "real", "00109.mp4")])
        (root / B / "loose.mp4").touch()
        listing = list_fakeavceleb(root)
        assert only(listing).category == A
        assert listing.dropped == {
            f"{B}/loose.mp4": "not in a folder <category>/<race>/<gender>/<identity>"
        }


class TestGenuineFolders:
    def test_grid_takes_the_speaker_from_the_folder(self, tmp_path: Path):
        for name in ("s1/a.mpg", "s2/video/b.mpg"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        listing = list_clips(tmp_path)
        assert [(c.file, c.identity, c.method) for c in listing.clips] == [
            ("s1/a.mpg", "s1", "real"),
            ("s2/video/b.mpg", "s2", "real"),
        ]
        assert {c.voice_identity for c in listing.clips} == {"s1", "s2"}

    def test_grid_clips_elsewhere_need_the_csv(self, tmp_path: Path):
        for name in ("s1/a.mpg", "speakers/b.mpg", "speakers/c.mpg"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        who = tmp_path / "who.csv"
        who.write_text("file,identity\nspeakers/b.mpg,s7\n")
        listing = list_clips(tmp_path, "grid", who)
        assert [(c.file, c.identity) for c in listing.clips] == [
            ("s1/a.mpg", "s1"),
            ("speakers/b.mpg", "s7"),
        ]
        assert list(listing.dropped) == ["speakers/c.mpg"]

    def test_any_folder_is_taken_for_genuine_clips(self, tmp_path: Path):
        (tmp_path / "anna").mkdir()
        (tmp_path / "anna" / "1.mp4").touch()
        (tmp_path / "anna" / "1.mov").touch()
        listing = list_clips(tmp_path)
        assert listing.layout == "genuine"
        assert {(c.identity, c.category) for c in listing.clips} == {("anna", A)}

    def test_names_are_for_genuine_clips(self, tmp_path: Path):
        root = make(tmp_path, [(A, "id00001", "-", "-", "real", "00109.mp4")])
        with pytest.raises(UsageError, match="--identities is for genuine clips"):
            list_clips(root, identities=tmp_path / "who.csv")

    def test_a_folder_that_does_not_exist_is_refused(self, tmp_path: Path):
        with pytest.raises(UsageError, match="is no folder; --data wants a folder"):
            list_clips(tmp_path / "nowhere")

    def test_a_forged_set_of_other_keys_is_refused(self, tmp_path: Path):
        (tmp_path / "forge.json").write_text('{"clips": [{"file": "x"}]}')
        with pytest.raises(UsageError, match=r"forge\.json cannot be read .*trainer\.forge"):
            list_clips(tmp_path)
