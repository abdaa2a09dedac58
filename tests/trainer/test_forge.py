# SPDX-License-Identifier: Apache-2.0
"""Forged sets: splits by identity, balanced donors, and nothing but forgery between the classes."""

from __future__ import annotations

import collections
import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs the train extra: pip install '.[train]'")

from runtime.errors import MediaError, UsageError
from runtime.spec import AudioSpec, FaceSpec
from trainer.data.clips import Clip, find_faces, read_clip, write_clip
from trainer.data.layouts import CATEGORIES, find_genuine
from trainer.data.nuisance import Nuisance
from trainer.data.plan import Forgery, Piece, _forgery, assign_splits, plan, rotation
from trainer.forge import META_COLUMNS, forge, main
from trainer.forge import _lines as sentences_of

REPOSITORY = Path(__file__).resolve().parents[2]
SPEC = AudioSpec()


def pieces(counts: dict[str, int], split: str = "train") -> list[Piece]:
    return [
        Piece(f"/{i}/{n}.mp4", i, split, 0.0, 3.0, f"{n}")
        for i, k in counts.items()
        for n in range(k)
    ]


def picture_clip(tokens: int = 50) -> Clip:
    """A smooth picture with a textured, moving square, and a tone."""
    texture = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    frames = []
    for i in range(tokens):
        frame = np.full((120, 160, 3), 120, np.uint8)
        frame[30:90, 50 + i % 5 : 110 + i % 5] = texture
        frames.append(frame)
    audio = (0.1 * np.sin(np.arange(tokens * 640) * 0.05)).astype(np.float32)
    return Clip(Path("x.mp4"), frames, audio)


