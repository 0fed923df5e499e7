// The search page. What the service says is only ever set as text, never as HTML; the query
// string of the page's address holds the search, under the names of the form's fields.

import { language, redrawn, speak, t } from "./language.js";
import { Failure, ask, dataOf, show } from "./service.js";

const PAGE = 24; // pictures at a time
const UPLOADS = 4; // requests under way at a time
const TYPING_MS = 250; // of rest before a search is made
const ONE_PICTURES = new Set([400, 413, 415, 422, 429]); // statuses that say nothing of the next
// what the index itself sets of a payload, and takes from nobody
const OURS = "dao_id image_id image_path duplicates content_hash indexed_at".split(" ");

const $ = (selector) => document.querySelector(selector);

// ---- what is searched for ------------------------------------------------------------------

const form = $("#search");
const BLANK = new Map([...form.elements].map(({ name, defaultValue }) => [name, defaultValue]));
const examples = new Map(); // files searched by, by the key that the history has of them

const { promise: ready, resolve: begin } = Promise.withResolvers(); // when these are known

let info = {};
let collection = "";
let example = null; // the file to search by
let chip = null; // what the chip shows: that file, or the address of an indexed picture
let timer = null; // of a search while typing

const value = (name) => form.elements[name].value.trim();
const isBrowsing = () => !example && !["q", "like", "not", "tag"].some(value);

/** Return the page's address for what the form says. */
function address() {
  const query = new URLSearchParams();
  const asked = new URLSearchParams(location.search).get("collection");
  if (asked) query.set("collection", asked);
  for (const { name } of form.elements) {
    if (!name || !value(name) || (name === "share" && !isMixed())) continue;
    query.set(name, value(name));
  }
  const text = query.toString();
  return location.pathname + (text && `?${text}`);
}

const isOff = () => info.qdrant_enabled === false;
const isMixed = () => Boolean(value("q") && (example || value("like")));

/** Make the search that the form says, and give it a place in the history. */
function go({ typing = false } = {}) {
  clearTimeout(timer);
  const to = address();
  const key = example && [...examples].find(([, file]) => file === example)[0];
  const state = { typing, example: key };
  const here = location.pathname + location.search;
  const same = to === here && key === (history.state?.example ?? null);
  // one entry for all that is typed until Enter
  if (same || (typing && history.state?.typing)) history.replaceState(state, "", to);
  else history.pushState(state, "", to);
  drawQuery();
  return run();
}

function goSoon() {
  clearTimeout(timer);
  timer = setTimeout(go, TYPING_MS, { typing: true });
}

/** Search for what the page's address says. */
function comeBack() {
  clearTimeout(timer);
  details.close();
  fill(form.elements);
  return run();
}

/** Fill fields of the form with what the page's address says. */
function fill(fields) {
  const query = new URLSearchParams(location.search);
  for (const { name } of fields) {
    if (name) form.elements[name].value = query.get(name) ?? BLANK.get(name);
  }
  example = examples.get(history.state?.example) ?? null;
  if (value("not") || value("dao_id") || value("tag")) $("#filters").open = true;
  drawQuery();
}

function searchBy(file) {
  examples.set(crypto.getRandomValues(new Uint32Array(2)).join(""), file);
  example = file;
  form.elements.like.value = form.elements.like_dao_id.value = "";
  scrollTo({ top: 0 });
  return go();
}

function searchLike(picture) {
  form.elements.q.value = "";
  example = null;
  form.elements.like.value = picture.id;
  form.elements.like_dao_id.value = picture.dao_id;
  return goFromDetails();
}

/** Make the search that the form says, the dialog being where it was wanted. */
function goFromDetails() {
  details.close();
  form.elements.q.focus();
  scrollTo({ top: 0 });
  return go();
}

