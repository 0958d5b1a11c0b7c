// Works out how a person gives a model its inputs: from the signature and the metadata.

/** Columns of a form; a wider row is entered as JSON. */
const MOST_FIELDS = 120;
const RANGE = /(-?\d+(?:\.\d+)?)\s*\.\.\s*(-?\d+(?:\.\d+)?)/;
const TWO_SIZES = /brought to (\d+) x (\d+) from (\d+) x (\d+)/;

/** An input's tensor and its description in one object, with numbers as numbers. */
export function readInputs(description) {
  const words = new Map((description.metadata?.inputs ?? []).map((one) => [one.name, one]));
  const axes = description.sequences?.time_axes ?? {};
  return (description.inputs ?? []).map((tensor) => {
    const said = words.get(tensor.name) ?? {};
    const shape = (tensor.shape ?? []).map(Number);
    const hasBatch = shape.length > 0 && (shape[0] === -1 || (shape[0] === 1 && shape.length > 1));
    const input = {
      name: tensor.name ?? "",
      dtype: tensor.dtype ?? "DATA_TYPE_UNDEFINED",
      shape,
      hasBatch,
      sample: hasBatch ? shape.slice(1) : shape,
      axes: tensor.axes ?? [],
      optional: tensor.optional ?? false,
      anyShape: tensor.any_shape ?? false,
      description: said.description ?? "",
      unit: said.unit ?? "",
      columns: said.columns ?? [],
      categories: said.categories ?? [],
      window: Number(said.window ?? 0),
      decimalMark: said.decimal_mark ?? "",
      allowNan: said.allow_nan ?? false,
      lengthsOf: said.lengths_of ?? "",
      lengthsAxis: said.lengths_axis ?? 0,
      onlyCategories: said.only_categories ?? false,
      sampleRate: said.sample_rate ?? 0,
      dateColumns: said.date_columns ?? [],
      dateOrder: said.date_order ?? "",
      timeColumn: said.time_column ?? "",
      image: said.image ?? null,
      example: parseExample(said.example),
    };
    input.timeAxis = timeAxisOf(input, axes[tensor.name]);
    return input;
  });
}

function parseExample(text) {
  try {
    return text ? JSON.parse(text) : undefined;
  } catch {
    return undefined; // an example is a help, not a condition
  }
}

/** The axis, from 0 with the batch axis, along which steps follow each other; -1 if there is none. */
function timeAxisOf(input, declared) {
  if (declared !== undefined) return Number(declared);
  const named = input.axes.findIndex((name, i) => i > 0 && /^(time|steps?|seq|sequence|sequence_length|seq_len)$/i.test(name));
  if (named > 0) return named;
  if (input.window > 0 || input.sampleRate > 0) return 1;
  const isFreeSequence = input.hasBatch && input.sample.length === 2 && input.sample[0] === -1 && input.sample[1] > 0;
  return isFreeSequence ? 1 : -1;
}

/** The forms that an input may have, the most fitting first; the last is always JSON. */
export function formsOf(input) {
  if (input.lengthsOf) return ["lengths"];
  const forms = [];
  if (input.anyShape) return ["json"];
  if (input.image || imageLayout(input)) forms.push("image");
  if (input.dtype === "DATA_TYPE_STRING") forms.push(...textForms(input));
  else if (input.timeAxis > 0 && input.sampleRate > 0) forms.unshift("sound");
  else if (input.timeAxis === 1 && input.hasBatch && input.sample.length <= 2) forms.push("series");
  else if (isRow(input)) forms.push("fields");
  return [...forms, "json"];
}

function textForms(input) {
  if (input.sample.length === 0 && input.hasBatch) return ["fields"];
  if (input.sample.length === 1 && input.timeAxis === 1) return ["characters"];
  if (input.sample.length === 1 && input.sample[0] > 0 && input.sample[0] <= MOST_FIELDS) return ["fields"];
  return [];
}

function isRow(input) {
  if (!input.hasBatch || input.timeAxis > 0) return false;
  if (input.sample.length === 0) return true;
  return input.sample.length === 1 && input.sample[0] > 0 && input.sample[0] <= MOST_FIELDS;
}

