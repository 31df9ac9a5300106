// Asking the gateway. Every address is relative to this page: nothing leaves its origin.

const KEY = "llama-runtime-key";
const PATIENCE_MS = 8000;

/** What went wrong, why, and what to do about it. */
export class Problem extends Error {
  constructor(message, { status = 0, hint = "" } = {}) {
    super(message);
    this.status = status;
    this.hint = hint;
  }
}

/** The API key, for as long as this tab lives. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

const AWAY = () =>
  new Problem("The gateway does not answer.", { hint: "Is `llama-runtime serve` still running? This page goes on trying." });

function headers(more) {
  return key.get() ? { ...more, Authorization: `Bearer ${key.get()}` } : more;
}

async function send(path, options) {
  try {
    return await fetch(path, { cache: "no-store", credentials: "omit", referrerPolicy: "no-referrer", ...options });
  } catch (error) {
    if (options.signal?.aborted && options.signal.reason?.name === "AbortError") throw error;
    throw AWAY();
  }
}

/** The error that an answer carries, in OpenAI's shape: its message ends with the remedy. */
function problemOf(body, status) {
  const message = body?.error?.message;
  if (message) return new Problem(String(message), { status });
  return new Problem(`HTTP ${status}, without a word why.`, { status, hint: "Does the gateway really serve at this address?" });
}

/** The JSON at `path`. `/health` tells its state with any status. */
export async function ask(path, { anyStatus = false } = {}) {
  const reply = await send(path, { headers: headers({}), signal: AbortSignal.timeout(PATIENCE_MS) });
  let body = null;
  try {
    body = await reply.json();
  } catch {
    if (reply.ok) throw new Problem("The gateway's answer is not JSON.", { status: reply.status, hint: "Is it another program's port?" });
  }
  if (!reply.ok && !(anyStatus && body !== null)) throw problemOf(body, reply.status);
  return body;
}

/** The events of a streamed answer, each as its JSON; ends at [DONE] and at nothing else. */
export async function* streamed(path, body, signal) {
  const reply = await send(path, {
    method: "POST",
    headers: headers({ "Content-Type": "application/json", Accept: "text/event-stream" }),
    body: JSON.stringify(body),
    signal,
  });
  if (!reply.ok) throw problemOf(await reply.json().catch(() => null), reply.status);
  for await (const data of events(reply.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw problemOf(event, 200);
    yield event;
  }
  throw new Problem("The answer broke off before its end.", { hint: "The gateway went away: send it again when it is back." });
}

/** The data of server-sent events (WHATWG HTML, 9.2.6), however the bytes are cut. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The answer broke off before its end.", { hint: "The gateway went away: send it again when it is back." });
  } finally {
    reader.cancel().catch(() => {}); // leaving early closes the connection
  }
}
