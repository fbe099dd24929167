// Small charts of the last minutes. A point that is null is a gap.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 46;
const TOP = 4;
const MOST_ABOVE = 5;

function svg(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** A line with its area, and a second, dotted one; under the pointer `shown(place)` is told which point is meant, or null. */
class Sparkline {
  constructor(label, shown) {
    this.label = label;
    this.element = svg("svg", { class: "spark", role: "img", preserveAspectRatio: "none", "aria-label": label });
    this.area = svg("path", { class: "area" });
    this.second = svg("path", { class: "second" });
    this.line = svg("path", { class: "line" });
    this.cursor = svg("path", { class: "cursor" });
    this.element.append(this.area, this.second, this.line, this.cursor);
    this.slots = 1;
    const point = (event) => {
      const box = this.element.getBoundingClientRect();
      const place = Math.round(((event.clientX - box.left) / box.width) * (this.slots - 1));
      this.cursor.setAttribute("d", `M${place} 0V${HEIGHT}`);
      shown(place);
    };
    this.element.addEventListener("pointermove", point);
    this.element.addEventListener("pointerdown", point);
    this.element.addEventListener("pointerleave", () => { this.cursor.setAttribute("d", ""); shown(null); });
  }

  /** `slots`: how many points fill the width; the last is at the right. `least`: the smallest full height. */
  draw(values, second, slots, least, told) {
    this.slots = slots;
    this.element.setAttribute("viewBox", `0 0 ${slots - 1} ${HEIGHT}`);
    const largest = (list) => list.reduce((most, value) => (value > most ? value : most), 0);
    // The second may be cut off at the top, so that the line is not pressed to the ground by one slow request.
    const most = Math.max(least, largest(values), Math.min(largest(second), MOST_ABOVE * Math.max(least, largest(values))));
    const y = (value) => (HEIGHT - 1 - Math.min(1, value / most) * (HEIGHT - 1 - TOP)).toFixed(2);
    this.line.setAttribute("d", path(values, slots, y));
    this.area.setAttribute("d", path(values, slots, y, HEIGHT));
    this.second.setAttribute("d", path(second, slots, y));
    this.element.setAttribute("aria-label", `${this.label}: ${told}`);
  }
}

/** `floor`: close each piece down to there. */
function path(values, slots, y, floor) {
  const start = slots - values.length;
  let drawn = "";
  let from = null;
  values.forEach((value, place) => {
    const x = start + place;
    if (value == null) {
      if (from != null && floor != null) drawn += `L${x - 1} ${floor}L${from} ${floor}Z`;
      from = null;
      return;
    }
    drawn += `${from == null ? "M" : "L"}${x} ${y(value)}`;
    if (from == null) {
      from = x;
      if (floor == null) drawn += `h0.01`;  // a point alone is seen, too
    }
  });
  if (from != null && floor != null) drawn += `L${slots - 1} ${floor}L${from} ${floor}Z`;
  return drawn;
}