/** Return one page of pictures `from` a place on, and what it is a page of. */
async function find(from, signal) {
  // taken now: the form may say something else when the answer comes
  const asked = address();
  const browsing = isBrowsing();
  const scored = Boolean(example || value("q") || value("like"));
  const filtered = Boolean(!browsing || value("dao_id"));
  if (browsing) {
    const query = new URLSearchParams({ limit: PAGE });
    if (value("dao_id")) query.set("dao_id", value("dao_id"));
    if (from) query.set("start", from);
    const path = `collections/${encodeURIComponent(collection)}/images?${query}`;
    const { images, next } = await ask(path, { signal, onBusy });
    return { pictures: images, next, asked, browsing, scored, filtered };
  }
  const share = Number(value("share")) / 100;
  const image = example
    ? { image_base64: await dataOf(await read(example)) }
    : value("like") && { id: value("like") };
  const body = {
    // a search needs an example: where there are only conditions, any will do
    text: value("q") || (image ? undefined : "a picture"),
    image: image || undefined,
    weights: isMixed() ? [1 - share, share] : undefined,
    negative: value("not") ? { text: value("not") } : undefined,
    // an indexed picture is looked up, and searched by, within its tenant
    dao_id: (value("like") ? value("like_dao_id") : value("dao_id")) || undefined,
    filter: value("tag")
      ? { must: [{ key: "tags", match: { value: value("tag") } }] }
      : undefined,
    top_k: PAGE,
    offset: from ?? 0,
    collection,
  };
  const { hits, next_offset: next } = await ask("search", { method: "POST", body, signal, onBusy });
  const pictures = hits.map((hit) => ({ ...hit, dao_id: hit.payload.dao_id ?? "default" }));
  return { pictures, next, asked, browsing, scored, filtered };
}

function drawQuery() {
  const like = value("like");
  $("#chip").hidden = !example && !like;
  $("#mix").hidden = !isMixed();
  document.title = [value("q"), t("title")].filter(Boolean).join(" · ");
  const daoId = value("like_dao_id") || "default";
  const wanted = example ?? addressOf(like, daoId);
  if ($("#chip").hidden || !collection || chip === wanted) return;
  chip = wanted;
  const image = $("#chip-picture");
  URL.revokeObjectURL(image.src);
  image.removeAttribute("src"); // what is shown now may have no thumbnail
  if (example) image.path = image.src = URL.createObjectURL(example);
  else show(image, addressOf(like, daoId, "/thumbnail"));
  const title = titles.get(wanted);
  $("#chip-title").textContent = example
    ? example.name
    : titleOf({ id: like, path: like, payload: { title } });
}

/** Return the address of what the service has of one picture. */
function addressOf(id, daoId, what = "") {
  const query = new URLSearchParams({ dao_id: daoId, collection });
  return `images/${encodeURIComponent(id)}${what}?${query}`;
}

/** Return the bytes of a file. Raises `Failure` where it is too large or unreadable. */
async function read(file) {
  const most = info.max_image_bytes;
  if (file.size > most) {
    const size = Math.ceil(file.size / 1e6);
    throw new Failure(() => t("tooLarge", { size, most: most / 1e6 }), 413);
  }
  return file.arrayBuffer().catch(() => {
    throw new Failure(() => t("unreadable"), 400);
  });
}

// ---- what is found -------------------------------------------------------------------------

const titles = new Map(); // of pictures seen, by their addresses

const main = $("main");
const alert = $("#alert");

let found = { pictures: [], next: null };
let status = () => "";
let problem = () => "";
let controller = new AbortController(); // of the search whose answer is wanted

function onBusy(n) {
  status = () => t("busy", { n });
  drawStatus();
}

/** Show what the form asks for, in place of what is shown or, with `more`, after it. */
async function run({ more = false } = {}) {
  controller.abort();
  controller = new AbortController();
  const { signal } = controller;
  main.ariaBusy = "true";
  $("#more").hidden = true;
  try {
    await ready;
    const page = await find(more ? found.next : null, signal);
    if (signal.aborted) return;
    const seen = more ? found.pictures : [];
    found = { ...page, pictures: [...seen, ...page.pictures] };
    showFound(seen.length);
    hideAlert();
    if (points === null && !counting) count(); // it was away
  } catch (error) {
    if (!signal.aborted) showFailure(error, more);
  } finally {
    if (!signal.aborted) main.ariaBusy = "false";
  }
}

