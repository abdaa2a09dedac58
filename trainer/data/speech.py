# SPDX-License-Identifier: Apache-2.0
"""Forged sound: genuine audio in, forged audio and the parameters out, one seed, one record.

* ``replaced`` another recording's voice (no trace in the sound, the pairing is wrong);
* ``shifted`` the clip's own sound, 0.4 to 1.0 s early or late (the pairing is wrong);
* ``vocoded`` the clip's own voice taken apart and resynthesised by WORLD (Morise et al., 2016) with
  another pitch and vocal-tract length (a vocoder's traces, the pairing is right);
* ``griffin_lim`` the clip's own voice rebuilt from a mel spectrogram with the phases guessed
  (Griffin & Lim, 1984, with the momentum of Perraudin et al., 2013): other traces than WORLD's;
* ``tts`` a sentence read by a text-to-speech voice over the span in which the person speaks.

A synthetic voice is put into the recording that it is meant to pass for: the room's noise under
it, the recording's mean log-mel spectrum over it.  What is left is how speech is synthesised, not
which microphone it lacks.

Text-to-speech is hibari-tts (Apache-2.0, its voice lies in the wheel) or, where the program is on
PATH, espeak-ng (GPL, run as a program, never imported).
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import wave
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime import leftovers, waits
from runtime.errors import DependencyError, MediaError
from runtime.optional import optional
from runtime.sound.tokens import _online_fbank
from runtime.spec import AudioSpec

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Params = dict[str, Any]
Rng = np.random.Generator

MIN_SHIFT_S, MAX_SHIFT_S = 0.4, 1.0  # below 0.4 s it would be transport, not forgery
SEAM_S = 0.03
FFT = 512
HOP = 128
MAX_EQUALISER_DB = 15.0
QUIET_SHARE = 0.1  # of the frames: the room without the person
QUIET_POWER = 0.4  # of the room's mean power is that quantile, if a third of the clip is pauses
RUMBLE_HZ = 60.0
ONSET_DB = 15.0  # above the quiet frames: speech
TTS_VOICES = ("hibari", "espeak-ng")
ESPEAK_TIMEOUT_S = 60

# The command sentences of the GRID corpus (Cooke et al., 2006): 64,000 of them.
GRAMMAR = (
    ("bin", "lay", "place", "set"),
    ("blue", "green", "red", "white"),
    ("at", "by", "in", "with"),
    tuple("ABCDEFGHIJKLMNOPQRSTUVXYZ"),
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    ("again", "now", "please", "soon"),
)


def replaced(audio: Float32, donor: Float32) -> Float32:
    """audio [n], donor [m] -> donor's sound at the length and loudness of ``audio`` [n]."""
    return match_loudness(np.resize(donor, len(audio)).astype(np.float32), audio)


