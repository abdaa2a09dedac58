# SPDX-License-Identifier: Apache-2.0
"""The set on disk: lazily read, trimmed by a slice, split by protocol; and the windows drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import MediaError, UsageError
from tests.trainer.prepared import write_noise_set
from trainer.data.layouts import FAKE_AUDIO, REAL_PAIR
from trainer.data.prepared import ClipArrays, PreparedClip, PreparedSet, Sampler

PEOPLE = {f"p{i}": s for i, s in enumerate(["train"] * 4 + ["val", "test"])}


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noise")
    return write_noise_set(folder, splits=PEOPLE, crop_px=16, silence_tokens=7)


def count_reads(data: PreparedSet) -> Any:
    return data._arrays.cache_info()


class TestSet:
    def test_nothing_is_read_before_it_is_asked_for_and_little_is_kept(self, noise: Path):
        data = PreparedSet(noise, cache_bytes=1)
        assert len(data.clips) == 48
        assert {c.length for c in data.clips} == {60}
        assert count_reads(data).misses == 0
        first = data.clips[0].crops
        assert first.shape == (60, 16, 16, 3)
        assert count_reads(data).misses == 1
        for clip in data.clips:
            clip.load()
        assert count_reads(data).currsize == 8  # the least it keeps

    def test_a_clip_that_is_kept_is_not_read_again(self, noise: Path):
        data = PreparedSet(noise)
        clip = data.clips[3]
        assert clip.tokens is not clip.level_dbfs
        assert (count_reads(data).misses, count_reads(data).hits) == (1, 1)

    def test_lazy_or_not_gives_the_same_arrays(self, noise: Path):
        lazy, eager = PreparedSet(noise), PreparedSet(noise, lazy=False)
        assert count_reads(eager).currsize == 48
        for a, b in zip(lazy.clips, eager.clips, strict=True):
            assert a == b  # the labels
            for x, y in zip(a.load(), b.load(), strict=True):
                np.testing.assert_array_equal(x, y)

    def test_trimming_is_a_slice_of_all_four_arrays(self, noise: Path):
        whole, trimmed = PreparedSet(noise), PreparedSet(noise, trimmed=True)
        for a, b in zip(whole.clips, trimmed.clips, strict=True):
            assert (a.silence_tokens, b.silence_tokens) == (7, 7)
            assert (a.length, b.length) == (60, 53)
            np.testing.assert_array_equal(a.crops[7:], b.crops)
            np.testing.assert_array_equal(a.tokens[7:], b.tokens)
            np.testing.assert_array_equal(a.level_dbfs[7:], b.level_dbfs)
            np.testing.assert_array_equal(a.audio[7 * 640 :], b.audio)

    def test_a_clip_of_silence_alone_is_left_out_when_trimmed(self, tmp_path: Path):
        write_noise_set(tmp_path, splits={"p": "train"}, tokens=20, crop_px=8, silence_tokens=20)
        assert len(PreparedSet(tmp_path).clips) == 8
        trimmed = PreparedSet(tmp_path, trimmed=True)
        assert (len(trimmed.clips), trimmed.left_out) == (0, 8)

    def test_protocols_deal_the_same_clips_anew(self, noise: Path):
        data = PreparedSet(noise, protocol="1:1:1:1", fold=3)
        assert {c.split for c in data.clips} == {"train", "val", "test"}
        assert data.left_out == 0
        everybody = {c.identity for c in data.clips}
        assert everybody == set(PEOPLE)
        tested = {c.identity for c in data.select("test")}
        assert tested.isdisjoint(c.identity for c in data.select("train") + data.select("val"))

    def test_an_index_whose_splits_share_a_person_is_refused_on_load(self, tmp_path: Path):
        write_noise_set(tmp_path, splits={"a": "train", "b": "test"}, clips=1, crop_px=8)
        index = json.loads((tmp_path / "index.json").read_text())
        index["clips"][0]["voice_identity"] = "b"
        (tmp_path / "index.json").write_text(json.dumps(index))
        with pytest.raises(UsageError, match="are in two splits"):
            PreparedSet(tmp_path)

    def test_a_set_of_version_1_says_to_prepare_it_again(self, tmp_path: Path):
        (tmp_path / "index.json").write_text(
            json.dumps({"crop_px": 64, "splits": {}, "dropped": {}, "clips": []})
        )
        with pytest.raises(UsageError, match=r"version 1, this program reads 3; prepare it again"):
            PreparedSet(tmp_path)

    def test_an_index_that_lost_a_part_is_refused(self, tmp_path: Path):
        (tmp_path / "index.json").write_text('{"version": 3, "crop_px": 64}')
        with pytest.raises(UsageError, match=r"damaged \(no clips, layout\)"):
            PreparedSet(tmp_path)

    def test_a_folder_that_is_no_set_is_refused(self, tmp_path: Path):
        with pytest.raises(UsageError, match=r"no readable index\.json"):
            PreparedSet(tmp_path)

    @pytest.mark.parametrize("damage", ["gone", "cut", "empty", "flipped", "shorter"])
    def test_a_damaged_array_is_named(self, tmp_path: Path, damage: str):
        write_noise_set(tmp_path, splits={"p": "train"}, clips=1, crop_px=8)
        data = PreparedSet(tmp_path)
        row = json.loads((tmp_path / "index.json").read_text())["clips"][0]
        path = tmp_path / row["array"]
        whole = bytearray(path.read_bytes())
        if damage == "gone":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(whole[: len(whole) // 2])
        elif damage == "empty":
            path.write_bytes(b"")
        elif damage == "flipped":
            whole[1000] ^= 255  # among the crops: the checksum tells
            path.write_bytes(whole)
        else:
            with np.load(path) as arrays:
                np.savez(path, **{k: v[:-1] for k, v in arrays.items()})
        with pytest.raises(MediaError, match=path.name):
            data.clips[0].load()


def clip(
    name: str,
    length: int,
    category: str = REAL_PAIR,
    who: str = "p",
    transport_ms: float | None = None,
) -> PreparedClip:
    """Crops and tokens hold the number of their moment, from a start that is the clip's own."""
    late = round((transport_ms or 0.0) / 40)
    base = sum(map(ord, name + category)) % 97 * 1000
    numbers = np.arange(base, base + length)
    crops = np.zeros((length, 1, 1, 3), np.uint8)
    crops[:, 0, 0, 0], crops[:, 0, 0, 1] = numbers % 256, numbers // 256 % 256
    crops[:, 0, 0, 2] = numbers // 65_536
    arrays = ClipArrays(
        crops,
        np.repeat(numbers[:, None] - late, 104, 1).astype(np.float32),
        np.zeros(length, np.float32),
        np.zeros(length * 640, np.int16),
    )
    fake = category != REAL_PAIR
    return PreparedClip(
        file=f"{category}/{name}",
        identity=who,
        voice_identity=who,
        swapped_identity=None,
        clip=name,
        split="train",
        category=category,
        method="none+vocoded" if fake else "real",
        fake_video=False,
        fake_audio=fake,
        synthetic_voice=fake,
        matched=True,
        groups={},
        silence_tokens=0,
        length=length,
        load=lambda: arrays,
        transport_ms=transport_ms,
    )