function showFound(from) {
  const { browsing, scored, filtered } = found;
  const n = found.pictures.length;
  const empty = n === 0 && (!filtered || points === 0);
  $("#empty").hidden = !empty;
  status = () => {
    if (n === 0) return empty ? "" : t("none");
    if (browsing) return t("some");
    if (from > 0) return t("foundMore", { n });
    return t(scored ? "found" : "tagged", { n });
  };
  for (const picture of found.pictures.slice(from)) remember(picture);
  drawStatus();
  drawPictures(from);
  if (from > 0) $("#grid").children[from]?.firstChild.focus();
}

function showFailure(error, more, again = () => run({ more })) {
  if (!(error instanceof Failure)) throw error;
  if (more) $("#more").hidden = false;
  const empty = error.code === "collection_not_found";
  if (!more) found = { pictures: [], next: null };
  status = () => "";
  drawStatus();
  if (!more) drawPictures();
  $("#empty").hidden = !empty;
  problem = () => error.message;
  drawAlert();
  if (empty) return hideAlert();
  const place = more ? $("#more") : $("#grid");
  if (alert.nextElementSibling !== place) place.before(alert); // moving it would lose the focus
  alert.hidden = false;
  $("#alert button").onclick = again;
  if (more) $("#alert button").focus();
}

function hideAlert() {
  const focused = alert.contains(document.activeElement);
  alert.hidden = true;
  if (focused) form.elements.q.focus();
}

function remember({ id, dao_id, payload }) {
  titles.set(addressOf(id, dao_id), titleOf({ id, payload }));
  suggest("#tenants", [dao_id]);
  suggest("#tags", tagsOf(payload));
}

function suggest(list, values) {
  const options = $(list);
  const known = new Set([...options.children].map((option) => option.value));
  for (const one of values) if (!known.has(one)) options.append(make("option", { value: one }));
}

const tagsOf = (payload) => [payload.tags ?? []].flat().filter((tag) => typeof tag === "string");

function titleOf({ id, path, payload }) {
  const name = (path || payload.image_path || "").split(/[\\/]/).pop();
  return String(payload.title || payload.caption || name || id);
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Return a picture's thumbnail, which becomes a tile with its title where there is none. */
function thumbnail(picture, lazy) {
  const alt = titleOf(picture);
  const image = make("img", { alt, loading: lazy ? "lazy" : "eager", width: 384, height: 384 });
  image.onerror = () => {
    const tile = make("span", { className: "missing", textContent: alt });
    image.replaceWith(tile);
  };
  show(image, addressOf(picture.id, picture.dao_id, "/thumbnail"));
  return image;
}

const scoreOf = ({ score }) =>
  score.toLocaleString(language, { minimumFractionDigits: 3, maximumFractionDigits: 3 });

function card(picture) {
  const title = make("span", { className: "title", textContent: titleOf(picture) });
  title.ariaHidden = "true"; // the picture's alternative text says it
  const caption = make("span", { className: "caption" }, title);
  if (found.scored) {
    caption.append(make("span", { className: "score", textContent: scoreOf(picture) }));
  }
  const button = make("button", { type: "button" }, thumbnail(picture, true), caption);
  button.onclick = () => {
    button.focus(); // Safari does not; the dialog gives the focus back when it closes
    openDetails(picture);
  };
  return make("li", {}, button);
}

/** Draw the cards of what is found, those before `from` being drawn already. */
function drawPictures(from = 0) {
  const cards = found.pictures.slice(from).map(card);
  if (from > 0) $("#grid").append(...cards);
  else $("#grid").replaceChildren(...cards);
  $("#more").hidden = found.next === null;
}

function drawStatus() {
  $("#status").textContent = status();
}

function drawAlert() {
  $("#alert p").textContent = problem();
}

/** Move the focus in the grid with the arrow keys. */
function moveFocus(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return; // the browser's
  const cards = [...$("#grid").children];
  const at = cards.findIndex((one) => one.contains(document.activeElement));
  const columns = cards.findIndex((one) => one.offsetTop > cards[0].offsetTop);
  const row = columns < 0 ? cards.length : columns;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row, ArrowUp: -row };
  const ends = { Home: 0, End: cards.length - 1 };
  const to = ends[event.key] ?? at + steps[event.key];
  if (at < 0 || !(to in cards)) return;
  event.preventDefault();
  cards[to].firstChild.focus();
}

