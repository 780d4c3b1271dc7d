// The cards of one dialogue's completions: shows a Ranking, and changes it by keys and buttons.
// Every text goes in as textContent, never as HTML.

import { makeDraggable } from "./drag.js";
import { make } from "./elements.js";

const stillness = window.matchMedia("(prefers-reduced-motion: reduce)");

export class Cards {
  // lists: {ranked, unusable, part}; onChange is called after every change, onKey with the keys
  // that are not the cards' own.
  constructor(lists, { onChange, onKey }) {
    this.lists = lists;
    this.onChange = onChange;
    this.onKey = onKey;
    this.entries = [];
  }

  show(texts, ranking) {
    this.ranking = ranking;
    this.last = ranking.order[0] ?? 0;
    this.entries = texts.map((text, key) => this.#makeEntry(text, key));
    this.lists.ranked.replaceChildren();
    this.lists.unusable.replaceChildren();
    this.#arrange();
  }

  // Goes to the card that had the focus last: the first one of a new list.
  focusLast() {
    this.#focus(this.last, { preventScroll: true });
  }

  #makeEntry(text, key) {
    const card = make("div", { className: "card", tabIndex: 0 });
    card.setAttribute("aria-describedby", "card-keys");
    card.setAttribute("aria-roledescription", "summary");
    card.setAttribute("role", "group");
    const entry = {
      card,
      text,
      grip: make("span", { className: "grip", title: "Drag", textContent: "⠿" }),
      badge: make("span", { className: "badge" }),
      tie: this.#makeButton("tie", "", () => this.ranking.toggleTie(key), key),
      up: this.#makeButton("step", "↑", () => this.ranking.step(key, -1), key),
      down: this.#makeButton("step", "↓", () => this.ranking.step(key, 1), key),
      toxic: this.#makeButton("toxic", "Toxic", () => this.ranking.toggleToxic(key), key),
      unusable: this.#makeButton(
        "unusable", "Unusable", () => this.ranking.toggleUnusable(key), key,
      ),
    };
    entry.grip.setAttribute("aria-hidden", "true");
    entry.up.setAttribute("aria-label", "Move up");
    entry.down.setAttribute("aria-label", "Move down");
    const words = make("p", { className: "text", textContent: text, dir: "auto" });
    const marks = make("div", { className: "marks" });
    marks.append(entry.up, entry.down, entry.toxic, entry.unusable);
    const side = make("div", { className: "side" });
    side.append(entry.badge, entry.grip);
    card.append(side, words, marks);
    card.addEventListener("keydown", (event) => this.#press(event, key));
    card.addEventListener("focus", () => {
      this.last = key;
    });
    entry.item = make("li");
    entry.item.append(entry.tie, card);
    makeDraggable(card, entry.grip, {
      places: () => this.ranking.order.map((other) => this.entries[other].item),
      canDrag: () => !this.ranking.unusable.has(key),
      onDrop: (place) => this.#change(() => this.ranking.move(key, place), key),
    });
    return entry;
  }

  #makeButton(className, textContent, action, key) {
    const button = make("button", { className, textContent, type: "button" });
    button.addEventListener("click", () => this.#change(action, null, button, key));
    return button;
  }

  // Changes the ranking, shows it, and focuses a card, or the button that was pressed.
  #change(action, key, button = null) {
    action();
    this.#arrange();
    if (button === null) this.#focus(key);
    else button.focus({ preventScroll: true });
    this.onChange();
  }

  #focus(key, options) {
    this.entries[key].card.focus(options);
  }

  #press(event, key) {
    if (event.target !== event.currentTarget) return; // its buttons have their own keys
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const action = this.#findAction(event, key);
    if (action) action();
    else if (!this.onKey(event.key)) return;
    event.preventDefault();
  }

  #findAction(event, key) {
    const { ranking } = this;
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (by && event.shiftKey) return () => this.#change(() => ranking.step(key, by), key);
    if (by) return () => this.#walk(key, by);
    if (/^[1-9]$/.test(event.key)) {
      return () => this.#change(() => ranking.move(key, Number(event.key) - 1), key);
    }
    const toggle = {
      t: () => ranking.toggleTie(key),
      x: () => ranking.toggleToxic(key),
      u: () => ranking.toggleUnusable(key),
    }[event.key.toLowerCase()];
    return toggle && (() => this.#change(toggle, key));
  }

  #walk(key, by) {
    const all = [...this.ranking.order, ...this.ranking.unusable];
    const next = all[all.indexOf(key) + by];
    if (next !== undefined) this.#focus(next);
  }

  // Puts the cards in order; they glide there, so that the eye can follow.
  #arrange() {
    const { ranking, lists } = this;
    const before = new Map(this.entries.map((entry) => [entry, entry.item.offsetTop]));
    lists.ranked.append(...ranking.order.map((key) => this.entries[key].item));
    lists.unusable.append(...[...ranking.unusable].map((key) => this.entries[key].item));
    lists.part.hidden = ranking.unusable.size === 0;
    const ranks = ranking.ranks();
    this.entries.forEach((entry, key) => this.#label(entry, key, ranks[key]));
    if (stillness.matches) return;
    for (const [entry, top] of before) {
      const moved = top - entry.item.offsetTop;
      if (top === 0 || moved === 0) continue;
      entry.item.animate(
        [{ transform: `translateY(${moved}px)` }, { transform: "none" }],
        { duration: 160, easing: "ease-out" },
      );
    }
  }

  #label(entry, key, rank) {
    const { ranking } = this;
    const place = ranking.order.indexOf(key);
    const tied = rank !== null && ranking.isTied(key);
    const joined = ranking.joined.has(key);
    entry.badge.textContent = rank === null ? "–" : String(rank);
    entry.badge.classList.toggle("tied", tied);
    entry.tie.hidden = place < 1;
    entry.tie.textContent = joined ? "= as good as" : "better than";
    entry.tie.title = joined ? "Not a tie after all" : "Make them a tie";
    entry.tie.setAttribute("aria-label", "Tie with the one above");
    entry.up.disabled = place < 1 && !tied;
    entry.down.disabled = !tied && (place < 0 || place === ranking.order.length - 1);
    for (const [button, on] of [
      [entry.tie, joined],
      [entry.toxic, ranking.toxic.has(key)],
      [entry.unusable, rank === null],
    ]) {
      button.setAttribute("aria-pressed", String(on));
    }
    entry.card.classList.toggle("is-toxic", ranking.toxic.has(key));
    entry.card.classList.toggle("is-unusable", rank === null);
    const state = [
      rank === null ? "unusable" : `rank ${rank}`,
      tied && "tied",
      ranking.toxic.has(key) && "toxic",
    ];
    entry.card.setAttribute("aria-label", `${state.filter(Boolean).join(", ")}: ${entry.text}`);
  }
}
