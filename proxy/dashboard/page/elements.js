// Making and changing elements. Data only ever becomes text: nothing here, or elsewhere, writes HTML.

const byId = (id) => document.getElementById(id);

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** Only where it differs, so that a selection and a screen reader's place survive. */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** As many children as there are items, old ones kept: `create()` makes one, `update(child, item)` fills it. */
function fill(parent, items, create, update) {
  while (parent.childElementCount > items.length) parent.lastElementChild.remove();
  while (parent.childElementCount < items.length) parent.append(create());
  items.forEach((item, place) => update(parent.children[place], item));
}

/** Rows of cells; a cell is a text, or a function that fills its element. Numbers stand at the right. */
function fillRows(body, rows) {
  fill(body, rows, () => make("tr"), (row, cells) =>
    fill(row, cells, () => make("td"), (cell, content) =>
      typeof content === "function" ? content(cell) : setText(cell, content)));
}

/** Pairs of a name and a text. */
function fillFacts(list, facts) {
  const flat = facts.flatMap(([name, text]) => [["dt", name], ["dd", text]]);
  if (list.childElementCount !== flat.length) list.replaceChildren(...flat.map(([tag]) => make(tag)));
  flat.forEach(([, text], place) => setText(list.children[place], text));
}

const UNKNOWN = "–";
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

const count = (value) => (value == null ? UNKNOWN : value < 100000 ? whole.format(value) : short.format(value));
const percent = (share) => (share == null ? UNKNOWN : `${(100 * share).toFixed(share < 0.1 && share > 0 ? 1 : 0)} %`);
const rate = (value) => (value == null ? UNKNOWN : value >= 100 ? whole.format(value) : value.toFixed(1));

function money(value) {
  if (value == null) return UNKNOWN;
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1000 ? whole.format(value) : value.toFixed(size >= 1 ? 2 : size >= 0.01 ? 4 : 6);
}

/** [number, unit] of seconds. */
function duration(seconds) {
  if (seconds == null) return [UNKNOWN, ""];
  const size = Math.abs(seconds);
  if (size < 1) return [(1000 * seconds).toFixed(size < 0.01 ? 1 : 0), "ms"];
  if (size < 120) return [seconds.toFixed(size < 10 ? 2 : 1), "s"];
  if (size < 7200) return [(seconds / 60).toFixed(0), "min"];
  return [(seconds / 3600).toFixed(1), "h"];
}
const inWords = (seconds) => duration(seconds).join(" ").trim();

function bytes(value) {
  if (value == null) return UNKNOWN;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (value >= 1024 && place < units.length - 1) { value /= 1024; place += 1; }
  return `${value.toFixed(place && value < 10 ? 1 : 0)} ${units[place]}`;
}
