// The language of the page and of search texts.

import { TEXTS } from "./texts.js";

export let language = localStorage.getItem("language") ?? navigator.language.slice(0, 2);
if (!(language in TEXTS)) language = "en";

export const redrawn = new Set(); // functions that speak() calls to redraw texts

/** Return a text of the page, with `values` in place of their names in braces. */
export function t(key, values = {}) {
  const texts = TEXTS[language][key];
  const text = texts[new Intl.PluralRules(language).select(values.n)] ?? texts;
  return text.replace(/\{(\w+)\}/g, (_, name) =>
    typeof values[name] === "number" ? values[name].toLocaleString(language) : values[name],
  );
}

/** Return the text for an error code of the API, undefined if there is none. */
export const errorText = (code) => TEXTS[language].errors[code];

/** Return whether most letters of a text are Cyrillic. */
export function isCyrillic(text) {
  const count = (letters) => (text.match(letters) ?? []).length;
  return 2 * count(/\p{Script=Cyrillic}/gu) > count(/\p{L}/gu);
}

/** Show the page in this language. */
export function speak(wanted) {
  language = wanted;
  document.documentElement.lang = language;
  for (const one of document.querySelectorAll("[data-t]")) one.textContent = t(one.dataset.t);
  for (const one of document.querySelectorAll("[data-t-label]")) {
    one.ariaLabel = t(one.dataset.tLabel);
    if (one.matches("button")) one.title = one.ariaLabel;
  }
  for (const one of document.querySelectorAll("[data-t-placeholder]")) {
    one.placeholder = t(one.dataset.tPlaceholder);
  }
  for (const one of document.querySelectorAll("[data-language]")) {
    one.ariaPressed = String(one.dataset.language === language);
  }
  for (const draw of redrawn) draw();
}