// ---- one picture ---------------------------------------------------------------------------

const details = $("#details");

let opened = null; // the picture that it shows

function openDetails(picture) {
  opened = picture;
  const { id, dao_id, path, payload } = picture;
  $("#details .photo").replaceChildren(thumbnail(picture, false));
  $("#details-title").textContent = titleOf(picture);
  $("#details .tags").replaceChildren(...tagsOf(payload).map(tagButton));
  const rows = [[t("id"), id], [t("tenant"), dao_id], [t("path"), path]];
  if (found.scored) rows.unshift([t("score"), scoreOf(picture)]);
  const shown = new Set(["image_id", "dao_id", "image_path"]);
  rows.push(...Object.entries(payload).filter(([name]) => !shown.has(name)));
  $("#details tbody").replaceChildren(
    ...rows.map(([name, data]) =>
      make("tr", {}, make("th", { scope: "row", textContent: name }), cell(data)),
    ),
  );
  $("#details .problem").textContent = "";
  askToForget(false);
  details.showModal();
  $("#details-title").focus(); // the first button may be below a long table
  details.scrollTop = 0;
}

function cell(data) {
  const plain = (one) => one === null || typeof one !== "object";
  const text = Array.isArray(data) && data.every(plain) ? data.join(", ") : data;
  return plain(text)
    ? make("td", { textContent: String(text ?? "") })
    : make("td", {}, make("pre", { textContent: JSON.stringify(data, null, 2) }));
}

function tagButton(tag) {
  const button = make("button", { type: "button", textContent: tag });
  button.onclick = () => {
    form.elements.tag.value = tag;
    $("#filters").open = true;
    goFromDetails();
  };
  return button;
}

function askToForget(asking) {
  $("#confirm").hidden = !asking;
  $("#like-this").parentElement.hidden = asking;
  if (asking) $("#forget-no").focus();
}

async function forget() {
  const picture = opened;
  try {
    await ask(addressOf(picture.id, picture.dao_id), { method: "DELETE" });
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    $("#details .problem").textContent = error.message;
    return;
  }
  details.close();
  const at = found.pictures.findIndex(
    ({ id, dao_id }) => id === picture.id && dao_id === picture.dao_id,
  );
  if (at >= 0) {
    found.pictures.splice(at, 1);
    if (typeof found.next === "number") found.next -= 1; // so many are left out of the next page
    drawPictures();
    const { children } = $("#grid");
    (children[Math.min(at, children.length - 1)]?.firstChild ?? form.elements.q).focus();
  }
  const counted = count();
  if (found.pictures.length === 0) {
    await counted;
    await run(); // the next ones, or that there are none
  }
  status = () => t("forgotten", { title: titleOf(picture) });
  drawStatus();
}

// ---- adding pictures -----------------------------------------------------------------------

const adding = $("#add");
const fields = $("#add form").elements;

let chosen = [];
const unended = new Set(); // boxes of runs
let turn = ready; // of the next run: one at a time, so that `UPLOADS` holds for all