/** Where height, width and colours are in an image input; null if it takes no images. */
export function imageLayout(input) {
  if (!input.hasBatch || input.dtype === "DATA_TYPE_STRING" || input.dtype === "DATA_TYPE_BOOL") return null;
  const levels = levelsOf(input);
  const shape = input.sample;
  if (shape.length === 2 && levels && (shape[0] > 3 || input.timeAxis > 0) && shape[1] > 3) {
    // A recurrent model that reads an image line by line has as many steps as it was trained with.
    const height = shape[0] > 0 ? shape[0] : input.window || shape[1];
    return { height, width: shape[1], channels: 0, last: false, levels };
  }
  if (shape.length !== 3 || input.timeAxis > 0) return null;
  const free = (size) => (size > 0 ? size : 224);
  const isSize = (size) => size === -1 || size >= 8;
  if ([1, 3].includes(shape[0]) && isSize(shape[1]) && isSize(shape[2])) {
    return { height: free(shape[1]), width: free(shape[2]), channels: shape[0], last: false, levels };
  }
  if ([1, 3].includes(shape[2]) && isSize(shape[0]) && isSize(shape[1])) {
    return { height: free(shape[0]), width: free(shape[1]), channels: shape[2], last: true, levels };
  }
  return null;
}

/** The levels of black and white that the unit names; null if they are unknown. */
function levelsOf(input) {
  const match = RANGE.exec(input.unit);
  if (match) return [Number(match[1]), Number(match[2])];
  return input.dtype === "DATA_TYPE_UINT8" ? [0, 255] : null;
}

/** The stored size that an image is brought to before its size, as training did; or null. */
export function storedSize(input, layout) {
  const match = TWO_SIZES.exec(input.description);
  if (!match) return null;
  const [width, height, storedWidth, storedHeight] = match.slice(1).map(Number);
  return width === layout.width && height === layout.height ? { width: storedWidth, height: storedHeight } : null;
}

/** The fields of a row: one for each column, with its type and what it begins with. */
export function fieldsOf(input) {
  const count = input.sample.length ? input.sample[0] : 1;
  const single = input.sample.length === 0;
  const isText = input.dtype === "DATA_TYPE_STRING";
  return Array.from({ length: count }, (_, i) => {
    const name = input.columns[i] ?? (single || count === 1 ? input.name : `${input.name} ${i + 1}`);
    const example = Array.isArray(input.example) ? input.example[i] : single ? input.example : undefined;
    let type = "number";
    if (isText) type = input.categories.length ? "choice" : "text";
    else if (input.dateColumns.includes(name)) type = "date";
    else if (input.dtype === "DATA_TYPE_BOOL") type = "check";
    return { name, type, example, input, index: i };
  });
}

/** Nested zeros of an input's shape: 1 where a size is free, or the steps it was trained on. */
export function skeleton(input) {
  if (input.example !== undefined) return input.hasBatch ? [input.example] : input.example;
  const shape = input.shape.map((size, axis) => {
    if (size >= 0) return size;
    return axis === input.timeAxis && input.window > 0 ? input.window : 1;
  });
  const blank = input.dtype === "DATA_TYPE_STRING" ? "" : input.dtype === "DATA_TYPE_BOOL" ? false : 0;
  if (shape.reduce((product, size) => product * size, 1) > 400) return { shape, fill: blank };
  const make = (axis) => (axis === shape.length ? blank : Array.from({ length: shape[axis] }, () => make(axis + 1)));
  return make(0);
}

/** A size as text, such as "batch x 8 x 8 float32". */
export function describeShape(tensor, typeName) {
  if (tensor.any_shape ?? tensor.anyShape) return `${typeName}, any shape`;
  const shape = (tensor.shape ?? []).map(Number);
  const axes = tensor.axes ?? [];
  const sizes = shape.map((size, i) => (size >= 0 ? String(size) : axes[i] || "any"));
  return sizes.length ? `${sizes.join(" × ")} ${typeName}` : `one ${typeName}`;
}

/** The name of an answer's value without what makes it a bound, so that bounds are put together. */
export function groupValues(values) {
  const groups = [];
  const byName = new Map();
  values.forEach((value, index) => {
    const quantile = value.quantile ?? 0;
    const name = quantile ? boundOf(value.name ?? "", [...byName.keys()]) : value.name ?? "";
    let group = byName.get(name);
    if (!group) {
      group = { name, unit: value.unit ?? "", index: -1, bounds: [] };
      byName.set(name, group);
      groups.push(group);
    }
    if (quantile) group.bounds.push({ quantile, index });
    else group.index = index;
  });
  for (const group of groups) group.bounds.sort((a, b) => a.quantile - b.quantile);
  return groups;
}

function boundOf(name, names) {
  if (names.includes(name)) return name;
  const begun = names.filter((one) => one && name.startsWith(one)).sort((a, b) => b.length - a.length);
  return begun[0] ?? name;
}
