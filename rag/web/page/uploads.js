// Add pictures: the dialog that chooses files, and the uploads that index them.

import { collection, count, ready } from "./collection.js";
import { $, make } from "./dom.js";
import { errorNodes } from "./errors.js";
import { redrawn, t } from "./language.js";
import { addressOf, read, tagsOf } from "./pictures.js";
import { PAGE, found, run } from "./results.js";
import { isBrowsing, value } from "./search_form.js";
import { Failure, ask, dataOf } from "./service.js";

const UPLOADS = 4; // concurrent requests
const PICTURE_ERRORS = new Set([400, 413, 415, 422, 429]); // statuses of errors of one picture
// payload fields that the service sets; it rejects metadata with these names
const SET_BY_SERVICE = "dao_id image_id image_path duplicates content_hash indexed_at".split(" ");

const adding = $("#add");
const fields = $("#add form").elements;

let chosen = [];
const unended = new Set(); // boxes of unfinished uploads
let turn = ready; // resolves when the next upload may start: uploads run one by one

/** Open the dialog if it is closed, and append files to the chosen ones. */
export function choose(files) {
  if (!adding.open) {
    $("#details").close();
    chosen = [];
    fields.dao_id.value = value("dao_id");
    fields.tags.value = "";
    adding.showModal();
  }
  chosen = [...chosen, ...files];
  drawChosen();
}

function drawChosen() {
  const n = chosen.length;
  $("#chosen").textContent = n ? t("chosen", { n }) : t("choose");
  $("#start-add").textContent = n ? t("start", { n }) : t("add");
  $("#start-add").disabled = n === 0;
  $("#add .previews").replaceChildren(
    ...chosen.slice(0, 8).map((file) => {
      const image = make("img", { alt: "", src: URL.createObjectURL(file) });
      image.onload = image.onerror = () => URL.revokeObjectURL(image.src);
      return image;
    }),
  );
}

/** Add files, a few at a time, and show the progress in a box. */
function add(files, daoId, tags) {
  const stopping = new AbortController();
  const { signal } = stopping;
  const counts = { added: 0, unchanged: 0 };
  const begun = new Map(); // promises by picture ID, because two files may be the same picture
  const failures = []; // pairs of a file name and an error
  const list = make("ul");
  const title = make("p");
  const bar = make("progress", { max: files.length, value: 0 });
  const far = make("span");
  const button = make("button", { type: "button", className: "round" });
  button.append($("#details .close").firstElementChild.cloneNode(true));
  const box = make("article", {}, title, button, bar, far, list);
  title.role = "status";
  let started = false;
  let ended = false;

  const draw = () => {
    const n = files.length;
    const results = [t("added", { n: counts.added })];
    if (counts.unchanged) results.push(t("unchanged", { n: counts.unchanged }));
    if (failures.length) results.push(t("failed", { n: failures.length }));
    if (bar.value < n) results.push(t("skipped", { n: n - bar.value }));
    title.textContent = ended ? results.join(", ") : t("running", { n });
    far.textContent = t("of", { done: bar.value, n });
    bar.ariaLabel = t("running", { n });
    button.ariaLabel = button.title = ended ? t("close") : t("stop");
    bar.hidden = far.hidden = ended;
  };
  const failed = ([name, error]) =>
    make("li", {}, make("b", { textContent: name }), " ", ...errorNodes(error));
  const redraw = () => {
    draw();
    list.replaceChildren(...failures.map(failed));
  };
  const addOne = async (file) => {
    try {
      const bytes = await read(file);
      const id = await idOf(bytes);
      const twice = begun.has(id);
      if (!twice) begun.set(id, index(id, bytes, file.name, daoId, tags, signal));
      const added = (await begun.get(id)) && !twice;
      counts[added ? "added" : "unchanged"] += 1;
    } catch (error) {
      if (error.name === "AbortError") return; // the user stopped the upload
      failures.push([file.name, error]);
      list.append(failed(failures.at(-1)));
      const general = error instanceof Failure && !PICTURE_ERRORS.has(error.status);
      if (general) stopping.abort(); // the next files would fail, too
    }
    bar.value += 1;
    draw();
  };
  const work = async (queue) => {
    while (queue.length && !signal.aborted) await addOne(queue.shift());
  };
  const end = () => {
    ended = true;
    unended.delete(box);
    draw();
  };
  button.onclick = () => {
    if (!ended) {
      stopping.abort(); // requests under way may finish
      if (!started) end();
      return;
    }
    redrawn.delete(redraw);
    const beside = box.nextElementSibling ?? box.previousElementSibling;
    (beside?.querySelector("button") ?? $("#open-add")).focus({ preventScroll: true });
    box.remove();
  };
  redrawn.add(redraw);
  draw();
  $("#runs").append(box);
  unended.add(box);
  turn = turn.finally(async () => {
    if (ended) return; // the user stopped it before its turn
    started = true;
    const queue = [...files];
    try {
      await Promise.all(Array.from({ length: UPLOADS }, () => work(queue)));
    } finally {
      end();
    }
    showAdded();
  });
}