function choose(files) {
  if (!adding.open) {
    if (details.open) details.close();
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

/** Add files, a few at a time, and show how that goes. */
function add(files, daoId, tags) {
  const stopping = new AbortController();
  const { signal } = stopping;
  const counts = { added: 0, unchanged: 0 };
  const begun = new Map(); // by the pictures' ids: two files may have the same picture
  const failed = make("ul");
  const title = make("p");
  const bar = make("progress", { max: files.length, value: 0 });
  const far = make("span");
  const button = make("button", { type: "button", className: "round" });
  button.append($("#details .close").firstElementChild.cloneNode(true));
  const box = make("article", {}, title, button, bar, far, failed);
  title.role = "status";
  let started = false;
  let ended = false;

  const draw = () => {
    const n = files.length;
    const results = [t("added", { n: counts.added })];
    if (counts.unchanged) results.push(t("unchanged", { n: counts.unchanged }));
    if (failed.children.length) results.push(t("failed", { n: failed.children.length }));
    if (bar.value < n) results.push(t("stopped", { n: n - bar.value }));
    title.textContent = ended ? results.join(", ") : t("running", { n });
    far.textContent = t("of", { done: bar.value, n });
    bar.ariaLabel = t("running", { n });
    button.ariaLabel = button.title = ended ? t("close") : t("stop");
    bar.hidden = far.hidden = ended;
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
      if (error.name === "AbortError") return; // stopped while the service was busy
      const name = make("b", { textContent: file.name });
      failed.append(make("li", {}, name, ` ${error.message}`));
      const alike = error instanceof Failure && !ONE_PICTURES.has(error.status);
      if (alike) stopping.abort(); // the next ones would fail as well
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
      stopping.abort(); // what is under way is let finish
      if (!started) end();
      return;
    }
    redrawn.delete(draw);
    const beside = box.nextElementSibling ?? box.previousElementSibling;
    (beside?.querySelector("button") ?? $("#open-add")).focus({ preventScroll: true });
    box.remove();
  };
  redrawn.add(draw);
  draw();
  $("#runs").append(box);
  unended.add(box);
  turn = turn.finally(async () => {
    if (ended) return; // stopped before its turn
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

/** Show what was added, unless that would take away what the reader is at. */
async function showAdded() {
  await count();
  const reading =
    main.ariaBusy === "true" ||
    document.querySelector("dialog[open]") ||
    $("#grid").contains(document.activeElement) ||
    found.pictures.length > PAGE;
  if (!$("#empty").hidden || (isBrowsing() && !reading)) run();
}

window.addEventListener("beforeunload", (event) => {
  if (unended.size) event.preventDefault(); // the browser asks whether to lose the rest
});

/** Index a picture, and say whether it is new; one that is held only gets the tags it lacks. */
async function index(id, bytes, name, daoId, tags, patience) {
  if (await isHeld(id, daoId, patience)) {
    if (tags.length) await tag(id, daoId, tags, patience);
    return false;
  }
  // the title that `vision-rag index` gives a file
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

/** Say whether a tenant has a picture; a search by its vector embeds nothing. */
async function isHeld(id, daoId, patience) {
  const body = { image: { id }, dao_id: daoId, top_k: 1, collection };
  try {
    await ask("search", { method: "POST", body, patience });
  } catch (error) {
    if (error.status === 404) return false; // nor perhaps is there the collection
    throw error;
  }
  return true;
}

/** Give a picture that is held those tags that it lacks, and leave what else is known of it. */
async function tag(id, daoId, tags, patience) {
  const filter = { must: [{ key: "image_id", match: { value: id } }] };
  const body = { text: "a picture", dao_id: daoId, filter, top_k: 1, collection };
  const { hits } = await ask("search", { method: "POST", body, patience });
  if (hits.length === 0) return; // it was forgotten meanwhile
  const { payload } = hits[0];
  const lacking = tags.filter((one) => !tagsOf(payload).includes(one));
  if (lacking.length === 0) return;
  const given = Object.entries(payload).filter(([name]) => !OURS.includes(name));
  const metadata = { ...Object.fromEntries(given), tags: [payload.tags ?? [], lacking].flat() };
  await ask(addressOf(id, daoId), { method: "PATCH", body: { metadata }, patience });
}

/** Return an id that the same file always has, 32 hexadecimal digits. */
async function idOf(bytes) {
  if (!crypto.subtle) return newId(); // plain http, and not from this very machine
  return hex(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).slice(0, 16));
}

const hex = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const newId = () => hex(crypto.getRandomValues(new Uint8Array(16)));

// ---- dropped and pasted pictures -----------------------------------------------------------

const drop = $("#drop");

const hasFiles = (event) => event.dataTransfer?.types.includes("Files");

function take(where, files) {
  if (files.length === 0 || isOff()) return;
  if (adding.open || where === "add") choose(files);
  else searchBy(files[0]);
}

window.addEventListener("dragover", (event) => {
  if (!hasFiles(event) || isOff()) return;
  event.preventDefault();
  if (details.open) details.close();
  drop.hidden = adding.open; // then the dialog takes them
  for (const zone of drop.children) zone.classList.toggle("over", zone.contains(event.target));
});
window.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.hidden = true;
});
window.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  drop.hidden = true;
  take(event.target.closest?.("[data-drop]")?.dataset.drop, [...event.dataTransfer.files]);
});
window.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length === 0 || details.open || event.clipboardData.getData("text")) return;
  event.preventDefault();
  take("search", files);
});

