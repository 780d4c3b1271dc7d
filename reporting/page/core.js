// The data, small helpers, the views and the theme.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

// Texts become text nodes: nothing that a model wrote is ever parsed as HTML.
function make(name, settings = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(settings)) {
    if (key === "class") element.className = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, label]) => make("option", { value }, label)));
  if (chosen !== undefined) select.value = String(chosen);
}

function percentile(values, share) {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : 0;
}

function signed(value, digits) {
  const text = value.toFixed(digits);
  return Number(text) === 0 ? (0).toFixed(digits) : value > 0 ? `+${text}` : text;
}

// One section is visible at a time; the address names it, so that links and Back work.
const links = [...document.querySelectorAll(".top nav a")];
const sections = links.map((link) => byId(link.hash.slice(1)));

function showView() {
  const found = sections.findIndex((section) => `#${section.id}` === location.hash);
  const shown = Math.max(found, 0);
  sections.forEach((section, place) => { section.hidden = place !== shown; });
  links.forEach((link, place) => {
    if (place === shown) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  });
  document.dispatchEvent(new CustomEvent("view", { detail: sections[shown].id }));
}

// Runs once, when its view is first shown, so that the page opens fast.
function whenShown(id, start) {
  let started = false;
  document.addEventListener("view", (event) => {
    if (event.detail === id && !started) {
      started = true;
      start();
    }
  });
}

byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.style.colorScheme
    ? root.style.colorScheme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.style.colorScheme = dark ? "light" : "dark";
});

window.addEventListener("hashchange", () => {
  showView();
  window.scrollTo(0, 0);
});
// After all scripts have registered their views.
window.addEventListener("DOMContentLoaded", showView);
