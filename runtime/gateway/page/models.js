// A card for each model. Cards are made once and their texts changed, so that what is open or
// selected stays so.

import { $, count, h, rate, say, size, when } from "./dom.js";

/** How a state reads, and which dot it gets. */
const STATES = {
  ready: ["Ready", "good"],
  suspect: ["Not moving", "busy"],
  resolving: ["Starting", "busy"],
  waiting: ["Waiting", "busy"],
  starting: ["Starting", "busy"],
  loading: ["Loading", "busy"],
  backoff: ["Restarting", "busy"],
  degraded: ["Degraded", "busy"],
  stopping: ["Ending", "busy"],
  unloading: ["Unloading", "busy"],
  failed: ["Failed", "bad"],
  stopped: ["Stopped", "idle"],
  unloaded: ["Not loaded", "idle"],
};

/** The words and the dot of a state; one that is not known is shown as it is. */
export function stateOf(state, restarts = 0) {
  const [words, dot] = STATES[state] ?? [String(state ?? "unknown"), "unknown"];
  return restarts && words === "Starting" ? ["Restarting", dot] : [words, dot];
}

export function showState(pill, text, [words, dot]) {
  pill.dataset.state = dot;
  say(text, words);
}

const FACTS = ["Device", "Context", "Slots", "Queue", "Memory", "Speed", "Served", "Restarts"];

class Card {
  #parts = {};
  #meters = {};

  constructor(name) {
    this.stateText = h("span");
    this.pill = h("p", { class: "pill" }, h("span", { class: "dot", "aria-hidden": "true" }), this.stateText);
    this.kind = h("p", { class: "small" });
    this.problem = h("p", { class: "problem" });
    this.more = h("dl", { class: "more" });
    this.details = h("details", {}, h("summary", {}, "Why so, and where"), this.more);
    this.facts = h("dl", { class: "facts" }, ...FACTS.map((label) => this.#fact(label)));
    const head = h("div", { class: "model-head" }, h("h3", {}, name), this.pill);
    this.node = h("article", { class: "card" }, head, this.kind, this.facts, this.problem, this.details);
  }

  #fact(label) {
    const main = h("div");
    const sub = h("div", { class: "sub" });
    const value = h("dd", {}, main, sub);
    if (label === "Slots" || label === "Memory") {
      this.#meters[label] = h("meter", { min: "0", max: "1", "aria-label": label });
      value.append(this.#meters[label]);
    }
    this.#parts[label] = [main, sub, h("div", {}, h("dt", {}, label), value)];
    return this.#parts[label][2];
  }

  #set(label, text, more = "") {
    const [main, sub, row] = this.#parts[label];
    row.hidden = text === "";
    say(main, text);
    sub.hidden = more === "";
    say(sub, more);
  }

  #fill(label, value, most) {
    const meter = this.#meters[label];
    meter.hidden = !(typeof value === "number" && most > 0);
    if (meter.hidden) return;
    meter.max = Math.max(most, value);
    meter.high = most * 1.05;
    meter.optimum = 0;
    meter.value = value;
  }

  show(model) {
    const server = model.snapshot ?? null;
    const restarts = server?.restarts ?? 0;
    showState(this.pill, this.stateText, stateOf(model.state ?? server?.state, restarts));
    say(this.kind, server ? kindOf(server) : model.state === "unloaded" ? "It is loaded when it is asked for." : "");
    this.facts.hidden = this.details.hidden = !server;
    const problem = model.error ?? server?.error ?? "";
    this.problem.hidden = !problem;
    say(this.problem, problem);
    if (!server) return;
    const { context, slots, device, memory, speed, threads, last_exit: exit } = server;
    const queue = model.queue ?? {};
    this.#set("Device", deviceOf(device), threads?.actual ? `${threads.actual} thread${threads.actual > 1 ? "s" : ""}` : "");
    this.#set("Context", context?.actual ? `${count(context.actual)} tokens` : "–", "for each request");
    this.#set("Slots", typeof slots?.busy === "number" ? `${slots.busy} of ${slots.total} busy` : `${count(slots?.total)}`);
    this.#fill("Slots", slots?.busy, slots?.total);
    this.#set("Queue", `${count(queue.waiting ?? 0)} waiting`, queue.max_queue ? `room for ${count(queue.max_queue)}` : "");
    this.#set("Memory", size(memory?.rss_bytes), memory?.planned_bytes ? `${size(memory.planned_bytes)} planned` : "");
    this.#fill("Memory", memory?.rss_bytes, memory?.planned_bytes);
    this.#set("Speed", perSecond("", speed?.generated_tokens_per_s) || "–", perSecond("prompts at ", speed?.prompt_tokens_per_s));
    this.#set("Served", `${count(model.counters?.answered ?? model.counters?.requests)} answers`, servedOf(model.counters));
    this.#set("Restarts", count(restarts), exit ? `${exit.reason ?? exit.diagnosis ?? "It ended"}, ${when(exit.at)}` : "");
    this.#reasons(server);
  }

