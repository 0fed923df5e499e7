// Send requests to the service, with the key. Retry while the service is busy.

import { errorText, redrawn, t } from "./language.js";

const TRIES = 4; // at most, for a request that is answered with 429
const LONGEST_WAIT = 10; // seconds before a retry, even if Retry-After is longer

export class Failure extends Error {
  /**
   * `say` returns the message in the current language. `status`, `code` and `sentence` (the error
   * in English) are the service's; without an answer they are undefined.
   */
  constructor(say, { status, code, sentence } = {}) {
    super();
    this.say = say;
    this.status = status;
    this.code = code;
    this.sentence = sentence;
  }

  get message() {
    return this.say();
  }
}

/**
 * Return the service's answer. Raises `Failure`, or AbortError when a signal aborts: `signal` ends
 * the request, `patience` only the wait before a retry. `onBusy` gets the seconds of that wait.
 */
export async function ask(path, options = {}) {
  const { method = "GET", body, signal, patience = signal, onBusy = () => {} } = options;
  for (let tries = 1; ; tries++) {
    let answer;
    try {
      answer = await send(path, {
        method,
        signal,
        headers: body && { "Content-Type": "application/json" },
        body: body && JSON.stringify(body),
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure(() => t("unreachable"));
    }
    if (answer.status === 401 && (await unlock(answer.key))) {
      tries -= 1;
      continue;
    }
    if (answer.status === 429 && tries < TRIES) {
      const seconds = Number(answer.headers.get("Retry-After")) || 1;
      onBusy(Math.min(seconds, LONGEST_WAIT));
      await rest(Math.min(seconds, LONGEST_WAIT) * 1000, patience);
      continue;
    }
    const data = await answer.json().catch(() => null);
    if (!answer.ok || !data) throw failureOf(answer.status, data);
    return data;
  }
}

/** Return the failure of an answer; `data` is its body, null if that is not JSON. */
function failureOf(status, data) {
  const code = status === 401 ? "unauthorized" : data?.code;
  if (errorText(code)) {
    return new Failure(() => errorText(code), { status, code, sentence: data?.error });
  }
  return new Failure(() => data?.error ?? t("unexpected", { status }), { status, code });
}

/** Send a request with the key, if there is one. The answer's `key` is the key that was sent. */
async function send(path, { headers, ...options } = {}) {
  const sent = key;
  const answer = await fetch(path, {
    ...options,
    headers: { ...headers, ...(sent && { Authorization: `Bearer ${sent}` }) },
  });
  return Object.assign(answer, { key: sent });
}

function rest(ms, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const waiting = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(waiting);
      reject(signal.reason);
    });
  });
}

/** Return bytes as a data: URI. */
export function dataOf(bytes) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Failure(() => t("unreadable"), { status: 400 }));
    reader.readAsDataURL(new Blob([bytes]));
  });
}

/** Show an image of the service. With a key, fetch it: an <img> cannot send a header. */
export async function show(image, path) {
  image.path = path;
  if (!key) {
    image.src = path;
    return;
  }
  const answer = await send(path).catch(() => null);
  const source = answer?.ok ? URL.createObjectURL(await answer.blob()) : "";
  if (image.path !== path || !source) {
    URL.revokeObjectURL(source);
    if (image.path === path) image.dispatchEvent(new Event("error"));
    return;
  }
  image.addEventListener("load", () => URL.revokeObjectURL(source), { once: true });
  image.src = source;
}

// ---- the key -------------------------------------------------------------------------------

const lock = document.querySelector("#lock");

let key = sessionStorage.getItem("key") ?? ""; // kept until the tab closes
let unlocking = null; // the promise of askForKey while its dialog is open

/** Ask for a key in place of the rejected one. Return whether there is a new key. */
async function unlock(rejected) {
  if (rejected !== key) return true; // the key was replaced while the request was under way
  unlocking ??= askForKey(rejected).finally(() => {
    unlocking = null;
  });
  return unlocking;
}

/** Ask for a key in a dialog. Return whether the user entered one. */
function askForKey(rejected) {
  const input = document.querySelector("#key");
  const draw = () => {
    const text = rejected ? t("keyWrong") : errorText("unauthorized");
    document.querySelector("#lock-text").textContent = text;
  };
  redrawn.add(draw);
  draw();
  input.value = "";
  input.ariaInvalid = String(Boolean(rejected));
  lock.returnValue = "";
  lock.showModal();
  return new Promise((resolve) => {
    lock.onclose = () => {
      redrawn.delete(draw);
      const given = lock.returnValue === "given";
      if (given) {
        key = input.value.trim();
        sessionStorage.setItem("key", key);
      }
      input.value = "";
      resolve(given);
    };
  });
}
