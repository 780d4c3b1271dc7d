// The page: who is ranking, what they see, and how their answers reach the server.
//
// An answer counts once the server has confirmed it. Until then this browser keeps every step as a
// draft, so a reload, a crash or a lost connection loses nothing.

import { Cards } from "./cards.js";
import { byId, makeInstructions, makeTurns, memory, request } from "./elements.js";
import { Ranking } from "./ranking.js";

const SCREENS = ["gate", "task", "end", "broken"];
const state = { annotator: "", item: null, last: null, ranking: null, busy: false };
const watch = { total: 0, since: null }; // milliseconds that the dialogue was visible

const cards = new Cards(
  {
    ranked: byId("cards"),
    unusable: byId("unusable-cards"),
    part: byId("unusable-part"),
  },
  { onChange: keepDraft, onKey: pressKey },
);

// Requests to the server --------------------------------------------------------------------------

const ask = async (path, body) => (await request(path, body)).json();

async function load(id = null) {
  const query = new URLSearchParams({ annotator: state.annotator, ...(id && { id }) });
  setBusy(true);
  try {
    show(await ask(`api/task?${query}`));
  } catch (error) {
    setBusy(false);
    if (error.status === 400) {
      askName(`${error.message}.`);
      return;
    }
    byId("broken-text").textContent = `${error.message}.`;
    byId("retry").onclick = () => load(id);
    showScreen("broken");
  }
}

async function send(answer) {
  if (state.busy) return;
  const { item, annotator } = state;
  const { id, version } = item;
  const seconds = Math.round(lookedAt() / 100) / 10;
  setBusy(true);
  say("Saving …");
  let reply;
  try {
    reply = await ask("api/answer", { annotator, id, version, seconds, ...answer });
  } catch (error) {
    await explain(error);
    return;
  }
  memory.remove(draftKey(item));
  if (item.following !== null) await load(item.following);
  else show(reply);
  say(answer.skipped ? "Skipped." : "Saved.");
}

// Explains why an answer was not saved; it stays on the page unless the samples have changed.
async function explain(error) {
  if (error.status === 409) {
    await load();
    say("The samples have changed; this is the next one.", true);
    return;
  }
  setBusy(false);
  cards.focusLast();
  say(`Not saved: ${error.message}. Your order is kept in this browser; save again.`, true);
}

// What the page shows -----------------------------------------------------------------------------

function showScreen(name) {
  for (const id of SCREENS) byId(id).hidden = id !== name;
  byId("actions").hidden = name !== "task";
}

function show({ annotator, progress, item, last }) {
  Object.assign(state, { annotator, item, last });
  setBusy(false);
  say("");
  showProgress(progress);
  byId("change-name").textContent = annotator;
  byId("change-name").hidden = false;
  setAddress({ annotator, id: item?.answer ? item.id : null });
  if (item === null) {
    showEnd();
    return;
  }
  const draft = memory.get(draftKey(item));
  const count = item.completions.length;
  const kept = draft?.version === item.version && Ranking.fromDraft(count, draft);
  const said = item.answer && Ranking.fromAnswer(count, item.answer);
  state.ranking = kept || said || new Ranking(count);
  startWatch(kept ? draft.milliseconds : 0);
  byId("dialogue").replaceChildren(...makeTurns(item.dialogue));
  byId("item-id").textContent = item.id;
  byId("changing").hidden = item.answer === null;
  byId("changing").textContent = item.answer?.ranks === null ? "You skipped this" : "Saved before";
  byId("save").textContent = item.answer === null ? "Save and continue" : "Save change";
  byId("forward").hidden = item.answer === null;
  cards.show(item.completions, state.ranking);
  showScreen("task");
  fold(true);
  byId("dialogue").scrollTop = 0;
  window.scrollTo(0, 0);
  cards.focusLast();
}

function showProgress({ done, skipped, total }) {
  byId("progress").hidden = false;
  byId("progress-bar").max = Math.max(total, 1);
  byId("progress-bar").value = done;
  const aside = skipped ? `, ${skipped} skipped` : "";
  byId("progress-text").textContent = `${done} of ${total} done${aside}`;
}

function showEnd() {
  byId("end-text").textContent =
    `Thank you, ${state.annotator}. You can close this page, or change an answer.`;
  byId("end-back").hidden = state.last === null;
  showScreen("end");
}