class TestPlan:
    def test_every_piece_appears_once_in_each_category(self):
        jobs = plan(pieces({"a": 6, "b": 6}), per_category=1)
        counts = collections.Counter((j.category, j.source.name, j.source.identity) for j in jobs)
        assert set(counts.values()) == {1}
        assert len(counts) == 4 * 12
        assert len({j.file for j in jobs}) == len(jobs)

    def test_a_method_lends_every_face_and_voice_as_often_as_it_uses_it_up(self):
        own = pieces({"a": 40, "b": 1, "c": 3}) + pieces({"d": 1, "e": 1, "f": 1}, "test")
        jobs = plan(own, per_identity=12)
        for name, donor in (("face_swap", "face_donor"), ("replaced", "voice_donor")):
            groups: dict[tuple[str, ...], list[Forgery]] = {}
            for job in jobs:
                if name in (job.picture, job.sound):
                    key = (job.source.split, job.category, job.picture, job.sound)
                    groups.setdefault(key, []).append(job)
            assert len(groups) >= 4
            for group in groups.values():
                used = collections.Counter(j.source for j in group)
                lent = collections.Counter(getattr(j, donor) for j in group)
                assert used == lent
                assert all(getattr(j, donor) != j.source for j in group)

    def test_as_many_as_can_be_get_another_person(self):
        """Of 4 + 4 + 4 all; of 9 and 3 three each way, and the rest another clip."""
        for counts, others in (({"a": 4, "b": 4, "c": 4}, 12), ({"a": 9, "b": 3}, 6)):
            own = pieces(counts)
            jobs = [_forgery(p, CATEGORIES[1], "none", "replaced", 0, Nuisance(), 0) for p in own]
            donors = rotation(jobs, np.random.default_rng(0))
            crossed = [d.identity != j.source.identity for d, j in zip(donors, jobs, strict=True)]
            assert sum(crossed) == others

    def test_donors_never_come_from_another_split(self):
        own = pieces({"a": 1, "b": 1, "c": 1}) + pieces({"d": 1, "e": 1}, "test")
        lent = 0
        for job in plan(own, per_category=6):
            for donor in (job.face_donor, job.voice_donor):
                if donor is not None:
                    assert donor.split == job.source.split
                    lent += donor.identity != job.source.identity
        assert lent > 10

    def test_a_mouth_is_always_the_speakers_own(self):
        jobs = plan(pieces({"a": 24, "b": 1}), per_identity=6)
        mouths = [j for j in jobs if j.picture == "mouth_replay"]
        assert all(j.face_donor.identity == j.source.identity for j in mouths)
        assert all(j.face_donor != j.source for j in mouths if j.source.identity == "a")
        assert all(j.voice_donor == j.face_donor for j in mouths if j.sound == "dubbed")

    def test_a_clip_alone_is_never_given_its_own_voice_or_face_as_another(self):
        jobs = plan(pieces({"a": 1}), per_category=12)
        assert {j.sound for j in jobs} >= {"shifted", "tts"}
        assert all(j.sound != "replaced" and j.picture != "face_swap" for j in jobs)
        assert len({j.file for j in jobs}) == len(jobs)

    def test_few_clips_are_taken_oftener_genuine_and_forged_alike(self):
        jobs = plan(pieces({"a": 20, "b": 1}), per_identity=8)
        count = collections.Counter((j.source.identity, j.category) for j in jobs)
        assert all(count["b", category] == 8 for category in CATEGORIES)
        assert all(count["a", category] == 20 for category in CATEGORIES)

    def test_a_clip_and_its_forgeries_go_the_same_way(self):
        ways: dict[tuple[str, str, str], set[Nuisance]] = {}
        for job in plan(pieces({"a": 5, "b": 1}), per_identity=4):
            take = job.file.removesuffix(".mp4").rsplit("_", 1)[1]
            ways.setdefault((job.source.identity, job.source.name, take), set()).add(job.nuisance)
        assert all(len(w) == 1 for w in ways.values())
        assert len(set.union(*ways.values())) == len(ways) == 9

    def test_the_balance_is_kept(self):
        jobs = plan(pieces({"a": 4, "b": 4}), balance=(3, 1, 0, 2))
        count = collections.Counter(j.category for j in jobs)
        assert [count[c] for c in CATEGORIES] == [24, 8, 0, 16]

    @pytest.mark.parametrize("balance", [(1, 1, 1), (0, 1, 1, 1), (1, -1, 1, 1)])
    def test_a_balance_that_is_none_is_refused(self, balance: tuple[int, ...]):
        with pytest.raises(UsageError, match="--balance wants four whole numbers"):
            plan(pieces({"a": 2}), balance=balance)

    def test_only_the_chosen_methods_are_dealt(self):
        jobs = plan(pieces({"a": 8}), methods=("self_blend", "shifted"), balance=(1, 1, 1, 0))
        assert {(j.picture, j.sound) for j in jobs} == {
            ("none", "none"),
            ("none", "shifted"),
            ("self_blend", "none"),
        }

    def test_an_unknown_method_and_an_empty_category_are_refused(self):
        with pytest.raises(UsageError, match=r"no method named wav2lip; there are: dubbed, "):
            plan(pieces({"a": 2}), methods=("wav2lip",))
        with pytest.raises(UsageError, match="--methods leaves FakeVideo-RealAudio empty"):
            plan(pieces({"a": 2}), methods=("shifted",))

    def test_the_same_seed_gives_the_same_plan_and_another_one_does_not(self):
        own = pieces({"a": 9})
        assert plan(own, per_category=2, seed=1) == plan(own, per_category=2, seed=1)
        assert plan(own, per_category=2, seed=1) != plan(own, per_category=2, seed=2)

    def test_a_record_says_whose_face_and_voice_it_is_and_how_late_the_sound(self):
        own = pieces({"a": 3, "b": 3})
        for job in plan(own, per_identity=12):
            record = job.record()
            assert record["params"]["transport_ms"] == job.nuisance.transport_ms
            if job.sound == "tts":
                assert record["voice_identity"] is None
            elif job.sound in ("replaced", "dubbed"):
                assert record["voice_identity"] == job.voice_donor.identity
            else:
                assert record["voice_identity"] == job.source.identity
            swapped = job.picture == "face_swap" and job.face_donor.identity != record["identity"]
            assert (record["swapped_identity"] is not None) == swapped
            assert record["synthetic_voice"] == (
                job.sound in ("vocoded", "griffin_lim", "tts", "dubbed")
            )
            assert record["matched"] == (
                job.sound in ("none", "vocoded", "griffin_lim")
                if job.picture != "mouth_replay"
                else job.sound == "dubbed"
            )


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


