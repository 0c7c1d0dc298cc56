"""Log-mel spectrograms against SciPy and a second implementation of the filters; tones by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxbig.data.transforms.log_mel import LogMel, mel
from jaxbig.errors import Refused


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def second_way(logmel: LogMel, waveform: np.ndarray) -> np.ndarray:
    """One waveform [N] -> [F, M] in float64: SciPy's frames, and interpolated triangles."""
    points = 1
    while points < logmel.window:
        points *= 2
    hann = scipy.signal.get_window("hann", logmel.window)
    transform = scipy.signal.ShortTimeFFT(hann, logmel.hop, logmel.sample_rate, mfft=points)
    # SciPy's time of a frame is its middle; take frames from the one that starts at sample 0
    middle = logmel.window // 2
    shift = -(-middle // logmel.hop) * logmel.hop - middle
    padded = np.concatenate([np.zeros(shift), waveform.astype(np.float64)])
    first = (middle + shift) // logmel.hop
    last = first + logmel.frames(len(waveform))
    power = transform.spectrogram(padded, p0=first, p1=last)  # [k, F]
    # 1127.01 = 2595 / ln 10
    lowest, highest = (1127.01 * np.log(1 + f / 700) for f in (logmel.lowest, logmel.highest))
    edges = [lowest + (highest - lowest) * i / (logmel.mels + 1) for i in range(logmel.mels + 2)]
    places = [
        1127.01 * np.log(1 + k * logmel.sample_rate / points / 700) for k in range(points // 2 + 1)
    ]
    bank = [np.interp(places, edges[m : m + 3], [0, 1, 0]) for m in range(logmel.mels)]
    return np.log(np.maximum(np.stack(bank) @ power, logmel.floor)).T


@pytest.mark.parametrize(
    "logmel",
    [
        LogMel(),
        LogMel(mels=64, lowest=125.0, highest=7500.0, floor=1e-2),
        LogMel(sample_rate=22050, window=1024, hop=256, lowest=0.0, highest=11025.0),
        LogMel(sample_rate=8000, window=201, hop=67, mels=20, highest=4000.0),
    ],
)
def test_spectrogram_equals_scipy(logmel: LogMel) -> None:
    waveforms = noise(3, 5001) * np.array([[1], [0.1], [1e-4]], np.float32)
    ours = jax.jit(logmel)(waveforms)
    assert ours.dtype == jnp.float32
    theirs = np.stack([second_way(logmel, each) for each in waveforms])
    assert ours.shape == theirs.shape == (3, logmel.frames(5001), logmel.mels)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_frames_by_hand() -> None:
    logmel = LogMel()
    assert [logmel.frames(n) for n in (0, 399, 400, 559, 560, 16000)] == [0, 0, 1, 1, 2, 98]
    with pytest.raises(Refused, match="399 samples"):
        logmel(jnp.zeros((1, 399)))


def test_mel_by_hand() -> None:
    # 1000 Hz are about 1000 mel
    np.testing.assert_allclose(mel(np.array([0, 1000, 6300])), [0, 999.9855, 2595], atol=1e-3)


@pytest.mark.parametrize("frequency", [200, 440, 1000, 3000, 7000])
def test_a_tone_peaks_in_its_band(frequency: int) -> None:
    """Band m has its peak at lowest + (m + 1) (highest - lowest) / (mels + 1) mel."""
    logmel = LogMel(mels=40, lowest=0.0)
    tone = np.sin(2 * np.pi * frequency * np.arange(4000) / 16000)[None].astype(np.float32)
    step = 2840.0377 / 41  # 2595 log10(1 + 8000 / 700)
    band = round(2595 * np.log10(1 + frequency / 700) / step) - 1
    assert set(np.asarray(logmel(tone)).argmax(2)[0]) == {band}


def test_power_of_a_tone_by_hand() -> None:
    # A tone of 1000 Hz is at bin 32 of 512; its |X|^2 there is (sum of the window / 2)^2 = 100^2.
    # The weight there, in a single band centered there, is 1, and leakage has less.
    logmel = LogMel(mels=1, lowest=0.0, highest=8000.0)
    tone = np.sin(2 * np.pi * 1000 * np.arange(400) / 16000)[None].astype(np.float32)
    spectrum = np.abs(np.fft.rfft(tone[0] * scipy.signal.get_window("hann", 400), 512)) ** 2
    assert spectrum[32] == pytest.approx(1e4, rel=1e-3)
    triangle = 1 - np.abs(2595 * np.log10(1 + np.arange(257) * 31.25 / 700) / 1420.0189 - 1)
    assert float(logmel(tone)[0, 0, 0]) == pytest.approx(np.log(triangle @ spectrum), abs=1e-4)


def test_silence_is_the_floor() -> None:
    np.testing.assert_allclose(LogMel(floor=1e-3)(jnp.zeros((2, 800))), np.log(1e-3), rtol=1e-6)


def test_invalid_bands_are_refused() -> None:
    with pytest.raises(Refused, match="20 to 9000 Hz of 16000 samples a second"):
        LogMel(highest=9000.0).filters()
    with pytest.raises(Refused, match="of 200 mel bands are narrower than"):
        LogMel(mels=200).filters()


def test_bands_overlap_to_one_between_the_first_and_the_last_peak() -> None:
    filters = LogMel().filters()
    peaks = filters.argmax(0)
    np.testing.assert_allclose(filters[peaks[0] + 1 : peaks[-1]].sum(1), 1, atol=1e-5)


def test_sharded_batch_needs_no_communication() -> None:
    split = NamedSharding(Mesh(np.array(jax.devices()[:4]), ("data",)), PartitionSpec("data"))
    waveforms = noise(8, 1000)
    apply = jax.jit(LogMel(), in_shardings=split, out_shardings=split)
    compiled = apply.lower(waveforms).compile().as_text()
    assert not any(
        crossing in compiled for crossing in ("all-reduce", "all-gather", "all-to-all", "permute")
    )
    np.testing.assert_allclose(apply(waveforms), LogMel()(waveforms), atol=1e-5)
