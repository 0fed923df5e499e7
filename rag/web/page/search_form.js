// The search form, the picture to search by, and the page's address, which contains the search.

import { collection } from "./collection.js";
import { $ } from "./dom.js";
import { redrawn, t } from "./language.js";
import { addressOf, knownTitle } from "./pictures.js";
import { show } from "./service.js";

export const form = $("#search");
const BLANK = new Map([...form.elements].map(({ name, defaultValue }) => [name, defaultValue]));
const examples = new Map(); // files to search by; the browser's history has their keys

export let example = null; // the file to search by
let chip = null; // the file, or the address of the indexed picture, that the chip shows

export const value = (name) => form.elements[name].value.trim();
export const isBrowsing = () => !example && !["q", "like", "not", "tag"].some(value);
export const isMixed = () => Boolean(value("q") && (example || value("like")));
export const isTyped = (field) => field.name && field.value !== BLANK.get(field.name);

/** Return the page's address for the search of the form. */
export function address() {
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

/** Fill fields of the form from the page's address. */
export function fill(fields) {
  const query = new URLSearchParams(location.search);
  for (const { name } of fields) {
    if (name) form.elements[name].value = query.get(name) ?? BLANK.get(name);
  }
  example = examples.get(history.state?.example) ?? null;
  if (value("not") || value("dao_id") || value("tag")) $("#filters").open = true;
  drawQuery();
}

/** Set or, with null, remove the file to search by. Removes the indexed picture to search by. */
export function setExample(file) {
  if (file) examples.set(crypto.getRandomValues(new Uint32Array(2)).join(""), file);
  example = file;
  setLike("", "");
}

/** Set or, with empty strings, remove the indexed picture to search by. */
export function setLike(id, daoId) {
  form.elements.like.value = id;
  form.elements.like_dao_id.value = daoId;
}

/** Return the key of the file to search by; `fill` finds the file by its key. */
export const exampleKey = () => example && [...examples].find(([, file]) => file === example)[0];

/** Draw the chip, the slider and the title of the page. */
export function drawQuery() {
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
  image.removeAttribute("src"); // in case the new picture has no thumbnail
  if (example) image.path = image.src = URL.createObjectURL(example);
  else show(image, addressOf(like, daoId, "/thumbnail"));
  $("#chip-title").textContent = example ? example.name : knownTitle(like, daoId);
}

redrawn.add(drawQuery);