def shifted(
    audio: Float32, spec: AudioSpec, rng: Rng, transport_ms: float = 0.0
) -> tuple[Float32, Params]:
    """audio [n] rolled by 0.4 to 1.0 s, its end faded into its beginning; > 0: it comes late.

    The way is that of the transport which the clip will get, so the two never cancel out.
    """
    way = float(np.sign(transport_ms)) or float(rng.choice([-1, 1]))
    shift_s = float(rng.uniform(MIN_SHIFT_S, MAX_SHIFT_S)) * way
    shift = round(shift_s * spec.sample_rate_hz)
    fade = min(round(SEAM_S * spec.sample_rate_hz), len(audio) // 4)
    angle = np.linspace(0, np.pi / 2, fade, dtype=np.float32)
    loop = audio.copy()
    loop[:fade] = audio[:fade] * np.sin(angle)
    # what comes before the beginning is the end: it fades out under the first samples
    loop[:fade] += audio[-fade:][::-1] * np.cos(angle)
    return np.roll(loop, shift), {"shift_s": shift / spec.sample_rate_hz}


def vocoded(audio: Float32, spec: AudioSpec, rng: Rng) -> tuple[Float32, Params]:
    """audio [n] through WORLD, pitch times 0.85 to 1.2, vocal tract warped by up to 8 percent.

    Raises :class:`DependencyError` where pyworld is missing.
    """
    with optional("to forge a voice"):
        import pyworld
    pitch, warp = float(rng.uniform(0.85, 1.2)), float(rng.uniform(0.92, 1.08))
    rate, x = spec.sample_rate_hz, audio.astype(np.float64)
    f0, times = pyworld.dio(x, rate)
    f0 = pyworld.stonemask(x, f0, times, rate)
    envelope = pyworld.cheaptrick(x, f0, times, rate)  # [frames, bins]
    aperiodicity = pyworld.d4c(x, f0, times, rate)
    warped = _warped(envelope, warp)
    y = pyworld.synthesize(f0 * pitch, np.ascontiguousarray(warped), aperiodicity, rate)
    out = _fitted(y, len(audio))
    params = {"pitch": round(pitch, 4), "warp": round(warp, 4)}
    return match_channel(out, audio, spec, rng), params


def griffin_lim(audio: Float32, spec: AudioSpec, rng: Rng) -> tuple[Float32, Params]:
    """audio [n] rebuilt from its mel spectrogram, 48 to 96 bands, 24 to 60 rounds."""
    bands, rounds = int(rng.integers(48, 97)), int(rng.integers(24, 61))
    warp = float(rng.uniform(0.94, 1.06))
    filters = _mel_filters(bands, spec.sample_rate_hz)  # [bands, bins]
    power = np.abs(_stft(audio)) ** 2  # [bins, frames]
    mel = filters @ power
    magnitude = np.sqrt(np.maximum(np.linalg.pinv(filters) @ mel, 1e-12))
    magnitude = _warped(magnitude.T, warp).T
    y = _phases(magnitude, rounds, len(audio), rng)
    params = {"bands": bands, "rounds": rounds, "warp": round(warp, 4)}
    return match_channel(y, audio, spec, rng), params


def tts(
    audio: Float32,
    spec: AudioSpec,
    rng: Rng,
    *,
    sentences: tuple[str, ...] = (),
    voice: str = TTS_VOICES[0],
) -> tuple[Float32, Params]:
    """audio [n] -> a sentence read over the span in which ``audio`` has speech.

    ``sentences`` are drawn from; none means the sentences of the GRID corpus.  ``timbre`` is the
    factor by which the voice is played faster, pitch and resonances with it, at the same pace.
    Raises :class:`DependencyError` where the voice is not installed.
    """
    timbre = float(rng.uniform(0.82, 1.06))
    first, last = speech_span(audio, spec)
    wanted_s = (last - first) / spec.sample_rate_hz
    text: list[str] = []
    spoken: list[Float32] = []
    length, speed = 0, 1.0
    seed = int(rng.integers(2**31))
    while length < 0.6 * (last - first) or not text:
        text.append(_sentence(sentences, rng))
        plain = _read(text[-1], voice, 1.0, timbre, seed, spec)
        if not spoken:  # the pace follows the clip's, as far as a voice can
            speed = float(np.clip(len(plain) / spec.sample_rate_hz / wanted_s, 0.75, 1.35))
        part = _read(text[-1], voice, speed, timbre, seed, spec)
        pause = np.zeros(round(float(rng.uniform(0.15, 0.4)) * spec.sample_rate_hz), np.float32)
        spoken += [part, pause]
        length += len(part) + len(pause)
    out = np.zeros(len(audio), np.float32)
    speech = np.concatenate(spoken)[: len(audio) - first]
    out[first : first + len(speech)] = speech
    params = {"voice": voice, "text": text, "speed": round(speed, 4), "timbre": round(timbre, 4)}
    return match_channel(out, audio, spec, rng), params


# --- the recording around a synthetic voice ----------------------------------------------------


def match_loudness(audio: Float32, like: Float32) -> Float32:
    """Scaled to the same root mean square, so that loudness separates nothing."""
    rms, wanted = np.sqrt(np.mean(audio**2)), np.sqrt(np.mean(like**2))
    return (audio * (wanted / rms if rms > 1e-6 else 1.0)).astype(np.float32)


def match_channel(
    audio: Float32, like: Float32, spec: AudioSpec, rng: Rng, rounds: int = 4
) -> Float32:
    """``audio`` [n] over the room noise and the rumble of ``like``, with its mean log-mel spectrum.

    Below the voice (:data:`RUMBLE_HZ`) the sound is that of ``like``: hum and the converter's
    offset lie there, no resynthesis keeps them, and they show in the level of every pause.
    """
    mel_hz = _mel_centres(spec.mel_bins, spec.low_hz, spec.high_hz)
    bins_hz = np.linspace(0, spec.sample_rate_hz / 2, FFT // 2 + 1)
    wanted = log_mel(like, spec).mean(0)  # [26]
    limit = MAX_EQUALISER_DB * np.log(10) / 20
    room, voice = _room(like, rng), _stft(match_loudness(audio, like))
    rumble = _below(like, spec)
    total = np.zeros(len(mel_hz))  # log of each band's gain
    for _ in range(rounds + 1):
        gain = np.exp(np.interp(bins_hz, mel_hz, total))[:, None]  # [bins, 1]
        out = _istft(voice * gain, len(audio)) + room
        out += rumble - _below(out, spec)
        total = np.clip(total + (wanted - log_mel(out, spec).mean(0)) / 2, -limit, limit)
    return out


def log_mel(audio: Float32, spec: AudioSpec) -> Float32:
    """[frames, 26]: the runtime's log-mel energies before stacking and LayerNorm."""
    bank = _online_fbank(spec)
    bank.accept_waveform(float(spec.sample_rate_hz), np.ascontiguousarray(audio, np.float32))
    bank.input_finished()
    return np.stack([np.array(bank.get_frame(i)) for i in range(bank.num_frames_ready)])


def speech_span(audio: Float32, spec: AudioSpec) -> tuple[int, int]:
    """First and last sample of speech; the whole of a sound that never stands out of its noise."""
    hop = spec.hop_samples
    frames = audio[: len(audio) // hop * hop].reshape(-1, hop)
    level = 10 * np.log10((frames.astype(np.float64) ** 2).mean(1) + 1e-10)  # [frames] dB
    loud = np.flatnonzero(level > np.quantile(level, QUIET_SHARE) + ONSET_DB)
    if len(loud) < spec.sample_rate_hz // hop // 2:  # less than half a second
        return 0, len(audio)
    return int(loud[0]) * hop, (int(loud[-1]) + 1) * hop


def _below(audio: Float32, spec: AudioSpec) -> Float32:
    """The part of ``audio`` [n] below the voice."""
    from scipy.signal import butter, sosfiltfilt

    filters = butter(4, RUMBLE_HZ, fs=spec.sample_rate_hz, output="sos")
    return np.asarray(sosfiltfilt(filters, audio.astype(np.float64)), np.float32)


def _room(audio: Float32, rng: Rng) -> Float32:
    """Steady noise [n] with the spectrum of what is always there in ``audio``."""
    power = np.abs(_stft(audio)) ** 2  # [bins, frames]
    quiet = np.quantile(power, QUIET_SHARE, axis=1) / QUIET_POWER  # [bins]
    white = _stft(rng.standard_normal(len(audio)).astype(np.float32))
    scale = np.sqrt(quiet / np.maximum((np.abs(white) ** 2).mean(1), 1e-12))
    return _istft(white * scale[:, None], len(audio))


# --- voices ------------------------------------------------------------------------------------


def _sentence(sentences: tuple[str, ...], rng: Rng) -> str:
    if sentences:
        return sentences[int(rng.integers(len(sentences)))]
    return " ".join(words[int(rng.integers(len(words)))] for words in GRAMMAR)


def _read(
    text: str, voice: str, speed: float, timbre: float, seed: int, spec: AudioSpec
) -> Float32:
    """Speech without the silence around it, at the spec's rate."""
    from scipy.signal import resample_poly

    pace = speed / timbre
    if voice == "hibari":
        speech, rate = _hibari()(text, speed=min(2.0, max(0.5, pace)), seed=seed), 24_000
    elif voice == "espeak-ng":
        speech, rate = _espeak(text, pace)
    else:
        raise ValueError(f"no voice {voice}; there are {', '.join(TTS_VOICES)}")
    loud = np.flatnonzero(np.abs(speech) > 0.01 * np.abs(speech).max(initial=1e-6))
    if not len(loud):
        raise MediaError(f"the voice {voice} said nothing for {text!r}")
    speech = speech[loud[0] : loud[-1] + 1]
    down = round(rate * timbre / 100)
    return np.asarray(resample_poly(speech, spec.sample_rate_hz // 100, down), np.float32)


@functools.cache
def _hibari() -> Any:
    with optional("to forge a voice"):
        from hibari import Hibari  # type: ignore[import-untyped]
    return Hibari(threads=1)


def _espeak(text: str, pace: float) -> tuple[Float32, int]:
    """(samples in [-1, 1], rate) from the program espeak-ng."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise DependencyError("espeak-ng is not on PATH; install it, or choose the voice hibari")
    with leftovers.folder() as folder:
        path = folder / "speech.wav"
        command = [program, "-v", "en", "-s", str(round(175 * pace)), "-w", str(path), text]
        try:
            waits.run_program(command, check=True, capture_output=True, timeout=ESPEAK_TIMEOUT_S)
            with wave.open(str(path)) as file:
                data = np.frombuffer(file.readframes(file.getnframes()), "<i2")
                return (data / 32768).astype(np.float32), file.getframerate()
        except (OSError, subprocess.SubprocessError, wave.Error, EOFError) as err:
            raise MediaError(f"espeak-ng did not speak ({err})") from err


# --- spectra -----------------------------------------------------------------------------------


def _stft(audio: Float32) -> npt.NDArray[np.complex128]:
    """[n] -> [257, frames], centred, Hann."""
    from scipy.signal import stft

    return stft(audio.astype(np.float64), nperseg=FFT, noverlap=FFT - HOP)[2]


def _istft(spectrum: npt.NDArray[np.complex128], length: int) -> Float32:
    from scipy.signal import istft

    return _fitted(istft(spectrum, nperseg=FFT, noverlap=FFT - HOP)[1], length)


def _phases(magnitude: Float64, rounds: int, length: int, rng: Rng) -> Float32:
    """Fast Griffin-Lim: a signal [length] whose spectrogram is near ``magnitude`` [257, frames]."""
    angles = np.exp(2j * np.pi * rng.random(magnitude.shape))
    before = np.zeros_like(angles)
    for _ in range(rounds):
        rebuilt = _stft(_istft(magnitude * angles, length))[:, : magnitude.shape[1]]
        step = rebuilt + 0.99 * (rebuilt - before)
        before = rebuilt
        angles = step / np.maximum(np.abs(step), 1e-12)
    return _istft(magnitude * angles, length)


def _fitted(audio: npt.NDArray[Any], length: int) -> Float32:
    """Cut, or filled with zeros, to ``length``."""
    out = np.zeros(length, np.float32)
    out[: min(len(audio), length)] = audio[:length]
    return out


def _warped(spectrum: Float64, factor: float) -> Float64:
    """[frames, bins] with the frequency axis stretched by ``factor``."""
    bins = np.arange(spectrum.shape[1])
    source = np.clip(bins / factor, 0, bins[-1])
    low = source.astype(int)
    high, part = np.minimum(low + 1, bins[-1]), source - low
    return spectrum[:, low] * (1 - part) + spectrum[:, high] * part


def _mel(hz: npt.ArrayLike) -> Float64:
    return 1127 * np.log1p(np.asarray(hz, np.float64) / 700)


def _mel_centres(bands: int, low_hz: float, high_hz: float, edges: bool = False) -> Float64:
    """Centre frequencies [bands], with the two outer edges [bands + 2] where asked."""
    points = np.linspace(_mel(low_hz), _mel(high_hz), bands + 2)
    hz = 700 * np.expm1(points / 1127)
    return hz if edges else hz[1:-1]


def _mel_filters(bands: int, rate_hz: int) -> Float64:
    """Triangles [bands, 257]."""
    edges = _mel(_mel_centres(bands, 20.0, rate_hz / 2, edges=True))[:, None]  # [bands + 2, 1]
    mel = _mel(np.linspace(0, rate_hz / 2, FFT // 2 + 1))[None]  # [1, bins]
    rising = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mel) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rising, falling), 0)
