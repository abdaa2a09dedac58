# SPDX-License-Identifier: Apache-2.0
"""Forged sound: the trace that is named, in the level and the spectrum of the genuine recording."""

from __future__ import annotations

import os
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs the train extra: pip install '.[train]'")

from runtime.errors import DependencyError, MediaError
from runtime.spec import AudioSpec
from trainer.data import speech

SPEC = AudioSpec()
RATE = SPEC.sample_rate_hz


def voice(pitch_hz: float = 120.0, seconds: float = 2.0, noise: float = 1e-3) -> np.ndarray:
    """Half a second of room noise, syllables of a buzzing voice, half a second of noise."""
    rng = np.random.default_rng(0)
    t = np.arange(round(seconds * RATE)) / RATE
    buzz = sum(np.sin(2 * np.pi * pitch_hz * k * t) / k for k in range(1, 16))
    syllables = 0.55 + 0.45 * np.sin(2 * np.pi * 4 * t)
    quiet = np.zeros(RATE // 2)
    sound = np.concatenate([quiet, 0.1 * buzz * syllables, quiet])
    return (sound + noise * rng.standard_normal(len(sound))).astype(np.float32)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x.astype(np.float64) ** 2)))


class TestPairing:
    def test_a_shift_is_at_least_400_ms_and_keeps_every_sample_but_the_seam(self):
        audio = voice()
        ways = set()
        for seed in range(20):
            out, params = speech.shifted(audio, SPEC, np.random.default_rng(seed))
            assert 0.4 <= abs(params["shift_s"]) <= 1.0
            back = np.roll(out, -round(params["shift_s"] * RATE))
            assert (np.abs(back - audio) > 1e-6).mean() < 0.02
            ways.add(np.sign(params["shift_s"]))
        assert ways == {-1, 1}

    @pytest.mark.parametrize("transport_ms", [-200.0, 130.0])
    def test_transport_never_takes_a_shift_below_400_ms(self, transport_ms: float):
        for seed in range(10):
            rng = np.random.default_rng(seed)
            _, params = speech.shifted(voice(), SPEC, rng, transport_ms)
            assert abs(params["shift_s"] + transport_ms / 1000) >= 0.4 + abs(transport_ms) / 1000

    def test_the_seam_of_a_shift_is_no_click(self):
        audio = (0.3 * np.sin(np.arange(48_000) * 0.05 + 1)).astype(np.float32)
        out, _ = speech.shifted(audio, SPEC, np.random.default_rng(0))
        assert np.abs(np.diff(out)).max() < 1.7 * np.abs(np.diff(audio)).max()

    def test_a_replacement_has_the_length_and_loudness_of_what_it_replaces(self):
        donor = np.random.default_rng(1).normal(0, 0.01, 5_000).astype(np.float32)
        out = speech.replaced(voice(), donor)
        assert len(out) == len(voice())
        assert rms(out) == pytest.approx(rms(voice()), rel=1e-3)


