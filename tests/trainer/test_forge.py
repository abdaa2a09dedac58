# SPDX-License-Identifier: Apache-2.0
"""Forged sets: splits by identity, balanced donors, and nothing but forgery between the classes."""

from __future__ import annotations

import collections
import csv
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the train extra: pip install '.[train]'")

from runtime.errors import MediaError, UsageError
from runtime.faces import Face
from runtime.spec import AudioSpec, FaceSpec
from trainer.data import forgeries
from trainer.data.clips import Clip, find_faces, read_clip, write_clip
from trainer.data.layouts import find_genuine
from trainer.forge import CATEGORIES, META_COLUMNS, Piece, assign_splits, forge, main, plan

SPEC = AudioSpec()


def pieces(counts: dict[str, int], split: str = "train") -> list[Piece]:
    return [
        Piece(f"/{i}/{n}.mp4", i, split, 0.0, 3.0, f"{n}")
        for i, k in counts.items()
        for n in range(k)
    ]


def picture_clip(tokens: int = 50) -> tuple[Clip, list[Face | None]]:
    """A smooth picture with a textured, moving square where the face is."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 255, (60, 60, 3), dtype=np.uint8)
    frames, faces = [], []
    for i in range(tokens):
        frame = np.full((120, 160, 3), 120, np.uint8)
        frame[30:90, 50 + i % 5 : 110 + i % 5] = texture
        landmarks = np.array([[65.0, 48.0], [95.0, 48.0], [80.0, 68.0]]) + np.array([i % 5, 0])
        crop = np.zeros((64, 64, 3), np.uint8)
        frames.append(frame)
        faces.append(Face(0, crop, (50, 30, 110, 90), landmarks, 60.0, 1.0))
    audio = (0.1 * np.sin(np.arange(tokens * 640) * 0.05)).astype(np.float32)
    return Clip(Path("x.mp4"), frames, audio), faces


class TestPlan:
    def test_every_piece_appears_once_in_each_category(self):
        jobs = plan(pieces({"a": 6, "b": 6}), per_category=1)
        counts = collections.Counter((j.category, j.source.name, j.source.identity) for j in jobs)
        assert set(counts.values()) == {1}
        assert len(counts) == 4 * 12

    def test_donors_are_the_same_speakers_other_clips_each_used_equally_often(self):
        own = pieces({"a": 12, "b": 12})
        jobs = [j for j in plan(own, per_category=1) if j.donor is not None]
        assert jobs
        for job in jobs:
            assert job.donor.identity == job.source.identity
            assert job.donor != job.source
        for category in CATEGORIES[1:]:
            used = collections.Counter(j.donor for j in jobs if j.category == category)
            assert max(used.values()) == 1

    def test_speakers_with_one_clip_lend_to_each_other_within_their_split(self):
        own = pieces({"a": 1, "b": 1, "c": 1}) + pieces({"d": 1, "e": 1}, "test")
        for job in plan(own, per_category=3):
            if job.donor is not None and job.donor != job.source:
                assert job.donor.split == job.source.split

    def test_a_clip_alone_is_never_given_its_own_voice_as_a_replacement(self):
        for job in plan(pieces({"a": 1}), per_category=6):
            assert job.sound not in ("replaced", "dubbed")

    def test_few_clips_are_forged_more_often(self):
        jobs = plan(pieces({"a": 20, "b": 1}), per_category=1, per_identity=8)
        count = collections.Counter((j.source.identity, j.category) for j in jobs)
        assert count["b", "RealVideo-FakeAudio"] == 8
        assert count["a", "RealVideo-FakeAudio"] == 20

    def test_the_same_seed_gives_the_same_plan_and_another_one_does_not(self):
        own = pieces({"a": 9})
        assert plan(own, per_category=2, seed=1) == plan(own, per_category=2, seed=1)
        assert plan(own, per_category=2, seed=1) != plan(own, per_category=2, seed=2)


class TestSplits:
    def test_identities_never_cross(self):
        splits = assign_splits([f"p{i}" for i in range(20)], val=None, test=None, seed=0)
        assert collections.Counter(splits.values()) == {"train": 14, "val": 3, "test": 3}

    def test_two_identities_cannot_be_split(self):
        assert set(assign_splits(["a", "b"], val=None, test=None, seed=0).values()) == {"train"}

    def test_names_that_are_no_identity_are_refused(self):
        with pytest.raises(UsageError, match="no identity named zoe"):
            assign_splits(["a", "b", "c"], val=["zoe"], test=None, seed=0)

    def test_one_name_in_two_splits_is_refused(self):
        with pytest.raises(UsageError, match="--val and --test: b"):
            assign_splits(["a", "b", "c"], val=["b"], test=["b"], seed=0)


class TestSound:
    AUDIO = picture_clip()[0].audio

    def test_a_shift_is_at_least_400_ms_and_keeps_every_sample_but_the_seam(self):
        for seed in range(20):
            out, params = forgeries.shifted(self.AUDIO, SPEC, np.random.default_rng(seed))
            assert 0.4 <= abs(params["shift_s"]) <= 1.0
            back = np.roll(out, -round(params["shift_s"] * 16_000))
            assert (np.abs(back - self.AUDIO) > 1e-6).mean() < 0.02

    def test_a_replacement_has_the_length_and_loudness_of_what_it_replaces(self):
        donor = np.random.default_rng(1).normal(0, 0.01, 5_000).astype(np.float32)
        out, _ = forgeries.replaced(self.AUDIO, donor, np.random.default_rng(0))
        assert len(out) == len(self.AUDIO)
        assert np.sqrt((out**2).mean()) == pytest.approx(np.sqrt((self.AUDIO**2).mean()), rel=0.01)

    def test_the_vocoder_changes_the_pitch_by_the_factor_it_records(self):
        t = np.arange(32_000) / 16_000
        voice = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 12)).astype(np.float32)
        voice *= 0.1
        out, params = forgeries.vocoded(voice, SPEC, np.random.default_rng(3))
        spectrum = np.abs(np.fft.rfft(out[8_000:24_000] * np.hanning(16_000)))
        peak = np.argmax(spectrum[60:220]) + 60  # 1 Hz bins
        assert peak == pytest.approx(120 * params["pitch"], abs=3)
        assert len(out) == len(voice)


class TestPicture:
    @pytest.mark.parametrize("seed", range(3))
    def test_a_self_blend_changes_the_face_and_nothing_far_from_it(self, seed: int):
        clip, faces = picture_clip()
        out, _ = forgeries.self_blend(clip, faces, np.random.default_rng(seed))
        change = np.abs(np.stack(out).astype(int) - np.stack(clip.frames)).max(-1)  # [T, H, W]
        assert change[:, 45:75, 70:95].mean() > 3
        assert change[:, :, :20].max() == 0
        assert change[:, :, 145:].max() == 0

    def test_a_mouth_replay_changes_the_mouth_and_not_the_eyes(self):
        clip, faces = picture_clip()
        donor, donor_faces = picture_clip()
        donor.frames = [255 - f for f in donor.frames]
        out, params = forgeries.mouth_replay(
            clip, faces, donor, donor_faces, 7, np.random.default_rng(0)
        )
        change = np.abs(np.stack(out).astype(int) - np.stack(clip.frames)).max(-1)
        assert change[:, 74:84, 74:86].mean() > 5
        assert change[:, 30:45].max() <= 1
        assert params["offset_tokens"] == 7

    def test_tokens_without_a_face_stay_as_they_are(self):
        clip, faces = picture_clip()
        missing = [None if 10 <= i < 20 else f for i, f in enumerate(faces)]
        out, _ = forgeries.self_blend(clip, missing, np.random.default_rng(0))
        assert all(np.array_equal(out[i], clip.frames[i]) for i in range(10, 20))


class TestFiles:
    def test_a_written_clip_reads_back_with_its_length_and_sound_in_place(self, tmp_path: Path):
        clip, _ = picture_clip(60)
        click = np.zeros(60 * 640, np.float32)
        click[20_000:20_400] = 0.8
        write_clip(tmp_path / "a.mp4", clip.frames, click, SPEC)
        again = read_clip(tmp_path / "a.mp4", SPEC)
        assert again.tokens == 60
        assert len(again.audio) == 60 * 640
        assert abs(int(np.argmax(np.abs(again.audio))) - 20_200) < 400
        difference = np.stack(again.frames).astype(int) - np.stack(clip.frames)
        assert np.abs(difference).mean() < 12  # noise through 4:2:0 H.264

    def test_a_clip_without_sound_is_refused_by_name(self, tmp_path: Path):
        import av

        with av.open(str(tmp_path / "mute.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(5):
                blank = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
                container.mux(stream.encode(blank))
            container.mux(stream.encode(None))
        with pytest.raises(MediaError, match=r"mute\.mp4: training clips need a picture and sound"):
            read_clip(tmp_path / "mute.mp4", SPEC)

    def test_identities_come_from_folders_or_from_a_csv(self, tmp_path: Path):
        for name in ("anna/1.mp4", "anna/2.mp4", "ben/1.mp4", "loose.mp4", "notes.txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        assert [c.identity for c in find_genuine(tmp_path)] == ["anna", "anna", "ben", "loose"]
        rules = tmp_path / "who.csv"
        rules.write_text("file,identity\nanna/*,carla\nloose.mp4,carla\n")
        assert [c.identity for c in find_genuine(tmp_path, rules)] == ["carla"] * 2 + [
            "ben",
            "carla",
        ]

    def test_a_csv_with_other_columns_is_refused(self, tmp_path: Path):
        (tmp_path / "a.mp4").touch()
        (tmp_path / "who.csv").write_text("path,person\n")
        with pytest.raises(UsageError, match="first line must be 'file,identity'"):
            find_genuine(tmp_path, tmp_path / "who.csv")

    def test_an_empty_folder_is_one_clear_line_and_exit_1(self, tmp_path: Path, capsys):
        assert main(["--genuine", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
        assert capsys.readouterr().err.count("\n") == 1

    def test_a_real_clip_becomes_the_four_categories(self, sample_clip: Path, tmp_path: Path):
        """The whole path on a real clip in two pieces; a second run changes nothing."""
        folder = tmp_path / "genuine"
        folder.mkdir()
        (folder / "clip.mp4").write_bytes(sample_clip.read_bytes())
        out = tmp_path / "forged"
        summary = forge(folder, out, segment_s=4.0, seed=3)
        by_category = collections.Counter(r["category"] for r in summary["clips"])
        assert by_category == dict.fromkeys(CATEGORIES, 2)
        with (out / "meta_data.csv").open() as file:
            rows = list(csv.reader(file))
        assert tuple(rows[0]) == META_COLUMNS
        assert len(rows) == 9
        times = {p: p.stat().st_mtime_ns for p in out.rglob("*.mp4")}
        assert len(times) == 8
        assert forge(folder, out, segment_s=4.0, seed=3)["clips"] == summary["clips"]
        assert {p: p.stat().st_mtime_ns for p in out.rglob("*.mp4")} == times
        assert json.loads((out / "forge.json").read_text())["seed"] == 3
        fake = next(r for r in summary["clips"] if r["fake_video"])
        genuine = next(
            r for r in summary["clips"] if r["clip"] == fake["clip"] and r["method"] == "real"
        )
        changed, same = (read_clip(out / r["file"], SPEC) for r in (fake, genuine))
        faces = find_faces(same, FaceSpec())
        token = next(i for i, face in enumerate(faces) if i >= 30 and face is not None)
        x0, y0, x1, y1 = (int(v) for v in faces[token].box)
        difference = np.abs(changed.frames[token].astype(int) - same.frames[token])
        assert difference[y0:y1, x0:x1].mean() > 2 * difference[:20].mean()
