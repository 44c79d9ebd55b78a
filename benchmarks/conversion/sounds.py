"""Sound for the audio models: speech out of pocketsphinx's source distribution, machines made here.

Features are those that the models were trained on: the 10 MFCCs of 49 windows of MLPerf Tiny's
keyword spotting (TensorFlow's `mfccs_from_log_mel_spectrograms`), the log-mel windows of its
anomaly detection (128 bands, 5 frames).
"""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

RATE: Final = 16_000
_CONTEXT, _CHUNK = 64, 512
"""What one call of silero-vad sees: 64 samples of the chunk before, and 512 new ones."""


def speech(package: Path) -> list[NDArray[np.float32]]:
    """Recordings of one channel at 16 kHz in -1..1, longer than two seconds, in the order of names."""
    found: list[NDArray[np.float32]] = []
    for path in sorted(package.glob("pocketsphinx-*/test/data/**/*")):
        if path.suffix == ".raw":
            data = path.read_bytes()
        elif path.suffix == ".wav":
            try:
                with wave.open(str(path)) as opened:
                    if (opened.getnchannels(), opened.getframerate(), opened.getsampwidth()) != (1, RATE, 2):
                        continue
                    data = opened.readframes(opened.getnframes())
            except (wave.Error, EOFError, RuntimeError):  # some are damaged on purpose
                continue
        else:
            continue
        samples = np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / np.float32(32768)
        if len(samples) > 2 * RATE:
            found.append(samples)
    return found


def keyword_features(package: Path, count: int, seed: int, part: int) -> NDArray[np.float32]:
    """MFCCs (count, 49, 10, 1) of words' lengths of speech in a second of silence, some of it noise alone.

    They are cut out of every second recording, from the first or the second on.

    Args:
        package: pocketsphinx's sources.
        count: how many.
        seed: of their places, loudness and noise.
        part: 0 or 1: which recordings.
    """
    random = np.random.default_rng(seed)
    recordings = speech(package)[part::2]
    rows = []
    for i in range(count):
        recording = recordings[i % len(recordings)]
        length = int(random.uniform(0.25, 0.9) * RATE)
        start, place = int(random.integers(0, len(recording) - length)), int(random.integers(0, RATE - length))
        second = np.zeros(RATE)
        if i % 10:
            word = recording[start : start + length] * np.hanning(length) ** 0.25
            second[place : place + length] = word / max(float(np.abs(word).max()), 1e-3) * random.uniform(0.2, 1.0)
        rows.append(_mfccs(second + random.normal(0, 1, RATE) * random.choice([0.0, 1e-3, 1e-2])))
    return np.stack(rows)[..., None].astype(np.float32)


def voice_chunks(package: Path, sequences: int, length: int, seed: int, part: int) -> NDArray[np.float32]:
    """Sequences (S, T, 1, 576) of chunks, each with the end of the one before, as silero-vad takes them."""
    random = np.random.default_rng(seed)
    recordings = speech(package)[part::2]
    found = []
    for i in range(sequences):
        recording = recordings[i % len(recordings)]
        quiet = random.normal(0, 1e-3, length * _CHUNK)
        start = int(random.integers(0, max(1, len(recording) - length * _CHUNK)))
        piece = recording[start : start + length * _CHUNK]
        quiet[: len(piece)] += piece * random.uniform(0.3, 1.0)
        padded = np.concatenate([np.zeros(_CONTEXT), quiet])
        rows = [padded[t * _CHUNK : t * _CHUNK + _CONTEXT + _CHUNK] for t in range(length)]
        found.append(np.stack(rows)[:, None])
    return np.stack(found).astype(np.float32)


def machine_windows(count: int, seed: int) -> NDArray[np.float32]:
    """Log-mel windows (count, 640) of made machine sound: harmonics of a wandering speed, and noise."""
    random = np.random.default_rng(seed)
    bank = _mel_bank(128, 1024, 0, 8000)
    rows: list[NDArray[np.float64]] = []
    while len(rows) < count:
        time = np.arange(RATE * 2) / RATE
        speed = random.uniform(40, 200) * (1 + 0.05 * np.sin(2 * np.pi * random.uniform(0.2, 2) * time))
        phase = 2 * np.pi * np.cumsum(speed) / RATE
        tones = sum(random.uniform(0, 1) / h * np.sin(h * phase + random.uniform(0, 6)) for h in range(1, 30))
        noise = np.convolve(random.normal(size=len(time)), np.ones(int(random.integers(1, 20))), "same")
        sound = random.uniform(0.01, 0.2) * tones + random.uniform(0.001, 0.05) * noise
        mel = 10 * np.log10(_power(sound, 1024, 512) @ bank.T / 1024 + 1e-8)
        rows += [mel[t : t + 5].reshape(-1) for t in range(0, len(mel) - 5, 5)]
    return np.stack(rows[:count]).astype(np.float32)


def _power(sound: NDArray[np.float64], size: int, step: int, fft: int | None = None) -> NDArray[np.float64]:
    frames = np.lib.stride_tricks.sliding_window_view(sound, size)[::step] * np.hanning(size + 1)[:-1]
    return np.square(np.abs(np.fft.rfft(frames, fft or size)))


def _mfccs(second: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.fft import dct  # type: ignore[import-untyped]  # scipy brings no types

    magnitudes = np.sqrt(_power(second, 480, 320, 512))
    mel = np.log(magnitudes @ _mel_bank(40, 512, 20, 4000).T + 1e-6)
    return np.asarray(dct(mel, type=2, axis=1)[:, :10] / np.sqrt(2 * 40))


def _mel_bank(bands: int, fft: int, low: float, high: float) -> NDArray[np.float64]:
    """Triangles (bands, fft / 2 + 1), evenly spaced on the mel scale (HTK)."""
    hertz = np.linspace(0, RATE / 2, fft // 2 + 1)
    mels = 1127 * np.log1p(hertz / 700)
    edges = np.linspace(1127 * np.log1p(low / 700), 1127 * np.log1p(high / 700), bands + 2)
    rising = (mels - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - mels) / (edges[2:] - edges[1:-1])[:, None]
    return np.asarray(np.maximum(0, np.minimum(rising, falling)))
