// The search form: its fields, the picture to search by, and the page's address, which holds both.

import { collection } from "./collection.js";
import { $ } from "./dom.js";
import { redrawn, t } from "./language.js";
import { addressOf, knownTitle } from "./pictures.js";
import { show } from "./service.js";

export const form = $("#search");
const BLANK = new Map([...form.elements].map(({ name, defaultValue }) => [name, defaultValue]));
const examples = new Map(); // files that were searched by; the browser's history holds their keys

export let example = null; // the file to search by
let chip = null; // what the chip shows: that file, or the address of an indexed picture

export const value = (name) => form.elements[name].value.trim();
export const isBrowsing = () => !example && !["q", "like", "not", "tag"].some(value);
export const isMixed = () => Boolean(value("q") && (example || value("like")));
export const isTyped = (field) => field.name && field.value !== BLANK.get(field.name);

/** Return the page's address for what the form holds. */
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

/** Search by this file from now on, or by none, and no longer by an indexed picture. */
export function setExample(file) {
  if (file) examples.set(crypto.getRandomValues(new Uint32Array(2)).join(""), file);
  example = file;
  setLike("", "");
}

/** Search by this indexed picture from now on. */
export function setLike(id, daoId) {
  form.elements.like.value = id;
  form.elements.like_dao_id.value = daoId;
}

/** Return the key under which `fill` finds the file again. */
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
  image.removeAttribute("src"); // the new picture may have no thumbnail
  if (example) image.path = image.src = URL.createObjectURL(example);
  else show(image, addressOf(like, daoId, "/thumbnail"));
  $("#chip-title").textContent = example ? example.name : knownTitle(like, daoId);
}

redrawn.add(drawQuery);
