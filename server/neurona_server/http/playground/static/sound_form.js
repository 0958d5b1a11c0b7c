// The form of a sound: a WAV file, or a recording.

import { waveform } from "./charts.js";
import { element, filePicker } from "./dom.js";
import { mixChannels, readWav, resampleSound } from "./sound.js";

const MOST_SECONDS = 60;

/** A form whose tensor is a sound at the model's rate. */
export function soundForm(input, changed) {
  let samples = null;
  let recorder = null;
  const picture = element("div", { class: "wave-box" });
  const said = element("p", { class: "hint", role: "status" }, `Drop a WAV file, choose one, or record. The model hears ${input.sampleRate} samples a second.`);
  const record = element("button", { type: "button", click: toggle }, "Record");
  const zone = element("div", { class: "dropzone" });
  const tools = element("div", { class: "tools" }, filePicker(zone, { label: "Choose a WAV file", accept: ".wav,audio/*", take: takeFile }), record);
  zone.append(tools, picture, said);

  function show(channels, rate, name) {
    const mixed = mixChannels(channels);
    if (mixed.length > MOST_SECONDS * rate) throw new Error(`${Math.round(mixed.length / rate)} s of sound (expected at most ${MOST_SECONDS} s)`);
    samples = resampleSound(Float32Array.from(mixed, (one) => Math.max(-1, Math.min(1, one))), rate, input.sampleRate);
    const seconds = (samples.length / input.sampleRate).toFixed(2);
    const from = rate === input.sampleRate ? "" : `, from ${rate} Hz`;
    said.textContent = `${name}: ${seconds} s, ${samples.length} samples at ${input.sampleRate} Hz${from}`;
    picture.replaceChildren(waveform(samples, `Waveform of ${name}`));
    changed(true);
  }

  async function takeFile(file) {
    try {
      const buffer = await file.arrayBuffer();
      try {
        const { channels, rate } = readWav(buffer);
        show(channels, rate, file.name);
      } catch (error) {
        if (!/no WAV file|not read/.test(error.message)) throw error;
        await decode(buffer, file.name, error);
      }
    } catch (error) {
      said.textContent = `${file.name}: ${error.message}`;
    }
  }

  /** Other formats as far as the browser reads them, which it resamples by itself. */
  async function decode(buffer, name, reason) {
    const context = new OfflineAudioContext(1, 1, Math.max(8000, input.sampleRate));
    let sound;
    try {
      sound = await context.decodeAudioData(buffer);
    } catch {
      throw reason;
    }
    const channels = Array.from({ length: sound.numberOfChannels }, (_, c) => sound.getChannelData(c));
    show(channels, sound.sampleRate, name);
  }

  async function toggle() {
    if (recorder) {
      recorder.stop();
      return;
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch (error) {
      said.textContent = navigator.mediaDevices
        ? `The microphone cannot be used: ${error.message}`
        : "The microphone can be used over https or on this machine only.";
      return;
    }
    const parts = [];
    recorder = new MediaRecorder(stream);
    recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
    recorder.addEventListener("stop", async () => {
      for (const track of stream.getTracks()) track.stop();
      const type = recorder.mimeType;
      recorder = null;
      record.textContent = "Record";
      record.classList.remove("recording");
      try {
        await decode(await new Blob(parts, { type }).arrayBuffer(), "recording", new Error("the recording is empty"));
      } catch (error) {
        said.textContent = error.message;
      }
    });
    recorder.start();
    record.textContent = "Stop";
    record.classList.add("recording");
    said.textContent = "Recording.";
    setTimeout(() => recorder?.state === "recording" && recorder.stop(), MOST_SECONDS * 1000);
  }

  return {
    element: zone,
    async tensors() {
      if (!samples) throw new Error(`${input.name}: no sound (expected a WAV file, or a recording)`);
      const shape = input.sample.length === 1 ? [1, samples.length] : [1, samples.length, 1];
      return [{ name: input.name, dtype: input.dtype, shape, values: samples }];
    },
    /** What is on the axis of time. */
    steps: () => samples?.length ?? 0,
  };
}
