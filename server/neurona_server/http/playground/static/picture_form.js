// The form of an image: a file, a picture from the clipboard, or a drawing.

import { element, filePicker, labelled, newId, select } from "./dom.js";
import { imageLayout, storedSize } from "./forms.js";
import { imageValues, inkBox } from "./pixels.js";
import { fromBase64, isFloat } from "./tensors.js";

const SIDE = 280;
const MOST_PIXELS = 50e6;
/** The first bytes of PNG and of JPEG, which the server decodes. */
const SENT_FILES = [[0x89, 0x50, 0x4e, 0x47], [0xff, 0xd8, 0xff]];
const IMAGENET = { mean: [0.485, 0.456, 0.406], deviation: [0.229, 0.224, 0.225] };
const LEVELS = [
  ["0 1", "0 to 1"],
  ["0 255", "0 to 255"],
  ["-1 1", "-1 to 1"],
  ["imagenet", "0 to 1, less ImageNet's mean"],
];

/** A form whose tensor is an image. `changed(isComplete)` is called when it has another one. */
export function pictureForm(input, changed) {
  const layout = imageLayout(input) ?? layoutOf(input.image);
  const inversion = input.image?.inversion ?? "";
  const isPaper = input.image ? /BRIGHT_BORDER|ALWAYS/.test(inversion) : /0 is paper/.test(input.description);
  const state = { picture: null, file: null, isDrawn: false, example: null };

  const canvas = element("canvas", { width: SIDE, height: SIDE, role: "img", class: "drawing" });
  canvas.setAttribute("aria-label", `Drawing area of ${input.name}. Draw with a pointer, or choose a file.`);
  const preview = element("canvas", { width: 1, height: 1, class: "pixels", role: "img", "aria-label": "What the model gets" });
  const said = element("p", { class: "hint", role: "status" }, "Draw here, or drop, paste or choose a picture.");
  const pen = canvas.getContext("2d", { willReadFrequently: true });

  const invert = element("input", { type: "checkbox", id: newId("invert"), change: update });
  const centre = element("input", { type: "checkbox", id: newId("centre"), checked: true, change: update });
  const levels = select(LEVELS, { change: update });
  invert.checked = !isPaper && layout.channels !== 3;
  centre.checked = layout.channels !== 3;
  const isKnown = Boolean(input.image) || layout.levels !== null;

  const options = element("div", { class: "options" });
  const zone = element("div", { class: "dropzone" });
  const tools = element(
    "div",
    { class: "tools" },
    filePicker(zone, { label: "Choose a picture", accept: "image/*", take: takeFile }),
    element("button", { type: "button", click: () => clear(true) }, "Clear"),
  );
  if (input.example !== undefined) tools.append(element("button", { type: "button", click: takeExample }, "Use the example"));
  if (!isPaper) options.append(check(invert, "Drawn lines are bright on black"));
  options.append(check(centre, "Centre the drawing"));
  if (!isKnown) options.append(labelled("Pixel values", levels, "The model does not say which it was trained with."));
  zone.append(element("div", { class: "canvases" }, canvas, element("div", { class: "given" }, preview, element("span", { class: "hint" }, `what the model gets: ${layout.width} × ${layout.height}`))), tools, options, said);

  clear(false);
  draw();
  document.addEventListener("paste", onPaste);

  function check(box, text) {
    return element("span", { class: "check" }, box, element("label", { for: box.id }, text));
  }

  function clear(tell) {
    Object.assign(state, { picture: null, file: null, isDrawn: false, example: null });
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, SIDE, SIDE);
    preview.width = 1;
    preview.height = 1;
    if (tell) {
      said.textContent = "Cleared.";
      changed(false);
    }
  }

  function draw() {
    let last = null;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return [((event.clientX - box.left) * SIDE) / box.width, ((event.clientY - box.top) * SIDE) / box.height];
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      canvas.setPointerCapture(event.pointerId);
      if (!state.isDrawn) clear(false);
      state.isDrawn = true;
      last = place(event);
      line(last, last);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      const next = place(event);
      line(last, next);
      last = next;
    });
    const end = () => {
      if (!last) return;
      last = null;
      update();
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
  }

  function line(from, to) {
    pen.strokeStyle = "#000";
    pen.lineWidth = 26;
    pen.lineCap = "round";
    pen.beginPath();
    pen.moveTo(...from);
    pen.lineTo(...to);
    pen.stroke();
  }

  function onPaste(event) {
    if (!zone.isConnected) {
      document.removeEventListener("paste", onPaste);
      return;
    }
    const item = [...event.clipboardData.files].find((file) => file.type.startsWith("image/"));
    if (item) takeFile(item);
  }

  async function takeFile(file) {
    try {
      const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
      if (bitmap.width * bitmap.height > MOST_PIXELS) throw new Error(`it has ${bitmap.width} × ${bitmap.height} pixels (expected at most ${MOST_PIXELS / 1e6} million)`);
      const isSent = await isSentAsItIs(file);
      takeBitmap(bitmap);
      state.file = isSent ? file : null;
      said.textContent = `${file.name || "picture"}: ${bitmap.width} × ${bitmap.height} pixels`;
      update();
    } catch (error) {
      said.textContent = `This file is not a picture that the browser can read: ${error.message}`;
    }
  }

  function takeBitmap(bitmap) {
    clear(false);
    state.picture = element("canvas", { width: bitmap.width, height: bitmap.height });
    const paint = state.picture.getContext("2d", { willReadFrequently: true });
    paint.fillStyle = "#fff"; // below what is transparent
    paint.fillRect(0, 0, bitmap.width, bitmap.height);
    paint.drawImage(bitmap, 0, 0);
    const scale = Math.min(SIDE / bitmap.width, SIDE / bitmap.height);
    const [w, h] = [bitmap.width * scale, bitmap.height * scale];
    pen.drawImage(state.picture, (SIDE - w) / 2, (SIDE - h) / 2, w, h);
  }

  function takeExample() {
    clear(false);
    state.example = input.example;
    if (typeof input.example === "string") {
      const bytes = exampleBytes(input.example);
      if (bytes) takeFile(new File([bytes], "example", { type: bytes[0] === 0xff ? "image/jpeg" : "image/png" }));
      else said.textContent = "The example is not a picture.";
      return;
    }
    said.textContent = "The model's example.";
    changed(true);
    showExample();
  }

  function showExample() {
    const flat = input.example.flat(Infinity);
    const [low, high] = layout.levels ?? [Math.min(...flat), Math.max(...flat)];
    const colours = layout.channels === 3 ? 3 : 1;
    const size = layout.width * layout.height;
    const at = (i, c) => flat[layout.last ? i * colours + c : c * size + i];
    paint(size, (i, c) => ((at(i, colours === 3 ? c : 0) - low) / (high - low || 1)) * 255);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(preview, 0, 0, SIDE, SIDE);
    pen.imageSmoothingEnabled = true;
  }

  function paint(size, level) {
    preview.width = layout.width;
    preview.height = layout.height;
    const image = new ImageData(layout.width, layout.height);
    for (let i = 0; i < size; i += 1) {
      for (let c = 0; c < 3; c += 1) image.data[4 * i + c] = level(i, c);
      image.data[4 * i + 3] = 255;
    }
    preview.getContext("2d").putImageData(image, 0, 0);
  }

  /** What is sent, as a canvas: the picture, or the drawing without its white margins. */
  function source() {
    if (state.picture) return state.picture;
    const copy = element("canvas", { width: SIDE, height: SIDE });
    const paintCopy = copy.getContext("2d", { willReadFrequently: true });
    paintCopy.fillStyle = "#fff";
    paintCopy.fillRect(0, 0, SIDE, SIDE);
    const margin = layout.height >= 20 ? 4 / 28 : 0;
    const box = centre.checked ? inkBox(pen.getImageData(0, 0, SIDE, SIDE), margin) : null;
    if (box) paintCopy.drawImage(canvas, box.x, box.y, box.side, box.side, 0, 0, SIDE, SIDE);
    else paintCopy.drawImage(canvas, 0, 0);
    if (!isPaper && invert.checked) {
      paintCopy.globalCompositeOperation = "difference";
      paintCopy.fillRect(0, 0, SIDE, SIDE);
    }
    return copy;
  }

  function settings() {
    const isImagenet = !isKnown && levels.value === "imagenet";
    const chosen = isKnown ? layout.levels ?? [0, 255] : isImagenet ? [0, 1] : levels.value.split(" ").map(Number);
    return { levels: chosen, ...(isImagenet ? IMAGENET : {}), paper: isPaper && !/ALWAYS/.test(inversion), invert: /ALWAYS/.test(inversion), stored: storedSize(input, layout), whole: !isFloat(input.dtype) };
  }

  function values() {
    const picture = source();
    const image = picture.getContext("2d").getImageData(0, 0, picture.width, picture.height);
    return imageValues(image, layout, settings());
  }

  function update() {
    if (!state.picture && !state.isDrawn) return;
    state.example = null;
    const picture = source();
    const image = picture.getContext("2d").getImageData(0, 0, picture.width, picture.height);
    const plain = { ...settings(), levels: [0, 255], mean: undefined, deviation: undefined, whole: false };
    const { planes } = imageValues(image, layout, plain);
    paint(layout.width * layout.height, (i, c) => planes[planes.length === 3 ? c : 0].data[i]);
    changed(true);
  }

  async function bytes() {
    const blob = state.file ?? (await new Promise((resolve) => source().toBlob(resolve, "image/png")));
    return new Uint8Array(await blob.arrayBuffer());
  }

  return {
    element: zone,
    async tensors() {
      if (state.example) return [exampleTensor(input)];
      if (!state.picture && !state.isDrawn) throw new Error(`${input.name}: no picture (expected a drawing, or a file)`);
      if (input.image) return [{ name: input.name, dtype: "DATA_TYPE_STRING", shape: [1], values: [await bytes()], isImage: true }];
      const { values: numbers, shape } = values();
      return [{ name: input.name, dtype: input.dtype, shape: [1, ...shape], values: wholeNumbers(numbers, input.dtype) }];
    },
  };
}