/** Show the added pictures, unless the user is looking at something else. */
async function showAdded() {
  await count();
  const reading =
    $("main").ariaBusy === "true" ||
    document.querySelector("dialog[open]") ||
    $("#grid").contains(document.activeElement) ||
    found.pictures.length > PAGE;
  if (!$("#empty").hidden || (isBrowsing() && !reading)) run();
}

/** Index a picture, and return whether it is new. An indexed picture gets missing tags only. */
async function index(id, bytes, name, daoId, tags, patience) {
  if (await isHeld(id, daoId, patience)) {
    if (tags.length) await tag(id, daoId, tags, patience);
    return false;
  }
  // `vision-rag index` gives a file the same title
  const metadata = { title: name.replace(/\.[^.]+$/, "").replaceAll("_", " ") };
  if (tags.length) metadata.tags = tags;
  const body = {
    id,
    image_base64: await dataOf(bytes),
    dao_id: daoId,
    image_path: name,
    metadata,
    collection,
  };
  const { outcome } = await ask("images", { method: "POST", body, patience });
  return outcome === "indexed";
}

/** Return whether a tenant has a picture. The search is cheap: it uses the stored vector. */
async function isHeld(id, daoId, patience) {
  const body = { image: { id }, dao_id: daoId, top_k: 1, collection };
  try {
    await ask("search", { method: "POST", body, patience });
  } catch (error) {
    if (error.status === 404) return false; // the picture or the collection does not exist
    throw error;
  }
  return true;
}

/** Add missing tags to an indexed picture, and keep the rest of its metadata. */
async function tag(id, daoId, tags, patience) {
  const filter = { must: [{ key: "image_id", match: { value: id } }] };
  const body = { text: "a picture", dao_id: daoId, filter, top_k: 1, collection };
  const { hits } = await ask("search", { method: "POST", body, patience });
  if (hits.length === 0) return; // it was removed in the meantime
  const { payload } = hits[0];
  const lacking = tags.filter((one) => !tagsOf(payload).includes(one));
  if (lacking.length === 0) return;
  const given = Object.entries(payload).filter(([name]) => !SET_BY_SERVICE.includes(name));
  const metadata = { ...Object.fromEntries(given), tags: [payload.tags ?? [], lacking].flat() };
  await ask(addressOf(id, daoId), { method: "PATCH", body: { metadata }, patience });
}

/** Return 32 hexadecimal digits that identify bytes. */
async function idOf(bytes) {
  // browsers offer `subtle` over HTTPS and on localhost only; elsewhere the ID is random
  if (!crypto.subtle) return hex(crypto.getRandomValues(new Uint8Array(16)));
  return hex(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).slice(0, 16));
}

const hex = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");

redrawn.add(drawChosen);
window.addEventListener("beforeunload", (event) => {
  if (unended.size) event.preventDefault(); // the browser asks whether to leave
});
$("#open-add").onclick = () => choose([]);
$("#choose-files").onclick = () => $("#files").click();
$("#files").onchange = ({ target }) => {
  choose([...target.files]);
  target.value = ""; // so that the same file can be chosen again
};
$("#add form").onsubmit = () => {
  const tags = fields.tags.value.split(",").map((tag) => tag.trim());
  add(chosen, fields.dao_id.value.trim() || "default", tags.filter(Boolean));
};
