// Building and changing the page. Whatever comes from a model, a log or a file is only ever text:
// nothing here parses HTML, and the page's policy (Trusted Types) forbids it besides.

export const $ = (id) => document.getElementById(id);

/** An element with attributes and children; strings become text. */
export function h(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Change a text only where it differs, so that selections and screen readers are left alone. */
export function say(node, text) {
  const wanted = text === "" ? "\u00a0" : text;
  if (node.textContent !== wanted) node.textContent = wanted;
}

/** Make a select offer these values, keeping the choice where it is still there. */
export function offer(select, values) {
  if (values.join("\n") === Array.from(select.options, (each) => each.value).join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(...values.map((each) => h("option", { value: each }, each)));
  if (values.includes(chosen)) select.value = chosen;
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** 1234.5 -> "1,235"; "–" where nothing is known. */
export function count(value) {
  return typeof value === "number" ? whole.format(value) : "–";
}

/** A rate with as many digits as mean something. */
export function rate(value) {
  if (typeof value !== "number") return "–";
  return value > 0 && value < 10 ? value.toFixed(1) : whole.format(value);
}

/** Bytes for a person, in the decimal units of the command line ("98.4 MB"). */
export function size(bytes) {
  if (typeof bytes !== "number") return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (bytes >= 1000 && at < units.length - 1) [bytes, at] = [bytes / 1000, at + 1];
  return `${bytes.toFixed(at === 0 || bytes >= 100 ? 0 : 1)} ${units[at]}`;
}

/** Seconds for a person ("3 min 20 s"). */
export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** The time of day of an ISO instant, with the date where it was not today. */
export function when(instant) {
  const at = new Date(instant);
  if (Number.isNaN(at.getTime())) return "";
  const time = at.toLocaleTimeString("en-GB");
  return at.toDateString() === new Date().toDateString() ? time : `${at.toLocaleDateString("en-CA")} ${time}`;
}
