// Requests to the service: they carry the key, and are sent again while the service is busy.

import { redrawn, t } from "./language.js";

const TRIES = 4; // of a request while the answer is 429
const LONGEST_WAIT = 10; // seconds between two tries, even if Retry-After is longer

export class Failure extends Error {
  /** `say` returns the message in the current language. */
  constructor(say, status, code) {
    super();
    this.say = say;
    this.status = status;
    this.code = code;
  }

  get message() {
    return this.say();
  }
}

/**
 * Return the service's answer. Retry while the service is busy. Raises `Failure`, or AbortError:
 * `signal` ends the request, `patience` ends only the wait before the next try.
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
      throw new Failure(() => t("away"));
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
    if (!answer.ok || !data) {
      const { status } = answer;
      const said = () => (status === 401 ? t("keyNeeded") : data?.error) ?? t("odd", { status });
      throw new Failure(said, status, data?.code);
    }
    return data;
  }
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
    reader.onerror = () => reject(new Failure(() => t("unreadable"), 400));
    reader.readAsDataURL(new Blob([bytes]));
  });
}

/** Show an image of the service. An <img> alone cannot send the key. */
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

let key = sessionStorage.getItem("key") ?? ""; // kept until the tab is closed
let unlocking = null; // resolves when the dialog that is open closes

/** Ask for another key than the refused one, and return whether there is one. */
async function unlock(refused) {
  if (refused !== key) return true; // another request asked for it meanwhile
  unlocking ??= askForKey(refused).finally(() => {
    unlocking = null;
  });
  return unlocking;
}

function askForKey(refused) {
  const input = document.querySelector("#key");
  const draw = () => {
    document.querySelector("#lock-text").textContent = t(refused ? "keyWrong" : "keyNeeded");
  };
  redrawn.add(draw);
  draw();
  input.value = "";
  input.ariaInvalid = String(Boolean(refused));
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
