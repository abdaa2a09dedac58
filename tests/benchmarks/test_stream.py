# SPDX-License-Identifier: Apache-2.0
"""The benchmark measures what it says: the clip it makes, the stream it runs, its JSON."""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
import pytest

from benchmarks import environment, looped
from benchmarks.stream import __main__ as stream
from runtime.backends import FusionOutput
from runtime.errors import UsageError, UserError
from runtime.media import AudioChunk, VideoChunk
from runtime.spec import PairSpec

av = pytest.importorskip("av", reason="PyAV is not installed")

from runtime.media.file import FileSource  # noqa: E402  (needs PyAV)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """0.8 s of moving bars at 10 frames a second, 120x80, with a 440 Hz tone."""
    path = tmp_path_factory.mktemp("clip") / "bars.mp4"
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 120, 80, "yuv420p"
        sound = out.add_stream("aac", rate=16_000, layout="mono")
        for i in range(8):
            frame = np.full((80, 120, 3), 255, np.uint8)
            frame[:, 10 * i : 10 * i + 20] = 0
            out.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(12_800) / 16_000)
        block = av.AudioFrame.from_ndarray(tone[None].astype(np.float32), "flt", "mono")
        block.sample_rate = 16_000
        out.mux(sound.encode(block))
        out.mux(video.encode())
        out.mux(sound.encode())
    return path


class TestLoop:
    def test_the_clip_is_repeated_to_the_asked_length_size_and_rate(self, clip, tmp_path):
        target = tmp_path / "loop.mp4"
        looped.write_loop(clip, target, seconds=3, width=160, height=160)
        with FileSource(target) as source:
            chunks = list(source)
            assert (source.info.width, source.info.height) == (160, 160)
        times = [c.t_s for c in chunks if isinstance(c, VideoChunk)]
        assert len(times) == 75
        np.testing.assert_allclose(np.diff(times), 1 / 25, atol=1e-3)
        sound = np.concatenate([c.samples for c in chunks if isinstance(c, AudioChunk)])
        assert len(sound) / 16_000 == pytest.approx(3, abs=0.1)
        seconds = sound[: 2 * 16_000].reshape(2, -1)
        assert np.sqrt((seconds**2).mean(axis=1)) == pytest.approx([0.35, 0.35], abs=0.03)

    def test_a_clip_without_sound_is_refused_in_one_line(self, tmp_path):
        silent = tmp_path / "silent.mp4"
        with av.open(str(silent), "w") as out:
            video = out.add_stream("libx264", rate=25)
            video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
            for _ in range(5):
                frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
                out.mux(video.encode(frame))
            out.mux(video.encode())
        with pytest.raises(UsageError, match="needs a clip with picture and sound"):
            looped.write_loop(silent, tmp_path / "out.mp4", seconds=1, width=64, height=64)

    @pytest.mark.parametrize(
        ("shape", "bars"), [((50, 100), "rows"), ((100, 50), "columns"), ((80, 80), None)]
    )
    def test_a_picture_keeps_its_shape_between_black_bars(self, shape, bars):
        fitted = looped.fit(np.full((*shape, 3), 200, np.uint8), 80, 80)
        assert fitted.shape == (80, 80, 3)
        lit = (fitted == 200).all(axis=2)
        assert lit.sum() == (80 * 80 if bars is None else 80 * 40)
        assert lit[40, 40]
        assert lit[0, 40] == (bars != "rows")
        assert lit[40, 0] == (bars != "columns")


class CountingBackend:
    spec = PairSpec()
    provider = "test"
    closed = False

    def encode(self, frames):
        return np.zeros((len(frames), 128), np.float32)

    def fuse(self, visual, audio):
        return FusionOutput(*(np.zeros((len(visual), 2), np.float32) for _ in range(7)))

    def close(self):
        self.closed = True


class TestMetering:
    def test_frames_windows_and_time_are_counted_and_results_passed_on(self):
        inner = CountingBackend()
        with stream.MeteredBackend(inner) as metered:
            assert metered.spec is inner.spec
            assert metered.provider == "test"
            assert metered.encode(np.zeros((3, 64, 64, 3), np.uint8)).shape == (3, 128)
            visual, audio = np.zeros((2, 5, 128), np.float32), np.zeros((2, 5, 104), np.float32)
            assert metered.fuse(visual, audio).logits_av.shape == (2, 2)
        assert (metered.frames, metered.windows) == (3, 2)
        assert metered.seconds > 0
        assert inner.closed

    @pytest.mark.thorough
    def test_peak_memory_sees_an_allocation(self):
        before = environment.peak_memory_mb()
        block = np.ones(max(1, int(before)) * 1_000_000 // 8 + 10_000_000)  # touched: resident
        assert environment.peak_memory_mb() >= before + 40
        del block

    def test_the_environment_names_machine_and_versions(self):
        found = environment.describe()
        assert found["machine"]["cores"] >= 1
        assert found["machine"]["processor"]
        assert found["versions"]["python"] == sys.version.split()[0]
        assert found["versions"]["numpy"] == np.__version__
        json.dumps(found)


class TestCommandLine:
    def test_a_whole_run_prints_the_table_and_writes_json(self, clip, tmp_path, capsys):
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra cpu)")
        pytest.importorskip("onnx", reason="onnx is not installed (extra export)")
        from tests.export.synthetic import write_pair

        pair, output = tmp_path / "pair", tmp_path / "new" / "stream.json"
        write_pair(pair)
        options = f"--loop-to 3 --size 160x120 --threads 1 --model {pair} --output {output}"
        code = stream.main(["--source", str(clip), *options.split()])
        table = capsys.readouterr().out
        assert code == 0
        assert "real-time factor" in table
        assert "peak memory" in table
        result = json.loads(output.read_text())
        assert result["benchmark"] == "stream"
        assert result["media_s"] == pytest.approx(3, abs=0.2)
        assert result["real_time_factor"] == pytest.approx(result["wall_s"] / result["media_s"])
        assert sum(result["stage_s"].values()) == pytest.approx(result["wall_s"])
        assert result["verdicts"] >= 1
        assert result["peak_memory_mb"] > 20
        model = result["model_ms_per_window"]
        assert model["gain"] == pytest.approx(model["whole"] / model["cached"])
        assert model["in_stream"] > 0
        assert result["provider"] == "CPUExecutionProvider"
        assert {"commit", "machine", "versions", "settings"} <= set(result)
        assert [p.name for p in output.parent.iterdir()] == ["stream.json"]

    def test_a_missing_source_is_one_line_and_no_traceback(self, tmp_path, capsys):
        code = stream.main(["--source", str(tmp_path / "none.mp4"), "--loop-to", "1"])
        said = capsys.readouterr().err.strip().splitlines()
        assert code in (1, 2)
        assert "none.mp4" in said[-1]

    def test_an_unwritable_output_is_a_user_error(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match=r"cannot write .*; choose another path"):
            stream.write_json(tmp_path / "file" / "out.json", {})

    @pytest.mark.parametrize("text", ["640", "640x", "641x480", "0x0", "64x-2", "axb"])
    def test_a_wrong_size_is_refused(self, text):
        with pytest.raises(argparse.ArgumentTypeError, match="WIDTHxHEIGHT"):
            looped.parse_size(text)

    @pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "ten", "3601"])
    def test_a_wrong_length_is_refused(self, text):
        with pytest.raises(argparse.ArgumentTypeError, match="from 1 to 3600"):
            looped.parse_seconds(text)

    def test_sizes_and_lengths_are_read(self):
        assert looped.parse_size("640x480") == (640, 480)
        assert looped.parse_seconds("2.5") == 2.5