  #reasons(server) {
    const rows = [
      ["Model", server.model?.path],
      ["Engine", [server.engine?.version, server.engine?.why].filter(Boolean).join(": ")],
      ["Device", server.device?.why],
      ["Context", server.context?.why],
      ["Threads", server.threads?.why],
      ["Process", server.pid && `${server.pid}, since ${when(server.started_at)}`],
      ["Log", server.log_path],
      ...(server.notes ?? []).map((note) => ["Note", note]),
      ...(server.history ?? []).slice(-6).map((step) => [when(step.at), `${step.before} → ${step.after}: ${step.reason}`]),
    ].filter(([, text]) => text);
    const now = JSON.stringify(rows);
    if (now === this.shown) return;
    this.shown = now;
    this.more.replaceChildren(...rows.map(([label, text]) => h("div", {}, h("dt", {}, label), h("dd", {}, String(text)))));
  }
}

function kindOf({ model, engine }) {
  const parts = [model?.architecture, model?.quantization, model?.size_bytes && size(model.size_bytes)];
  const by = engine?.kind && `${engine.kind} ${String(engine.version ?? "").replace(/ \(.*/, "")}`.trim();
  return [...parts, by].filter(Boolean).join(" · ");
}

function perSecond(what, tokens) {
  return typeof tokens === "number" ? `${what}${rate(tokens)} tokens/s` : "";
}

function deviceOf(device) {
  if (!device?.actual) return "–";
  const layers = device.gpu_layers;
  return device.actual === "gpu" && layers?.total ? `GPU, ${layers.offloaded} of ${layers.total} layers` : device.actual.toUpperCase();
}

function servedOf(counters) {
  if (!counters) return "";
  const parts = [
    [counters.failed, "failed"],
    [counters.cancelled, "cancelled"],
    [counters.recoveries, "recovered"],
  ].filter(([number]) => number);
  return parts.map(([number, what]) => `${count(number)} ${what}`).join(", ");
}

const cards = new Map();

/** Show these models and no others. */
export function showModels(models) {
  const names = models.map((model) => model.name);
  for (const [name, card] of cards) {
    if (!names.includes(name)) {
      card.node.remove();
      cards.delete(name);
    }
  }
  for (const model of models) {
    if (!cards.has(model.name)) {
      const card = new Card(model.name);
      if (!cards.size) $("models").replaceChildren();
      cards.set(model.name, card);
      $("models").append(card.node);
    }
    cards.get(model.name).show(model);
  }
}

/** The newest errors of the gateway and its models. */
export function showErrors(gateway, models) {
  const errors = [...(gateway.errors ?? models.flatMap((model) => model.errors ?? []))]
    .sort((one, other) => String(other.at ?? "").localeCompare(String(one.at ?? "")))
    .slice(0, 8);
  const list = $("errors");
  const now = JSON.stringify(errors);
  if (list.dataset.shown === now) return;
  list.dataset.shown = now;
  $("no-errors").hidden = errors.length > 0;
  list.replaceChildren(
    ...errors.map((error) => {
      const meta = [when(error.at), error.model, error.path, error.error, error.status && `HTTP ${error.status}`];
      const item = h("li", {}, h("span", { class: "meta" }, meta.filter(Boolean).join(" · ")), String(error.message ?? ""));
      if (error.hint) item.append(h("span", { class: "remedy" }, `→ ${error.hint}`));
      return item;
    }),
  );
}

