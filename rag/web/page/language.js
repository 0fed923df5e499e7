// The language of the page.

import { TEXTS } from "./texts.js";

export let language = localStorage.getItem("language") ?? navigator.language.slice(0, 2);
if (!(language in TEXTS)) language = "en";

export const redrawn = new Set(); // functions to call when the language changes

/** Return a text in which values replace their names in braces. */
export function t(key, values = {}) {
  const texts = TEXTS[language][key];
  const text = texts[new Intl.PluralRules(language).select(values.n)] ?? texts;
  return text.replace(/\{(\w+)\}/g, (_, name) =>
    typeof values[name] === "number" ? values[name].toLocaleString(language) : values[name],
  );
}

/** Show the page in another language. */
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