class TestResynthesis:
    def test_world_changes_the_pitch_by_the_factor_it_records(self):
        pytest.importorskip("pyworld", reason="needs the train extra: pip install '.[train]'")
        out, params = speech.vocoded(voice(120), SPEC, np.random.default_rng(3))
        middle = out[RATE : 2 * RATE]
        spectrum = np.abs(np.fft.rfft(middle * np.hanning(RATE)))
        peak = np.argmax(spectrum[60:220]) + 60  # 1 Hz bins
        assert peak == pytest.approx(120 * params["pitch"], abs=4)

    def test_griffin_lim_keeps_the_pitch_and_changes_the_samples(self):
        audio = voice(200)
        out, _ = speech.griffin_lim(audio, SPEC, np.random.default_rng(0))
        spectrum = np.abs(np.fft.rfft(out[RATE : 2 * RATE] * np.hanning(RATE)))
        assert abs(np.argmax(spectrum[60:350]) + 60 - 200) <= 16  # a mel band is that wide
        assert abs(np.corrcoef(out, audio)[0, 1]) < 0.9

    def test_more_rounds_come_nearer_to_the_spectrogram_that_is_asked_for(self):
        magnitude = np.abs(speech._stft(voice()))
        error = []
        for rounds in (1, 40):
            rng = np.random.default_rng(0)
            out = speech._phases(magnitude, rounds, len(voice()), rng)
            error.append(np.linalg.norm(np.abs(speech._stft(out)) - magnitude))
        assert error[1] < 0.4 * error[0]

    @pytest.mark.parametrize("name", ["vocoded", "griffin_lim"])
    def test_the_mean_log_mel_spectrum_stays(self, name: str):
        if name == "vocoded":
            pytest.importorskip("pyworld", reason="needs the train extra: pip install '.[train]'")
        audio = voice()
        out, _ = getattr(speech, name)(audio, SPEC, np.random.default_rng(1))
        assert len(out) == len(audio)
        difference = speech.log_mel(out, SPEC).mean(0) - speech.log_mel(audio, SPEC).mean(0)
        assert np.abs(difference).mean() < 0.3  # nepers of power: 1.3 dB

    def test_pyworld_missing_is_one_line_with_the_remedy(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(sys.modules, "pyworld", None)
        with pytest.raises(DependencyError, match=r"pyworld-prebuilt is needed .*: pip install"):
            speech.vocoded(voice(), SPEC, np.random.default_rng(0))


class TestTextToSpeech:
    def test_a_sentence_is_read_over_the_span_of_the_speech(self):
        pytest.importorskip("hibari", reason="needs the train extra: pip install '.[train]'")
        audio = voice()
        out, params = speech.tts(audio, SPEC, np.random.default_rng(0))
        assert len(out) == len(audio)
        words = params["text"][0].split()
        assert all(w in column for w, column in zip(words, speech.GRAMMAR, strict=True))
        first, last = speech.speech_span(out, SPEC)
        assert abs(first - RATE // 2) < 0.15 * RATE
        assert last - first > 0.6 * RATE
        difference = speech.log_mel(out, SPEC).mean(0) - speech.log_mel(audio, SPEC).mean(0)
        assert np.abs(difference).mean() < 1.0
        assert np.abs(out[: RATE // 4]).max() > 1e-4  # the room, no digital silence

    def test_one_seed_is_one_reading(self):
        pytest.importorskip("hibari", reason="needs the train extra: pip install '.[train]'")
        a, first = speech.tts(voice(), SPEC, np.random.default_rng(5), sentences=("good day",))
        b, again = speech.tts(voice(), SPEC, np.random.default_rng(5), sentences=("good day",))
        assert np.array_equal(a, b)
        assert first == again
        assert set(first["text"]) == {"good day"}

    def test_hibari_missing_is_one_line_with_the_remedy(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(sys.modules, "hibari", None)
        speech._hibari.cache_clear()
        with pytest.raises(DependencyError, match=r"hibari-tts is needed .*: pip install"):
            speech.tts(voice(), SPEC, np.random.default_rng(0))

    def test_espeak_is_a_program_on_path_or_an_error_that_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(DependencyError, match="espeak-ng is not on PATH"):
            speech.tts(voice(), SPEC, np.random.default_rng(0), voice="espeak-ng")
        spoken = tmp_path / "spoken.wav"
        with wave.open(str(spoken), "wb") as file:
            file.setparams((1, 2, 22_050, 0, "NONE", ""))
            tone = 8000 * np.sin(np.arange(22_050) * 0.1)
            file.writeframes(tone.astype("<i2").tobytes())
        program = tmp_path / "espeak-ng"
        lines = [
            "#!/bin/sh",
            '[ "$1" = -v ] || exit 3',
            f'/bin/cp {spoken} "$6"',
            f'echo "$7" > {tmp_path}/text',
        ]
        program.write_text("\n".join(lines))
        program.chmod(0o755)
        rng = np.random.default_rng(0)
        out, params = speech.tts(voice(), SPEC, rng, sentences=("one",), voice="espeak-ng")
        assert params["voice"] == "espeak-ng"
        assert (tmp_path / "text").read_text() == "one\n"
        assert speech.speech_span(out, SPEC)[0] == pytest.approx(RATE // 2, abs=0.15 * RATE)

    @pytest.mark.skipif(os.name == "nt", reason="a shell script stands for the program")
    def test_a_program_that_fails_is_a_media_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        (tmp_path / "espeak-ng").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "espeak-ng").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(MediaError, match="espeak-ng did not speak"):
            speech.tts(voice(), SPEC, np.random.default_rng(0), voice="espeak-ng")


class TestRecording:
    def test_the_span_of_speech_is_found(self):
        first, last = speech.speech_span(voice(), SPEC)
        assert first == pytest.approx(RATE // 2, abs=400)
        assert last == pytest.approx(len(voice()) - RATE // 2, abs=400)

    def test_a_sound_that_never_stands_out_is_taken_whole(self):
        noise = np.random.default_rng(0).normal(0, 0.01, RATE).astype(np.float32)
        assert speech.speech_span(noise, SPEC) == (0, RATE)

    def test_the_room_has_the_level_of_the_pauses(self):
        room = speech._room(voice(noise=1e-3), np.random.default_rng(1))
        assert rms(room) == pytest.approx(1e-3, rel=0.5)

    def test_a_filter_is_undone(self):
        """What another microphone does to the spectrum is gone after matching."""
        audio = voice(noise=3e-3)
        dull = np.convolve(audio, np.array([0.5, 0.5], np.float32), "same").astype(np.float32)
        out = speech.match_channel(dull, audio, SPEC, np.random.default_rng(0))
        wanted = speech.log_mel(audio, SPEC).mean(0)
        before = np.abs(speech.log_mel(dull, SPEC).mean(0) - wanted).max()
        after = np.abs(speech.log_mel(out, SPEC).mean(0) - wanted).max()
        assert before > 1.5
        assert after < 0.4 * before