function say(text, wrong = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("wrong", wrong);
}

// While a request is open, nothing on the page can be changed.
function setBusy(on) {
  state.busy = on;
  byId("task").inert = on;
  for (const id of ["save", "skip", "back", "forward"]) byId(id).disabled = on;
  if (!on && state.item) byId("back").disabled = state.item.previous === null;
}

// On a phone the dialogue is folded, so that the summaries stay in sight.
function fold(on) {
  byId("dialogue").classList.toggle("unfolded", !on);
  byId("unfold").textContent = on ? "Show all" : "Show less";
  byId("unfold").setAttribute("aria-expanded", String(!on));
  if (on) byId("unfold").hidden = byId("dialogue").scrollHeight <= byId("dialogue").clientHeight;
}

function setAddress({ annotator, id }) {
  const query = new URLSearchParams({ ...(annotator && { annotator }), ...(id && { id }) });
  history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
}

// What an annotator does --------------------------------------------------------------------------

const draftKey = (item) => `draft.${state.annotator}.${item.id}`;

function keepDraft() {
  const { version } = state.item;
  const draft = { version, milliseconds: lookedAt(), ...state.ranking.toDraft() };
  memory.set(draftKey(state.item), draft);
  say("");
}

function save() {
  const { ranking } = state;
  if (!ranking.touched) {
    ranking.touched = true;
    say("You have changed nothing. If this order is yours, save again.", true);
    return;
  }
  send({ ranks: ranking.ranks(), toxic: ranking.toxicMarks() });
}

function skip() {
  send({ skipped: true, toxic: state.ranking.toxicMarks() });
}

function goBack() {
  if (!state.busy && state.item.previous !== null) load(state.item.previous);
}

function goForward() {
  if (!state.busy && state.item.answer !== null) load(state.item.following);
}

function pressKey(key) {
  const action = {
    Enter: save, s: skip, b: goBack, f: goForward, "?": openHelp,
  }[key.length === 1 ? key.toLowerCase() : key];
  action?.();
  return action !== undefined;
}

async function openHelp() {
  byId("help").showModal();
  const box = byId("instructions");
  if (box.hasChildNodes()) return;
  try {
    const { instructions } = await ask("api/instructions");
    box.replaceChildren(...makeInstructions(instructions));
  } catch (error) {
    say(`No instructions: ${error.message}.`, true);
  }
}

function begin(name) {
  state.annotator = name;
  memory.set("annotator", name);
  load(new URLSearchParams(location.search).get("id"));
  if (memory.get("helped")) return;
  memory.set("helped", true);
  openHelp();
}

function askName(problem = "") {
  state.item = null;
  setAddress({});
  byId("change-name").hidden = true;
  byId("progress").hidden = true;
  byId("name").value = "";
  byId("gate-problem").textContent = problem;
  byId("gate-problem").hidden = problem === "";
  say("");
  showScreen("gate");
  byId("name").focus();
}

// How long it takes -------------------------------------------------------------------------------

function startWatch(milliseconds) {
  watch.total = milliseconds;
  watch.since = document.hidden ? null : performance.now();
}

function lookedAt() {
  return watch.total + (watch.since === null ? 0 : performance.now() - watch.since);
}

document.addEventListener("visibilitychange", () => {
  watch.total = lookedAt();
  watch.since = document.hidden ? null : performance.now();
});

// -------------------------------------------------------------------------------------------------

byId("gate-form").addEventListener("submit", (event) => {
  event.preventDefault();
  begin(byId("name").value.trim());
});
byId("save").addEventListener("click", save);
byId("skip").addEventListener("click", skip);
byId("back").addEventListener("click", goBack);
byId("forward").addEventListener("click", goForward);
byId("end-back").addEventListener("click", () => load(state.last));
byId("open-help").addEventListener("click", openHelp);
byId("change-name").addEventListener("click", () => askName());
byId("help").addEventListener("close", () => {
  if (state.item) cards.focusLast();
});
byId("unfold").addEventListener("click", () => fold(byId("dialogue").matches(".unfolded")));

const known = new URLSearchParams(location.search).get("annotator") ?? memory.get("annotator");
if (typeof known === "string" && known.trim()) begin(known.trim());
else askName();