def draw(clips: list[PreparedClip], **options: Any) -> list[tuple[int, int, bool, bool]]:
    """(token that the picture starts with, token that the sound does, fake, matched) of windows."""
    sampler = Sampler(
        clips,
        window_tokens=50,
        max_lag_tokens=0,
        forged_shift_tokens=10,
        seed=0,
        modality_dropout=0.0,
        augment=False,
        **options,
    )
    windows = []
    for step in range(60):
        batch = sampler.batch(step, 4)
        first = batch.crops[:, 0, 0, 0].astype(int) @ [1, 256, 65_536]
        for i in range(4):
            sound = int(batch.audio[i, 0, 0])
            windows.append((int(first[i]), sound, bool(batch.fake[i]), bool(batch.matched[i])))
            assert batch.fake_audio[i] == batch.fake[i]
    return windows


class TestTransport:
    """A clip whose sound comes late on its way: where its lips and its voice match is known."""

    @pytest.mark.parametrize("transport_ms", [None, 0.0, 75.0, 200.0, -130.0])
    @pytest.mark.parametrize("length", [52, 61, 90])
    def test_the_label_is_where_the_moments_match(self, transport_ms: float | None, length: int):
        sampler = Sampler(
            [clip("a", length, transport_ms=transport_ms)],
            window_tokens=50,
            max_lag_tokens=5,
            forged_shift_tokens=10,
            seed=0,
            modality_dropout=0.0,
            augment=False,
        )
        labels = set()
        for step in range(60):
            batch = sampler.batch(step, 4, genuine_only=True)
            first = batch.crops[:, 0, 0, 0].astype(int) @ [1, 256, 65_536]
            for picture, sound, lag in zip(
                first, batch.audio[:, 0, 0], batch.lag_tokens, strict=True
            ):
                assert sound + lag == picture
                labels.add(int(lag))
        assert max(map(abs, labels)) <= 5
        if length == 90:  # room for every offset, whatever the clip came with
            assert labels == set(range(-5, 6))

    def test_a_shift_within_the_clip_is_measured_from_where_it_matches(self):
        clips = [
            clip("a", 64, transport_ms=200.0),
            clip("a", 64, FAKE_AUDIO, transport_ms=200.0),
        ]
        forged = [p - s for p, s, fake, matched in draw(clips, remix=1.0) if fake and not matched]
        assert len(forged) > 50
        assert min(forged) == 10  # 14 tokens of room, and only this way 5 more
        assert 15 < max(forged) <= 14 + 5


