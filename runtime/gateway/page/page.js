// The status page: looks at the gateway once a second while somebody looks at the page.

import { ask, key } from "./api.js";
import { $, count, offer, rate, say, size, span } from "./dom.js";
import { showErrors, showModels, showState, stateOf } from "./models.js";
import { Plot } from "./plot.js";
import { prepareTrying } from "./try.js";

const EVERY_MS = 1000;
const AWAY_MOST_MS = 5000;
const LOG_LINES = 200;
const WINDOWS_S = [120, 300, 600];

const plot = new Plot($("plot"), (point) => {
  pointed = point;
  showRate();
});
let pointed = null; // the point of the plot under the pointer
let rates = [];
let heardAt = null; // when the gateway last answered
let failures = 0;
let timer = null;
let looking = false;

function mean(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : 0;
}

function showRate() {
  const now = mean(rates.slice(-3));
  say($("rate-now"), rate(pointed ? pointed.value : now));
  const most = rates.length ? Math.max(...rates) : 0;
  say($("rate-note"), pointed ? `${span(pointed.ago)} ago` : most ? `highest ${rate(most)}` : "no traffic yet");
  return { now, most };
}

function showGateway(snapshot) {
  $("main").hidden = false; // before, nothing is known, and zeros would be lies
  const { gateway = {}, models = [] } = snapshot;
  say($("version"), gateway.version ? `version ${gateway.version}` : "");
  say($("address"), gateway.address ?? location.host);
  const uptime = (Date.now() - Date.parse(gateway.started_at)) / 1000;
  say($("foot"), uptime >= 0 ? `Process ${gateway.pid}, up ${span(uptime)}` : "");

  rates = gateway.history?.tokens ?? [];
  const seconds = WINDOWS_S.find((each) => rates.length <= each) ?? WINDOWS_S.at(-1);
  const { now, most } = showRate();
  plot.show(rates, seconds, `Tokens per second over the last ${seconds / 60} minutes: now ${rate(now)}, highest ${rate(most)}.`);

  const servers = models.map((model) => model.snapshot).filter(Boolean);
  const sum = (of, from) => from.reduce((total, each) => total + (of(each) ?? 0), 0);
  const busy = servers.some((each) => typeof each.slots?.busy === "number");
  say($("n-slots"), servers.length ? `${busy ? sum((each) => each.slots?.busy, servers) : "–"} / ${sum((each) => each.slots?.total, servers)}` : "–");
  say($("n-queue"), count(sum((model) => model.queue?.waiting, models)));
  say($("n-requests"), count(gateway.requests));
  say($("n-memory"), size(sum((each) => each.memory?.rss_bytes, servers)));
  showModels(models);
  showErrors(gateway, models);
}

function showHealth(health) {
  showState($("state"), $("state-text"), stateOf(health?.status));
  document.title = `${$("state-text").textContent} · llama-runtime`;
}

function askForKey(refused) {
  const form = $("key-form");
  $("key-problem").hidden = !refused;
  say($("key-problem"), "The gateway refused this key.");
  $("forget").hidden = true;
  $("main").hidden = true;
  if (form.hidden) {
    form.hidden = false;
    $("key").focus();
  }
}

function showAway(error) {
  showState($("state"), $("state-text"), ["No answer", "bad"]);
  document.title = "No answer · llama-runtime";
  const since = heardAt ? ` It was last heard ${new Date(heardAt).toLocaleTimeString("en-GB")}.` : "";
  say($("away"), `${error.message}${since} ${error.hint}`);
  $("away").hidden = false;
  $("main").classList.add("stale");
}

async function showLog() {
  const chosen = $("log-model").value;
  const log = await ask(`logs?n=${LOG_LINES}${chosen ? `&model=${encodeURIComponent(chosen)}` : ""}`);
  const box = $("log");
  const text = (log.lines ?? []).join("\n");
  if (box.textContent === text) return;
  const at = box.scrollTop;
  box.textContent = text;
  box.scrollTop = $("follow").checked ? box.scrollHeight : at;
}

async function look() {
  showHealth(await ask("health", { anyStatus: true }));
  heardAt = Date.now();
  failures = 0;
  $("away").hidden = true;
  $("main").classList.remove("stale");
  try {
    const [snapshot, models] = await Promise.all([ask("snapshot"), ask("v1/models")]);
    $("key-form").hidden = true;
    $("forget").hidden = !key.get();
    showGateway(snapshot);
    const names = (models.data ?? []).map((model) => model.id);
    offer($("model"), names);
    const loaded = (snapshot.models ?? []).filter((model) => model.snapshot).map((model) => model.name);
    offer($("log-model"), loaded);
    $("log-model-field").hidden = loaded.length < 2;
    await showLog();
  } catch (error) {
    if (error.status === 401) askForKey(key.get() !== "");
    else if (error.status !== 404) throw error;
  }
}

async function turn() {
  if (looking || document.hidden) return;
  looking = true;
  clearTimeout(timer);
  try {
    await look();
  } catch (error) {
    failures += 1;
    showAway(error);
  } finally {
    looking = false;
  }
  timer = setTimeout(turn, failures ? Math.min(AWAY_MOST_MS, EVERY_MS * failures) : EVERY_MS);
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set($("key").value.trim());
  $("key").value = "";
  turn();
});
$("forget").addEventListener("click", () => {
  key.forget();
  turn();
});
document.addEventListener("visibilitychange", turn);
addEventListener("online", turn);
prepareTrying();
turn();
