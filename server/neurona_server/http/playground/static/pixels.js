// Pixels of an image as a model wants them: the same steps as neurona_client's images.py.

/** One plane of numbers. */
function plane(width, height) {
  return { width, height, data: new Float32Array(width * height) };
}

/** Grey levels, or red, green and blue, from the RGBA of a canvas without transparency. */
export function planesOf(image, channels) {
  const { width, height, data } = image;
  const planes = Array.from({ length: channels === 3 ? 3 : 1 }, () => plane(width, height));
  for (let i = 0; i < width * height; i += 1) {
    const [red, green, blue] = [data[4 * i], data[4 * i + 1], data[4 * i + 2]];
    if (channels === 3) [red, green, blue].forEach((value, c) => { planes[c].data[i] = value; });
    else planes[0].data[i] = Math.round((299 * red + 587 * green + 114 * blue) / 1000);
  }
  return planes;
}

/** The largest centred part with the proportions of a size. */
export function centredBox(image, width, height) {
  const wanted = width / height;
  const has = image.width / image.height;
  const [w, h] = has > wanted ? [image.height * wanted, image.height] : [image.width, image.width / wanted];
  return [(image.width - w) / 2, (image.height - h) / 2, w, h];
}

/** Scales a part of a plane to a size. `filter` is "box" or "bilinear"; both average when they shrink. */
export function resample(source, [left, top, boxWidth, boxHeight], width, height, filter) {
  const across = weightsOf(source.width, left, boxWidth, width, filter);
  const down = weightsOf(source.height, top, boxHeight, height, filter);
  const narrow = plane(width, source.height);
  for (let y = 0; y < source.height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const { first, weights } = across[x];
      let sum = 0;
      for (let i = 0; i < weights.length; i += 1) sum += weights[i] * source.data[y * source.width + first + i];
      narrow.data[y * width + x] = sum;
    }
  }
  const result = plane(width, height);
  for (let y = 0; y < height; y += 1) {
    const { first, weights } = down[y];
    for (let x = 0; x < width; x += 1) {
      let sum = 0;
      for (let i = 0; i < weights.length; i += 1) sum += weights[i] * narrow.data[(first + i) * width + x];
      result.data[y * width + x] = sum;
    }
  }
  return result;
}

/** For each pixel of the result: the first pixel that it is made of, and their weights. */
function weightsOf(size, start, length, count, filter) {
  const scale = length / count;
  const reach = Math.max(scale, 1) * (filter === "box" ? 0.5 : 1);
  return Array.from({ length: count }, (_, i) => {
    const centre = start + (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - reach + 0.5));
    const last = Math.min(size, Math.floor(centre + reach + 0.5));
    const weights = [];
    for (let at = first; at < last; at += 1) {
      const distance = (at + 0.5 - centre) / Math.max(scale, 1);
      const inside = filter === "box" ? distance > -0.5 && distance <= 0.5 : Math.abs(distance) < 1;
      weights.push(inside ? (filter === "box" ? 1 : 1 - Math.abs(distance)) : 0);
    }
    const sum = weights.reduce((total, one) => total + one, 0);
    if (!sum) return { first: Math.min(size - 1, Math.max(0, Math.floor(centre))), weights: [1] };
    return { first, weights: weights.map((one) => one / sum) };
  });
}

/** The median level of the outermost pixels. */
export function borderLevel({ width, height, data }) {
  const edge = [];
  for (let x = 0; x < width; x += 1) edge.push(data[x], data[(height - 1) * width + x]);
  for (let y = 0; y < height; y += 1) edge.push(data[y * width], data[y * width + width - 1]);
  edge.sort((a, b) => a - b);
  return (edge[(edge.length - 1) >> 1] + edge[edge.length >> 1]) / 2;
}

/** The part of a drawing that has ink, with a margin, square; null if the drawing is empty. */
export function inkBox(image, marginShare) {
  let [left, top, right, bottom] = [image.width, image.height, -1, -1];
  for (let y = 0; y < image.height; y += 1) {
    for (let x = 0; x < image.width; x += 1) {
      if (image.data[4 * (y * image.width + x)] > 200) continue;
      [left, right] = [Math.min(left, x), Math.max(right, x)];
      [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
    }
  }
  if (right < 0) return null;
  const side = Math.max(right - left + 1, bottom - top + 1) / (1 - 2 * marginShare);
  const [x, y] = [(left + right + 1) / 2, (top + bottom + 1) / 2];
  return { x: x - side / 2, y: y - side / 2, side };
}

/**
 * The elements of one image for a model.
 *
 * `options`: `levels` of black and white, or `mean` and `deviation` by colour (of levels from 0 to
 * 1); `paper`, whether ink has the high levels; `invert`; `stored`, a size to go through;
 * `whole`, whether values are whole numbers.
 */
export function imageValues(image, layout, options) {
  const { width, height, channels, last } = layout;
  const target = options.stored ?? { width, height };
  const box = centredBox(image, target.width, target.height);
  let planes = planesOf(image, channels).map((one) => resample(one, box, target.width, target.height, "box"));
  for (const one of planes) for (let i = 0; i < one.data.length; i += 1) one.data[i] = Math.round(one.data[i]);
  const inverted = options.paper ? borderLevel(planes[0]) > 127.5 : options.invert;
  const [low, high] = options.levels ?? [0, 1];
  planes.forEach((one, c) => {
    const mean = options.mean?.[c] ?? 0;
    const deviation = options.deviation?.[c] ?? 1;
    for (let i = 0; i < one.data.length; i += 1) {
      const level = inverted ? 255 - one.data[i] : one.data[i];
      one.data[i] = (low + (level * (high - low)) / 255 - mean) / deviation;
    }
  });
  if (target.width !== width || target.height !== height) {
    planes = planes.map((one) => resample(one, [0, 0, target.width, target.height], width, height, "bilinear"));
  }
  const values = new Float32Array(width * height * planes.length);
  planes.forEach((one, c) => {
    for (let i = 0; i < one.data.length; i += 1) {
      values[last ? i * planes.length + c : c * one.data.length + i] = options.whole ? Math.round(one.data[i]) : one.data[i];
    }
  });
  const shape = channels === 0 ? [height, width] : last ? [height, width, channels] : [channels, height, width];
  return { values, shape, planes };
}