/** Whether a file is PNG or JPEG, by its first bytes: pictures of other formats often have their names. */
async function isSentAsItIs(file) {
  const head = new Uint8Array(await file.slice(0, 4).arrayBuffer());
  return SENT_FILES.some((start) => start.every((byte, i) => head[i] === byte));
}

function wholeNumbers(numbers, dtype) {
  return /INT64/.test(dtype) ? Array.from(numbers, (one) => BigInt(Math.round(one))) : numbers;
}

/** The bytes of a picture in base64, perhaps as a data URL; null if it is none. */
function exampleBytes(text) {
  try {
    return fromBase64(text.replace(/^data:[^,]*,/, ""));
  } catch {
    return null;
  }
}

/** The tensor of an input's example. */
export function exampleTensor(input) {
  const shape = [];
  for (let level = input.example; Array.isArray(level); level = level[0]) shape.push(level.length);
  return { name: input.name, dtype: input.dtype, shape: [1, ...shape], values: wholeNumbers([input.example].flat(Infinity), input.dtype) };
}

function layoutOf(image) {
  const channels = image.layout === "IMAGE_LAYOUT_HW" || image.layout === undefined ? 0 : (image.colours ?? "IMAGE_COLOURS_GREY") === "IMAGE_COLOURS_GREY" ? 1 : 3;
  return { height: image.height || 224, width: image.width || 224, channels, last: image.layout === "IMAGE_LAYOUT_HWC", levels: [image.black ?? 0, image.white ?? 255] };
}