// ---- the collection, and the start ---------------------------------------------------------

let points = null; // in the collection
let counting = false;

function drawCollection() {
  $("#collection").textContent =
    points === null ? collection : t("collection", { n: points, name: collection });
}

async function count() {
  counting = true;
  try {
    points = (await ask(`collections/${encodeURIComponent(collection)}`)).points;
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    points = null; // the search says what is wrong
  } finally {
    counting = false;
  }
  drawCollection();
}

function listen() {
  form.onsubmit = (event) => {
    event.preventDefault();
    go();
  };
  form.oninput = (event) => {
    if (event.target.name === "dao_id") {
      // an indexed picture is searched by within its own tenant
      form.elements.like.value = form.elements.like_dao_id.value = "";
    }
    if (event.target.name) goSoon();
  };
  window.onpopstate = comeBack;
  $("#grid").onkeydown = moveFocus;
  $("#more").onclick = () => {
    if (found.asked === address()) run({ more: true });
    else go({ typing: true }); // what was typed since is searched for first
  };
  $("#choose").onclick = () => $("#example").click();
  $("#example").onchange = ({ target }) => {
    take("search", [...target.files]);
    target.value = ""; // so that the same file can be chosen again
  };
  $("#drop-example").onclick = () => {
    example = null;
    form.elements.like.value = form.elements.like_dao_id.value = "";
    form.elements.q.focus();
    go();
  };
  $("#like-this").onclick = () => searchLike(opened);
  $("#forget").onclick = () => askToForget(true);
  $("#forget-no").onclick = () => {
    askToForget(false);
    $("#forget").focus();
  };
  $("#forget-yes").onclick = forget;
  for (const dialog of [details, adding]) {
    dialog.onclick = ({ target }) => {
      if (target.closest(".close")) dialog.close();
    };
  }
  $("#open-add").onclick = () => choose([]);
  $("#choose-files").onclick = () => $("#files").click();
  $("#files").onchange = ({ target }) => {
    choose([...target.files]);
    target.value = "";
  };
  $("#add form").onsubmit = () => {
    const tags = fields.tags.value.split(",").map((tag) => tag.trim());
    add(chosen, fields.dao_id.value.trim() || "default", tags.filter(Boolean));
  };
  for (const button of document.querySelectorAll("[data-language]")) {
    button.onclick = () => {
      localStorage.setItem("language", button.dataset.language);
      speak(button.dataset.language);
    };
  }
}

function start() {
  const draws = [drawQuery, drawStatus, drawAlert, drawCollection, drawPictures, drawChosen];
  for (const draw of draws) redrawn.add(draw);
  speak(language);
  $("#filters").open = matchMedia("(min-width: 45rem)").matches;
  const typed = (one) => one.name && one.value !== BLANK.get(one.name);
  const early = [...form.elements].some(typed); // before this script was here
  fill([...form.elements].filter((one) => !typed(one)));
  listen();
  if (early) goSoon();
  else run();
  connect();
}

/** Ask what the service is, and let begin what has waited for that. */
async function connect() {
  main.ariaBusy = "true";
  try {
    info = await ask("info");
  } catch (error) {
    showFailure(error, false, connect);
    main.ariaBusy = "false";
    return;
  }
  const asked = new URLSearchParams(location.search).get("collection");
  collection = asked ?? info.collection ?? "";
  if (asked) $(".brand").search = new URLSearchParams({ collection }).toString();
  $("#off").hidden = !isOff();
  form.hidden = $("#open-add").hidden = isOff();
  if (isOff()) {
    hideAlert();
    main.ariaBusy = "false";
    return;
  }
  begin();
  drawQuery();
  count();
}

start();
