# SPDX-License-Identifier: Apache-2.0
"""Sound -> 104-d log-mel tokens at 25 Hz, the same tokens however the sound is chunked.

Sources: the filter bank is kaldi's, by kaldi-native-fbank; stacking four 10 ms frames of 26 bins
to one token and the non-affine LayerNorm over its 104 numbers follow AV-HuBERT (Shi et al., 2022).
Token i reads samples [640 i, 640 i + 880): its last frame looks 15 ms past the token's end.

Digital silence gives one value in every bin, which the LayerNorm maps to an all-zero token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.optional import optional
from runtime.spec import AudioSpec

Float32 = npt.NDArray[np.float32]

SILENCE_DBFS = -120.0  # floor of a token's level


class AudioTokens(NamedTuple):
    """Consecutive tokens and how loud each is."""

    tokens: Float32  # [k, 104], each token with mean 0 and variance 1 (silence: all zero)
    level_dbfs: Float32  # [k], root mean square over the token's own 40 ms; full scale is 0

    @classmethod
    def empty(cls, spec: AudioSpec) -> AudioTokens:
        return cls(np.zeros((0, spec.token_dim), np.float32), np.zeros(0, np.float32))

    @classmethod
    def concatenate(cls, parts: list[AudioTokens]) -> AudioTokens:
        """Parts must be in order and at least one."""
        return cls(
            np.concatenate([p.tokens for p in parts]), np.concatenate([p.level_dbfs for p in parts])
        )


class AudioTokenizer:
    """Streaming features: push samples in any pieces, then :meth:`finish` once.

    Whole tokens come out as soon as their 880 samples are there; :meth:`finish` pads with zeros
    so that ``n`` samples give ``n // 640`` tokens in all.

    Raises :class:`runtime.errors.DependencyError` where kaldi-native-fbank is not installed.
    """

    def __init__(self, spec: AudioSpec) -> None:
        self.spec = spec
        self._fbank = _online_fbank(spec)
        self._pending = np.zeros(0, np.float32)  # samples of tokens not yet given out
        self._frames: list[Float32] = []  # log-mel frames not yet stacked, each [26]
        self._popped = 0  # frames taken out of kaldi's buffer
        self._received = 0  # samples
        self._emitted = 0  # tokens
        self._finished = False

    def push(self, samples: npt.NDArray[Any]) -> AudioTokens:
        """samples: mono float [n] in [-1, 1], NaN not allowed -> the tokens they complete."""
        assert not self._finished, "push after finish"
        assert samples.ndim == 1, f"mono samples [n] expected, got shape {samples.shape}"
        chunk = np.ascontiguousarray(samples, dtype=np.float32)
        self._received += len(chunk)
        self._pending = np.concatenate([self._pending, chunk])
        return self._advance(chunk)

    def finish(self) -> AudioTokens:
        """The last tokens, with zeros in place of the samples that their last frame lacks."""
        assert not self._finished, "finish called twice"
        total = self._received // self.spec.token_samples
        lacking = (total - 1) * self.spec.token_samples + self.spec.token_span_samples
        padding = np.zeros(max(0, lacking - self._received) if total else 0, np.float32)
        tokens = self._advance(padding)
        self._finished = True
        return tokens

    def _advance(self, chunk: Float32) -> AudioTokens:
        if len(chunk):
            # a list: kaldi-native-fbank reads Python's own numbers in half the time of an array's
            self._fbank.accept_waveform(float(self.spec.sample_rate_hz), chunk.tolist())
        ready = self._fbank.num_frames_ready
        for i in range(self._popped, ready):
            self._frames.append(np.array(self._fbank.get_frame(i), np.float32))
        self._fbank.pop(ready - self._popped)
        self._popped = ready

        n = min(
            len(self._frames) // self.spec.stack,
            self._received // self.spec.token_samples - self._emitted,
        )
        if n <= 0:
            return AudioTokens.empty(self.spec)
        taken = n * self.spec.stack
        stacked = np.stack(self._frames[:taken]).reshape(n, self.spec.token_dim)  # [n, 104]
        del self._frames[:taken]
        own = self._pending[: n * self.spec.token_samples].reshape(n, -1)  # [n, 640]
        self._pending = self._pending[n * self.spec.token_samples :].copy()
        self._emitted += n
        return AudioTokens(_layer_norm(stacked, self.spec.layer_norm_eps), _level_dbfs(own))


def tokenize(samples: npt.NDArray[Any], spec: AudioSpec) -> AudioTokens:
    """The batch form: mono samples [n] in [-1, 1] -> ``n // 640`` tokens."""
    tokenizer = AudioTokenizer(spec)
    return AudioTokens.concatenate([tokenizer.push(samples), tokenizer.finish()])


def _online_fbank(spec: AudioSpec) -> Any:
    with optional("to hear"):
        import kaldi_native_fbank as knf
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = spec.sample_rate_hz
    options.frame_opts.frame_length_ms = spec.window_ms
    options.frame_opts.frame_shift_ms = spec.hop_ms
    options.frame_opts.window_type = spec.window_type
    options.frame_opts.preemph_coeff = spec.preemphasis
    options.frame_opts.remove_dc_offset = spec.remove_dc
    options.frame_opts.dither = spec.dither
    options.frame_opts.snip_edges = spec.snip_edges
    options.mel_opts.num_bins = spec.mel_bins
    options.mel_opts.low_freq = spec.low_hz
    options.mel_opts.high_freq = spec.high_hz
    options.use_energy = False
    options.use_log_fbank = True
    return knf.OnlineFbank(options)


def _layer_norm(x: Float32, eps: float) -> Float32:
    """Non-affine, over the last axis; in float64 so that any grouping rounds alike."""
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + eps), dtype=np.float32)


def _level_dbfs(own: Float32) -> Float32:
    rms = np.sqrt((own.astype(np.float64) ** 2).mean(axis=-1))  # [n]
    return np.maximum(20 * np.log10(np.maximum(rms, 1e-12)), SILENCE_DBFS).astype(np.float32)
