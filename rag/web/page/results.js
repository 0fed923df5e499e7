// Run searches and show the results: the grid of pictures, the status line, the error.

import { collection, count, countIfUnknown, info, points, ready } from "./collection.js";
import { $, make } from "./dom.js";
import { errorNodes } from "./errors.js";
import { isCyrillic, redrawn, t } from "./language.js";
import { read, remember, scoreOf, thumbnail, titleOf } from "./pictures.js";
import { address, example, form, isBrowsing, isMixed, value } from "./search_form.js";
import { Failure, ask, dataOf } from "./service.js";

export const PAGE = 24; // pictures per page of results

const grid = $("#grid");
const alert = $("#alert");

export let found = { pictures: [], next: null };
let status = () => "";
let failure = null; // the error that the alert shows
let controller = new AbortController(); // aborts the newest search

/** Run the search of the form. Replace the pictures or, with `more`, append the next page. */
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

/** Return one page of pictures, starting at `from`, and the search that it answers. */
async function find(from, signal) {
  const browsing = isBrowsing();
  // read the form before the request, because the user may change it in the meantime
  const search = {
    asked: address(),
    browsing,
    scored: Boolean(example || value("q") || value("like")),
    filtered: Boolean(!browsing || value("dao_id")),
    cyrillic: [value("q"), value("not")].some(isCyrillic),
  };
  const onBusy = (n) => say(() => t("busy", { n }));
  if (browsing) {
    const query = new URLSearchParams({ limit: PAGE });
    if (value("dao_id")) query.set("dao_id", value("dao_id"));
    if (from) query.set("start", from);
    const path = `collections/${encodeURIComponent(collection)}/images?${query}`;
    const { images, next } = await ask(path, { signal, onBusy });
    return { pictures: images, next, ...search };
  }
  const share = Number(value("share")) / 100;
  const image = example
    ? { image_base64: await dataOf(await read(example)) }
    : value("like") && { id: value("like") };
  const body = {
    // the API requires a text or a picture; with filters only, any text will do
    text: value("q") || (image ? undefined : "a picture"),
    image: image || undefined,
    weights: isMixed() ? [1 - share, share] : undefined,
    negative: value("not") ? { text: value("not") } : undefined,
    // to search by an indexed picture, the service needs the tenant of that picture
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
  return { pictures, next, ...search };
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
  drawAdvice();
  if (from > 0) grid.children[from]?.firstChild.focus();
}

/** Remove a picture from the results, and move the focus to its neighbour. */
export async function removeFound(picture) {
  const at = found.pictures.findIndex(
    ({ id, dao_id }) => id === picture.id && dao_id === picture.dao_id,
  );
  if (at >= 0) {
    found.pictures.splice(at, 1);
    if (typeof found.next === "number") found.next -= 1; // an offset; one picture fewer precedes it
    drawPictures();
    const { children } = grid;
    (children[Math.min(at, children.length - 1)]?.firstChild ?? form.elements.q).focus();
  }
  const counted = count();
  if (found.pictures.length === 0) {
    await counted;
    await run(); // shows the next pictures, or that the collection is empty
  }
}

/** Show an error above the grid or, with `more`, above the button. `again` retries. */
export function showFailure(error, more, again = () => run({ more })) {
  if (!(error instanceof Failure)) throw error;
  if (more) $("#more").hidden = false;
  const empty = error.code === "collection_not_found";
  if (!more) found = { pictures: [], next: null };
  say(() => "");
  if (!more) drawPictures();
  $("#empty").hidden = !empty;
  failure = error;
  drawAlert();
  drawAdvice();
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
  $("#alert div").replaceChildren(...(failure ? errorNodes(failure) : []));
}

/** After a search in Cyrillic, advise the user to write English if the model knows no other. */
function drawAdvice() {
  const advised = info.languages === "english" && found.cyrillic;
  $("#advice").textContent = advised ? t("englishOnly") : "";
}

/** Draw the cards of the results, from index `from` on; earlier ones are drawn already. */
function drawPictures(from = 0) {
  const cards = found.pictures.slice(from).map(card);
  if (from > 0) grid.append(...cards);
  else grid.replaceChildren(...cards);
  $("#more").hidden = found.next === null;
}

function card(picture) {
  const title = make("span", { className: "title", textContent: titleOf(picture) });
  title.ariaHidden = "true"; // the alternative text of the picture is the same
  const caption = make("span", { className: "caption" }, title);
  if (found.scored) {
    caption.append(make("span", { className: "score", textContent: scoreOf(picture) }));
  }
  return make("li", {}, make("button", { type: "button" }, thumbnail(picture, true), caption));
}

/** Move the focus in the grid with the arrow keys. */
function moveFocus(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return; // browser shortcuts
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
for (const draw of [drawStatus, drawAdvice, drawAlert, drawPictures]) redrawn.add(draw);
