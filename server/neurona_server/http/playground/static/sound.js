// Sound as a model wants it: the samples of a WAV file, or of a recording, at the model's rate.

/** The samples of a WAV file by channel, from -1 to 1, and their rate; throws an Error if it is none. */
export function readWav(buffer) {
  const view = new DataView(buffer);
  const text = (at) => String.fromCharCode(...new Uint8Array(buffer, at, 4));
  if (buffer.byteLength < 12 || text(0) !== "RIFF" || text(8) !== "WAVE") throw new Error("no WAV file (expected RIFF and WAVE at its beginning)");
  let format = null;
  for (let at = 12; at + 8 <= buffer.byteLength; ) {
    const [name, size] = [text(at), view.getUint32(at + 4, true)];
    const body = at + 8;
    if (name === "fmt " && body + 16 <= buffer.byteLength) {
      let encoding = view.getUint16(body, true);
      if (encoding === 0xfffe && size >= 26) encoding = view.getUint16(body + 24, true);
      format = { encoding, channels: view.getUint16(body + 2, true), rate: view.getUint32(body + 4, true), bits: view.getUint16(body + 14, true) };
    } else if (name === "data") {
      if (!format) throw new Error("WAV file damaged: samples before their format");
      return { rate: format.rate, channels: samplesOf(view, body, Math.min(size, buffer.byteLength - body), format) };
    }
    at = body + size + (size % 2);
  }
  throw new Error("WAV file damaged: no samples");
}

function samplesOf(view, start, size, { encoding, channels, bits }) {
  const bytes = bits / 8;
  const read = {
    "1 8": (at) => (view.getUint8(at) - 128) / 128,
    "1 16": (at) => view.getInt16(at, true) / 32768,
    "1 24": (at) => ((view.getUint8(at) | (view.getInt16(at + 1, true) << 8)) / 8388608),
    "1 32": (at) => view.getInt32(at, true) / 2147483648,
    "3 32": (at) => view.getFloat32(at, true),
    "3 64": (at) => view.getFloat64(at, true),
  }[`${encoding} ${bits}`];
  if (!read || !channels) throw new Error(`WAV encoding ${encoding} of ${bits} bits is not read (expected PCM or floating point)`);
  const count = Math.floor(size / (bytes * channels));
  if (!count) throw new Error("the sound has no samples");
  return Array.from({ length: channels }, (_, c) => {
    const samples = new Float32Array(count);
    for (let i = 0; i < count; i += 1) samples[i] = read(start + (i * channels + c) * bytes);
    return samples;
  });
}

/** The mean of all channels. */
export function mixChannels(channels) {
  if (channels.length === 1) return channels[0];
  return channels[0].map((_, i) => channels.reduce((sum, one) => sum + one[i], 0) / channels.length);
}

/**
 * Samples at another rate: a windowed sinc whose band is that of the lower rate, the filter of
 * scipy.signal.resample_poly (Kaiser window of 5.0, ten zero crossings), cut to -1 and 1.
 */
export function resampleSound(samples, from, to) {
  if (from === to) return samples;
  const divisor = greatestDivisor(from, to);
  const [up, down] = [to / divisor, from / divisor];
  const widest = Math.max(up, down);
  const half = 10 * widest; // of the filter, in steps of the rate from * up
  const taps = new Float64Array(2 * half + 1);
  for (let i = 0; i < taps.length; i += 1) {
    const x = (i - half) / widest;
    const sinc = x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
    taps[i] = sinc * bessel(5 * Math.sqrt(Math.max(0, 1 - ((i - half) / half) ** 2)));
  }
  const gain = up / taps.reduce((sum, one) => sum + one, 0);
  const result = new Float32Array(Math.ceil((samples.length * up) / down));
  for (let n = 0; n < result.length; n += 1) {
    const at = n * down;
    const first = Math.max(0, Math.ceil((at - half) / up));
    const last = Math.min(samples.length - 1, Math.floor((at + half) / up));
    let sum = 0;
    for (let i = first; i <= last; i += 1) sum += samples[i] * taps[at - i * up + half];
    result[n] = Math.max(-1, Math.min(1, sum * gain));
  }
  return result;
}

function greatestDivisor(a, b) {
  return b ? greatestDivisor(b, a % b) : a;
}

/** The modified Bessel function of order zero. */
function bessel(x) {
  let [sum, term] = [1, 1];
  for (let k = 1; term > 1e-12 * sum; k += 1) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}
