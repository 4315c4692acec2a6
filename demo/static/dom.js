/** Small things that the page is made of: elements, avatars, toasts. */

/**
 * @param {string} selector
 * @returns {any}
 */
export const $ = (selector) => document.querySelector(selector);

/**
 * Make an element. What has a `-` in its name, or is `role`, becomes an attribute, anything else a property.
 * @param {string} tag
 * @param {Record<string, any>} [properties]
 * @param {...(Node | string)} children
 * @returns {any}
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else Object.assign(element, { [name]: value });
  }
  element.append(...children);
  return element;
}

/** @type {Map<string, number>} */
const hues = new Map();

/**
 * A user's colour: what they chose, else one that follows from the name.
 * @param {string} user
 */
export function hueOf(user) {
  const chosen = hues.get(user);
  if (chosen !== undefined) return chosen;
  let hash = 21; // with which short names differ well
  for (const character of user) hash = Math.imul(hash ^ (character.codePointAt(0) ?? 0), 0x01000193);
  return ((hash >>> 0) * 137) % 360;
}

/**
 * Take over the colour that a user's presence shows, wherever they are on the page or in `lists` outside of it.
 * @param {string} user
 * @param {unknown} hue from somebody else's page, so it may be anything
 * @param {Iterable<Element>} lists
 */
export function setHue(user, hue, lists) {
  if (typeof hue !== "number" || hueOf(user) === hue) return;
  if (hues.size > 1000) hues.clear();
  hues.set(user, hue);
  for (const root of [document, ...lists]) {
    for (const element of root.querySelectorAll("[data-hue-of]")) {
      if (element instanceof HTMLElement && element.dataset.hueOf === user) paint(element, user);
    }
  }
}

/**
 * @param {HTMLElement} element
 * @param {string} user
 */
export function paint(element, user) {
  element.dataset.hueOf = user;
  element.style.setProperty("--hue", String(hueOf(user)));
  return element;
}

/** @param {string} user */
export function avatar(user) {
  const words = user.split(" ");
  const letters = words.length > 1 ? [first(words[0]), first(words[words.length - 1])] : [...user].slice(0, 2);
  return paint(h("span", { className: "avatar", "aria-hidden": "true" }, letters.join("").toUpperCase()), user);
}

/** @param {string} word */
const first = (word) => String.fromCodePoint(word.codePointAt(0) ?? 63);

const TOASTS = 4;

/**
 * Say something in passing.
 * @param {string} text
 * @param {{ action?: string, run?: () => void, anywhere?: boolean, seconds?: number }} [options] `anywhere`: a click
 *   on the text runs it, too; `seconds` 0: until it is dismissed
 * @returns {() => void} takes it away
 */
export function toast(text, { action, run, anywhere = false, seconds = 6 } = {}) {
  const toasts = $("#toasts");
  const close = () => element.remove();
  const act = () => (close(), run?.());
  for (const one of [...toasts.children]) if (one.firstChild.textContent === text) one.remove(); // once is enough
  const element = h("div", { className: "toast" }, h("p", anywhere ? { className: "open", onclick: act } : {}, text));
  if (action) element.append(h("button", { className: "quiet", onclick: act }, action));
  element.append(h("button", { className: "quiet close", "aria-label": "Dismiss", onclick: close }, "✕"));
  toasts.append(element);
  while (toasts.children.length > TOASTS) toasts.firstChild.remove();
  if (seconds) setTimeout(close, seconds * 1000);
  return close;
}