class TestRemix:
    def test_a_short_clip_alone_is_never_shifted_and_called_forged(self):
        """Five tokens of slack, and a forged shift is ten: there is nothing to remix it with."""
        clips = [clip("a", 55), clip("a", 55, FAKE_AUDIO), clip("b", 55, who="q")]
        windows = draw(clips, remix=1.0)
        assert {fake for *_, fake, _ in windows} == {False, True}
        for picture, sound, _, matched in windows:
            assert picture == sound
            assert matched

    @pytest.mark.parametrize("length", [60, 62, 69, 71, 90])
    def test_shifts_within_a_clip_are_never_below_the_least_forged_one(self, length: int):
        windows = draw([clip("a", length), clip("a", length, FAKE_AUDIO)], remix=1.0)
        forged = [abs(p - s) for p, s, fake, matched in windows if fake and not matched]
        assert len(forged) > 50
        assert min(forged) >= 10
        assert all(p == s for p, s, fake, _ in windows if not fake)

    def test_only_clips_that_can_be_remixed_are(self):
        clips = [clip("a", 55), clip("b", 90, who="q"), clip("a", 55, FAKE_AUDIO)]
        windows = draw(clips, remix=1.0)
        start = clips[1].tokens[0, 0]
        for picture, sound, fake, matched in windows:
            if fake:
                assert not matched
                assert start <= min(picture, sound)
                assert abs(picture - sound) >= 10

    def test_another_copy_of_the_same_recording_is_no_other_voice(self):
        """Two files made from one genuine clip hold the same moments."""
        clips = [clip("a", 55), clip("a", 55), clip("a", 55, FAKE_AUDIO)]
        assert all(matched for *_, matched in draw(clips, remix=1.0))

    def test_two_recordings_of_a_speaker_lend_to_each_other(self):
        clips = [clip("a", 52), clip("b", 52), clip("a", 52, FAKE_AUDIO)]
        start = int(clips[0].tokens[0, 0])
        of_a = range(start, start + 52)
        mixed = [(p, s) for p, s, fake, _ in draw(clips, remix=1.0) if fake]
        assert len(mixed) > 50
        assert all((picture in of_a) != (sound in of_a) for picture, sound in mixed)

    def test_the_same_step_gives_the_same_batch(self):
        clips = [clip("a", 90), clip("a", 90, FAKE_AUDIO)]
        assert draw(clips) == draw(clips)
