// The search and its results: the grid of pictures, the status line and the error.

import { collection, count, countIfUnknown, points, ready } from "./collection.js";
import { $, make } from "./dom.js";
import { redrawn, t } from "./language.js";
import { read, remember, scoreOf, thumbnail, titleOf } from "./pictures.js";
import { address, example, form, isBrowsing, isMixed, value } from "./search_form.js";
import { Failure, ask, dataOf } from "./service.js";

export const PAGE = 24; // pictures a page

const grid = $("#grid");
const alert = $("#alert");

export let found = { pictures: [], next: null };
let status = () => "";
let problem = () => "";
let controller = new AbortController(); // of the newest search

/** Search for what the form holds. Replace the pictures or, with `more`, add to them. */
export async function run({ more = false } = {}) {
  controller.abort();
  controller = new AbortController();
  const { signal } = controller;
  $("main").ariaBusy = "true";
  $("#more").hidden = true;
  try {
    await ready;
    const page = await find(more ? found.next : null, signal);
    if (signal.aborted) return;
    const seen = more ? found.pictures : [];
    found = { ...page, pictures: [...seen, ...page.pictures] };
    showFound(seen.length);
    hideAlert();
    countIfUnknown();
  } catch (error) {
    if (!signal.aborted) showFailure(error, more);
  } finally {
    if (!signal.aborted) $("main").ariaBusy = "false";
  }
}

/** Return one page of pictures that starts at `from`, and what was searched for. */
async function find(from, signal) {
  // the form may have changed when the answer comes
  const asked = address();
  const browsing = isBrowsing();
  const scored = Boolean(example || value("q") || value("like"));
  const filtered = Boolean(!browsing || value("dao_id"));
  const onBusy = (n) => say(() => t("busy", { n }));
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
    // a search needs a text or a picture: with conditions only, any text will do
    text: value("q") || (image ? undefined : "a picture"),
    image: image || undefined,
    weights: isMixed() ? [1 - share, share] : undefined,
    negative: value("not") ? { text: value("not") } : undefined,
    // the service looks an indexed picture up, and searches by it, within its tenant
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

function showFound(from) {
  const { browsing, scored, filtered } = found;
  const n = found.pictures.length;
  const empty = n === 0 && (!filtered || points === 0);
  $("#empty").hidden = !empty;
  for (const picture of found.pictures.slice(from)) remember(picture);
  say(() => {
    if (n === 0) return empty ? "" : t("none");
    if (browsing) return t("some");
    if (from > 0) return t("foundMore", { n });
    return t(scored ? "found" : "tagged", { n });
  });
  drawPictures(from);
  if (from > 0) grid.children[from]?.firstChild.focus();
}

/** Take a picture out of the results, and move the focus to its neighbour. */
export async function removeFound(picture) {
  const at = found.pictures.findIndex(
    ({ id, dao_id }) => id === picture.id && dao_id === picture.dao_id,
  );
  if (at >= 0) {
    found.pictures.splice(at, 1);
    if (typeof found.next === "number") found.next -= 1; // an offset: one picture fewer precedes it
    drawPictures();
    const { children } = grid;
    (children[Math.min(at, children.length - 1)]?.firstChild ?? form.elements.q).focus();
  }
  const counted = count();
  if (found.pictures.length === 0) {
    await counted;
    await run(); // shows the next pictures, or that there are none
  }
}

/** Show an error above the grid or, with `more`, above the button; `again` repeats the request. */
export function showFailure(error, more, again = () => run({ more })) {
  if (!(error instanceof Failure)) throw error;
  if (more) $("#more").hidden = false;
  const empty = error.code === "collection_not_found";
  if (!more) found = { pictures: [], next: null };
  say(() => "");
  if (!more) drawPictures();
  $("#empty").hidden = !empty;
  problem = () => error.message;
  drawAlert();
  if (empty) return hideAlert();
  const place = more ? $("#more") : grid;
  if (alert.nextElementSibling !== place) place.before(alert); // moving it would lose the focus
  alert.hidden = false;
  $("#alert button").onclick = again;
  if (more) $("#alert button").focus();
}

export function hideAlert() {
  const focused = alert.contains(document.activeElement);
  alert.hidden = true;
  if (focused) form.elements.q.focus();
}

/** Show what `sentence` returns in the status line. */
export function say(sentence) {
  status = sentence;
  drawStatus();
}

function drawStatus() {
  $("#status").textContent = status();
}

function drawAlert() {
  $("#alert p").textContent = problem();
}

/** Draw the cards of the results; with `from`, those before it are drawn already. */
function drawPictures(from = 0) {
  const cards = found.pictures.slice(from).map(card);
  if (from > 0) grid.append(...cards);
  else grid.replaceChildren(...cards);
  $("#more").hidden = found.next === null;
}

function card(picture) {
  const title = make("span", { className: "title", textContent: titleOf(picture) });
  title.ariaHidden = "true"; // the picture's alternative text says it
  const caption = make("span", { className: "caption" }, title);
  if (found.scored) {
    caption.append(make("span", { className: "score", textContent: scoreOf(picture) }));
  }
  return make("li", {}, make("button", { type: "button" }, thumbnail(picture, true), caption));
}

/** Move the focus in the grid with the arrow keys. */
function moveFocus(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return; // the browser's
  const cards = [...grid.children];
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

grid.onkeydown = moveFocus;
for (const draw of [drawStatus, drawAlert, drawPictures]) redrawn.add(draw);
