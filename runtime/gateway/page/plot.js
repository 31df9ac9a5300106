// Tokens per second over time: one area in SVG, drawn in real pixels so that lines stay thin.

const SVG = "http://www.w3.org/2000/svg";
const ABOVE = 14; // pixels for the label of the highest line
const BELOW = 18; // pixels for the time axis
const PIXELS_A_POINT = 3;
const LEAST_TOP = 10; // tokens per second

function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** The least of 1, 2, 5 times a power of ten that is not below `value`. */
export function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].find((step) => step * power >= value) * power;
}

/** Means of so many neighbours that no more than `most` points are left, the newest whole. */
export function thinned(values, most) {
  const each = Math.max(1, Math.ceil(values.length / Math.max(1, most)));
  const points = [];
  for (let end = values.length; end > 0; end -= each) {
    const part = values.slice(Math.max(0, end - each), end);
    points.unshift(part.reduce((sum, value) => sum + value, 0) / part.length);
  }
  return { points, each };
}

export class Plot {
  #box;
  #svg = shape("svg", { role: "img" });
  #values = [];
  #seconds = 120;
  #at = null; // where the pointer is, as a share of the width

  constructor(box, onPoint) {
    this.#box = box;
    box.append(this.#svg);
    new ResizeObserver(() => this.#draw()).observe(box);
    box.addEventListener("pointermove", (event) => {
      const frame = box.getBoundingClientRect();
      this.#at = Math.min(1, Math.max(0, (event.clientX - frame.left) / frame.width));
      this.#draw();
    });
    box.addEventListener("pointerleave", () => {
      this.#at = null;
      this.#draw();
    });
    this.onPoint = onPoint;
  }

  /** Show values of one second each, oldest first, on an axis of `seconds`. */
  show(values, seconds, summary) {
    this.#values = values.slice(-seconds);
    this.#seconds = seconds;
    this.#svg.setAttribute("aria-label", summary);
    this.#draw();
  }

  #draw() {
    const width = this.#box.clientWidth;
    const height = this.#box.clientHeight;
    if (!width) return;
    const { points, each } = thinned(this.#values, Math.floor(width / PIXELS_A_POINT));
    const top = ceiling(Math.max(LEAST_TOP, ...points));
    const x = (ago) => width * (1 - ago / this.#seconds);
    const y = (value) => ABOVE + (height - ABOVE - BELOW) * (1 - value / top);
    const spot = (at) => [x((points.length - 1 - at) * each), y(points[at])];
    this.#svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.#svg.replaceChildren(...this.#frame(width, height, top, y), ...this.#curve(points, spot, y(0)));
    this.#cursor(points, each, width, spot, y(0));
  }

  #frame(width, height, top, y) {
    const lines = [0, top / 2, top].map((value) =>
      shape("line", { class: "grid", x1: 0, x2: width, y1: y(value), y2: y(value) }),
    );
    const labels = [top / 2, top].map((value) => shape("text", { x: 0, y: y(value) - 4 }, String(value)));
    const minutes = this.#seconds / 60;
    const times = [
      [0, "start", `−${minutes} min`],
      [width / 2, "middle", `−${minutes / 2} min`],
      [width, "end", "now"],
    ].map(([at, anchor, text]) => shape("text", { x: at, y: height - 3, "text-anchor": anchor }, text));
    return [...lines, ...labels, ...times];
  }

  #curve(points, spot, ground) {
    if (!points.length) return [];
    const path = points.map((_, at) => spot(at).map((each) => each.toFixed(1)).join(" ")).join("L");
    const [first] = spot(0);
    const [last] = spot(points.length - 1);
    return [
      shape("path", { class: "area", d: `M${first.toFixed(1)} ${ground}L${path}L${last.toFixed(1)} ${ground}Z` }),
      shape("path", { class: "line", d: `M${path}` }),
    ];
  }

  #cursor(points, each, width, spot, ground) {
    if (this.#at === null || !points.length) {
      this.onPoint(null);
      return;
    }
    const ago = (1 - this.#at) * this.#seconds;
    const at = Math.max(0, points.length - 1 - Math.round(ago / each));
    const [x, y] = spot(at);
    this.#svg.append(
      shape("line", { class: "cursor", x1: x, x2: x, y1: ABOVE, y2: ground }),
      shape("circle", { class: "mark", cx: x, cy: y, r: 4 }),
    );
    this.onPoint({ value: points[at], ago: (points.length - 1 - at) * each });
  }
}