class TestFiles:
    def test_a_written_clip_reads_back_with_its_length_and_sound_in_place(self, tmp_path: Path):
        clip = picture_clip(60)
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

    def test_lists_that_begin_with_a_byte_order_mark(self, tmp_path: Path):
        (tmp_path / "a.mp4").touch()
        rules, sentences = tmp_path / "who.csv", tmp_path / "said.txt"
        rules.write_text("file,identity\n*,carla\n", encoding="utf-8-sig")
        assert [c.identity for c in find_genuine(tmp_path, rules)] == ["carla"]
        sentences.write_text("good day\n", encoding="utf-8-sig")
        assert sentences_of(sentences) == ("good day",)

    def test_a_csv_with_other_columns_is_refused(self, tmp_path: Path):
        (tmp_path / "a.mp4").touch()
        (tmp_path / "who.csv").write_text("path,person\n")
        with pytest.raises(UsageError, match="first line must be 'file,identity'"):
            find_genuine(tmp_path, tmp_path / "who.csv")

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (b"file,identity\na.mp4\n", "line 2: needs a file, an identity"),
            (b"file,identity\na.mp4,\xff\xfe\n", "cannot be read"),
        ],
    )
    def test_a_csv_that_is_damaged_is_refused(self, tmp_path: Path, text: bytes, reason: str):
        (tmp_path / "a.mp4").touch()
        (tmp_path / "who.csv").write_bytes(text)
        with pytest.raises(UsageError, match=reason):
            find_genuine(tmp_path, tmp_path / "who.csv")

    def test_an_empty_folder_is_one_clear_line_and_exit_1(self, tmp_path: Path, capsys):
        assert main(["--genuine", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
        assert capsys.readouterr().err.count("\n") == 1

    @pytest.mark.thorough
    def test_a_real_clip_becomes_the_four_categories(self, sample_clip: Path, tmp_path: Path):
        """The whole path on a real clip in two pieces; a second run changes nothing."""
        pytest.importorskip("pyworld", reason="needs the train extra: pip install '.[train]'")
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
        assert genuine["params"] == {k: fake["params"][k] for k in ("transport_ms", "nuisance")}
        changed, same = (read_clip(out / r["file"], SPEC) for r in (fake, genuine))
        assert changed.tokens == same.tokens
        faces = find_faces(same, FaceSpec())
        token = next(i for i, face in enumerate(faces) if i >= 30 and face is not None)
        x0, y0, x1, y1 = (int(v) for v in faces[token].box)
        difference = np.abs(changed.frames[token].astype(int) - same.frames[token])
        assert difference[y0:y1, x0:x1].mean() > 2 * difference[:20].mean()

    def test_a_set_of_other_options_is_never_mixed_in(self, tmp_path: Path):
        folder = tmp_path / "genuine"
        write_clip(folder / "a.mp4", picture_clip(60).frames, picture_clip(60).audio, SPEC)
        options = {"methods": ("shifted",), "balance": (1, 1, 0, 0)}
        forge(folder, tmp_path / "out", **options)
        with pytest.raises(UsageError, match=r"made with other options \(max_transport_ms, seed\)"):
            forge(folder, tmp_path / "out", **options, seed=1, max_transport_ms=0.0)

    def test_a_clip_that_is_too_short_is_dropped_and_named(self, tmp_path: Path):
        folder = tmp_path / "genuine"
        write_clip(folder / "a.mp4", picture_clip(60).frames, picture_clip(60).audio, SPEC)
        write_clip(folder / "b.mp4", picture_clip(30).frames, picture_clip(30).audio, SPEC)
        summary = forge(folder, tmp_path / "out", methods=("shifted",), balance=(1, 1, 0, 0))
        assert summary["dropped"] == {"b": "b.mp4: shorter than 1.8 s"}
        assert {r["clip"] for r in summary["clips"]} == {"a"}

    def test_a_clip_that_is_no_media_is_dropped_before_it_is_cut(self, tmp_path: Path):
        folder = tmp_path / "genuine"
        write_clip(folder / "a.mp4", picture_clip(60).frames, picture_clip(60).audio, SPEC)
        (folder / "b.mp4").write_bytes(b"no media" * 99)
        options = {"methods": ("shifted",), "balance": (1, 1, 0, 0), "segment_s": 2.0}
        summary = forge(folder, tmp_path / "out", **options)
        assert list(summary["dropped"]) == ["b"]
        assert "b.mp4" in summary["dropped"]["b"]
        assert len(summary["clips"]) == 2

    def test_a_full_disk_is_one_line_and_what_is_done_is_kept(self, tmp_path: Path, capsys):
        """A limit on the size of a file stands in for the disk; the noisy clip goes beyond it."""
        resource = pytest.importorskip("resource", reason="needs limits on files, as Unix has")
        folder, out = tmp_path / "genuine", tmp_path / "out"
        write_clip(folder / "a.mp4", picture_clip(60).frames, picture_clip(60).audio, SPEC)
        rng = np.random.default_rng(0)
        noise = [rng.integers(0, 255, (120, 160, 3), dtype=np.uint8) for _ in range(60)]
        write_clip(folder / "b.mp4", noise, picture_clip(60).audio, SPEC)
        command = ["--genuine", str(folder), "--output", str(out), "--workers", "1"]
        command += ["--methods", "shifted", "--balance", "1:1:0:0"]
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            assert main(command) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "free some space and run the same command again" in err
        assert not list(out.rglob("*.part"))
        done = {p: p.stat().st_mtime_ns for p in out.rglob("*.mp4")}
        assert len(done) == 2
        (out / ".x.mp4.1.part").touch()  # of a process that was killed
        assert main(command) == 0
        assert len(list(out.rglob("*.mp4"))) == 4
        assert all(p.stat().st_mtime_ns == time_ns for p, time_ns in done.items())
        assert not list(out.rglob("*.part"))

    @pytest.mark.thorough
    def test_a_killed_run_goes_on_to_the_same_set(self, tmp_path: Path):
        """SIGKILL half-way, then the same command: the bytes of an unbroken run.

        That one is a process of its own as well: in this one, a library that some test has loaded
        may flush denormal numbers to zero, and then AAC makes another byte of a fade.
        """
        folder = tmp_path / "genuine"
        for i in range(3):
            clip = picture_clip(60)
            write_clip(folder / f"p{i}" / "a.mp4", clip.frames, clip.audio, SPEC)
        unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
        methods = ("shifted", "replaced", "griffin_lim")
        options = [
            *(sys.executable, "-m", "trainer.forge", "--genuine", str(folder), "--workers", "1"),
            *("--methods", ",".join(methods), "--balance", "1:3:0:0", "--per-identity", "2"),
        ]
        subprocess.run([*options, "--output", str(unbroken)], check=True, cwd=REPOSITORY)
        command = [*options, "--output", str(broken)]
        running = subprocess.Popen(command, cwd=REPOSITORY)
        while running.poll() is None and len(list(broken.rglob("*.mp4"))) < 6:
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        assert not (broken / "forge.json").exists()
        subprocess.run(command, check=True, cwd=REPOSITORY)
        files = sorted(p.relative_to(unbroken) for p in unbroken.rglob("*.*") if p.is_file())
        assert len([p for p in files if p.suffix == ".mp4"]) == 24
        for file in files:
            assert (unbroken / file).read_bytes() == (broken / file).read_bytes(), file
        assert {p.name for p in broken.rglob("*.mp4")} == {p.name for p in unbroken.rglob("*.mp4")}
