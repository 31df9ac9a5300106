// The box to try a prompt in: one streamed request at a time, which Stop really cancels.

import { Problem, streamed } from "./api.js";
import { $, count, rate, say } from "./dom.js";

let running = null; // the AbortController of the request under way

function busy(yes) {
  const [goes, comes] = yes ? [$("send"), $("stop")] : [$("stop"), $("send")];
  const focused = document.activeElement === goes;
  goes.hidden = true;
  comes.hidden = false;
  if (focused) comes.focus();
  $("answer").setAttribute("aria-busy", String(yes));
}

function complain(error) {
  const problem = $("try-problem");
  const said = error instanceof Problem ? error : new Problem(`The answer could not be read: ${error.message}`);
  problem.replaceChildren(said.message);
  if (said.hint) {
    const remedy = document.createElement("div");
    remedy.className = "remedy";
    remedy.textContent = `→ ${said.hint}`;
    problem.append(remedy);
  }
  problem.hidden = false;
}

/** The answer as it grows: one text, drawn once a frame however fast tokens come. */
class Paper {
  #node = $("answer");
  #text = document.createTextNode("");
  #fresh = "";
  #drawing = 0;

  constructor() {
    this.#node.replaceChildren(this.#text);
  }

  add(text) {
    this.#fresh += text;
    this.#drawing ||= requestAnimationFrame(() => this.draw());
  }

  /** Show what has come; the end stays in sight where the reader is there. */
  draw() {
    cancelAnimationFrame(this.#drawing);
    this.#drawing = 0;
    const box = this.#node;
    const follows = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
    this.#text.appendData(this.#fresh);
    this.#fresh = "";
    if (follows) box.scrollTop = box.scrollHeight;
  }
}

/** What an answer came to, in one line. */
function account({ began, first, last, pieces, usage, reason }) {
  const tokens = usage?.completion_tokens ?? pieces;
  const seconds = (last - first) / 1000;
  return [
    `${count(tokens)} tokens`,
    tokens > 1 && seconds > 0 && `${rate((tokens - 1) / seconds)} tokens/s`,
    first && `first after ${count(first - began)} ms`,
    reason === "length" && "cut off by the limit",
    reason === "stopped" && "stopped",
  ]
    .filter(Boolean)
    .join(" · ");
}

async function send() {
  if (running) return;
  running = new AbortController();
  const trip = { began: performance.now(), first: 0, last: 0, pieces: 0, usage: null, reason: "" };
  const paper = new Paper();
  $("try-problem").hidden = true;
  say($("try-status"), "Waiting for the first token …");
  busy(true);
  // The status is read out, so it changes once a second and not with each token.
  const ticker = setInterval(() => trip.first && say($("try-status"), account(trip)), 1000);
  const body = {
    model: $("model").value || undefined,
    messages: [{ role: "user", content: $("prompt").value }],
    max_tokens: Number($("max-tokens").value) || undefined,
    stream: true,
    stream_options: { include_usage: true },
  };
  try {
    for await (const event of streamed("v1/chat/completions", body, running.signal)) {
      trip.usage = event.usage ?? trip.usage;
      const [choice] = event.choices ?? [];
      trip.reason = choice?.finish_reason ?? trip.reason;
      const text = choice?.delta?.content ?? choice?.delta?.reasoning_content;
      if (!text) continue;
      trip.last = performance.now();
      trip.first ||= trip.last;
      trip.pieces += 1;
      paper.add(text);
    }
    say($("try-status"), account(trip));
  } catch (error) {
    if (error.name === "AbortError") trip.reason = "stopped";
    else complain(error);
    say($("try-status"), trip.first || error.name === "AbortError" ? account(trip) : "");
  } finally {
    clearInterval(ticker);
    paper.draw();
    running = null;
    busy(false);
  }
}

/** Wire the box up. */
export function prepareTrying() {
  $("try").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("stop").addEventListener("click", () => running?.abort());
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      $("try").requestSubmit();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
}
