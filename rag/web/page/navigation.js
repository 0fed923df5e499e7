// Start searches, and keep them in the browser's history.

import { $ } from "./dom.js";
import { found, run } from "./results.js";
import { address, drawQuery, exampleKey, fill, form, setExample, setLike } from "./search_form.js";

const TYPING_MS = 250; // a pause of this length after typing starts a search

let timer = null; // of this pause

/** Run the search of the form, and add it to the history. */
function go({ typing = false } = {}) {
  clearTimeout(timer);
  const to = address();
  const key = exampleKey();
  const state = { typing, example: key };
  const here = location.pathname + location.search;
  const same = to === here && key === (history.state?.example ?? null);
  // searches that start while the user types share one entry
  if (same || (typing && history.state?.typing)) history.replaceState(state, "", to);
  else history.pushState(state, "", to);
  drawQuery();
  return run();
}

/** Run the search of the form when the user pauses typing. */
export function goSoon() {
  clearTimeout(timer);
  timer = setTimeout(go, TYPING_MS, { typing: true });
}

export function searchBy(file) {
  setExample(file);
  scrollTo({ top: 0 });
  return go();
}

export function searchLike(picture) {
  form.elements.q.value = "";
  setExample(null);
  setLike(picture.id, picture.dao_id);
  return goFromDetails();
}

export function searchTag(tag) {
  form.elements.tag.value = tag;
  $("#filters").open = true;
  return goFromDetails();
}

/** Close the details, and run the search of the form. */
function goFromDetails() {
  $("#details").close();
  form.elements.q.focus();
  scrollTo({ top: 0 });
  return go();
}

form.onsubmit = (event) => {
  event.preventDefault();
  go();
};
form.oninput = ({ target }) => {
  // an indexed picture to search by belongs to the old tenant
  if (target.name === "dao_id") setLike("", "");
  if (target.name) goSoon();
};
window.onpopstate = () => {
  clearTimeout(timer);
  $("#details").close();
  fill(form.elements);
  return run();
};
$("#more").onclick = () => {
  if (found.asked === address()) run({ more: true });
  else go({ typing: true }); // the form has changed: run its search first
};
$("#drop-example").onclick = () => {
  setExample(null);
  form.elements.q.focus();
  go();
};
