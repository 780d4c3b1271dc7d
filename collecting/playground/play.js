// Summaries of one dialogue by several runs, side by side.

import { byId, make, request } from "/shared/elements.js";

const EXAMPLE = `#Person1#: Hi, Ingrid. How is it going?
#Person2#: Hey, Philippa. All is well.
#Person1#: Shall we go fishing this Sunday?
#Person2#: Yes, why not. Where shall we meet?
#Person1#: In front of the lighthouse. Frank will come too.
#Person2#: How nice.`;

let cards = new Map();
let shown = ""; // the dialogue that the summaries belong to
let generation = 0; // a later click makes an earlier one's answers void

function say(text, isWrong = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("wrong", isWrong);
}

function count(votes) {
  byId("votes").textContent = votes === 1 ? "1 vote" : `${votes} votes`;
}

function addCard(run, number) {
  const card = make("article", { className: "card" });
  const title = make("h3", { textContent: run.name, id: `run-${number}` });
  const summary = make("p", { className: "summary", dir: "auto" });
  const facts = make("dl");
  const best = make("button", { type: "button", disabled: true });
  best.append(`${run.name} is best `, make("kbd", { textContent: number + 1 }));
  card.setAttribute("aria-labelledby", title.id);
  best.addEventListener("click", () => vote(run.name));
  card.append(title, summary, facts, best);
  byId("cards").append(card);
  cards.set(run.name, { run, card, summary, facts, best, text: null });
}

function fact(list, name, value) {
  list.append(make("dt", { textContent: name }), make("dd", { textContent: value }));
}

// The letters of unknown names, as the text has them.
function findUnknown(text, names) {
  const marks = new Array(text.length).fill(false);
  for (const name of names) {
    for (let at = text.indexOf(name); at >= 0; at = text.indexOf(name, at + 1)) {
      marks.fill(true, at, at + name.length);
    }
  }
  return marks;
}

function level(ratio) {
  const size = Math.abs(ratio ?? 0);
  if (size < 0.1) return "";
  const step = size < 0.7 ? 1 : size < 2 ? 2 : 3;
  return `${ratio > 0 ? "up" : "down"}-${step}`;
}

function showVerdict(entry, verdict) {
  const marks = findUnknown(verdict.text, verdict.unknown);
  const tokens = [];
  let at = 0;
  for (const [piece, ratio] of verdict.tokens) {
    const isEnd = piece === "" && at >= verdict.text.length;
    const token = make("span", { className: `token ${level(ratio)}` });
    if (ratio !== null) token.title = `log-ratio ${ratio >= 0 ? "+" : ""}${ratio.toFixed(2)}`;
    // A name may end within a token: each stretch of letters is marked by itself.
    for (let i = 0; i < piece.length; ) {
      let end = i + 1;
      while (end < piece.length && marks[at + end] === marks[at + i]) end += 1;
      const part = piece.slice(i, end);
      token.append(marks[at + i] ? make("span", { className: "unknown", textContent: part }) : part);
      i = end;
    }
    if (isEnd && ratio !== null) token.append(" ∎");
    at += piece.length;
    tokens.push(token);
  }
  entry.summary.replaceChildren(...tokens);
  const ratios = verdict.tokens.map(([, ratio]) => ratio).filter((ratio) => ratio !== null);
  const total = ratios.reduce((sum, ratio) => sum + ratio, 0);
  entry.facts.replaceChildren();
  if (verdict.toxicity !== null) {
    fact(entry.facts, "Toxicity", `${(100 * verdict.toxicity).toFixed(1)} %`);
  }
  fact(entry.facts, "Not in the dialogue", verdict.unknown.join(", ") || "no name");
  fact(entry.facts, "Log-ratio", ratios.length ? `${total.toFixed(2)} nats` : "-");
  fact(entry.facts, "Reference", entry.run.reference);
  fact(entry.facts, "Time", `${verdict.seconds} s`);
}

async function summarizeWith(entry, dialogue, mine) {
  const response = await request("/api/summary", { run: entry.run.name, dialogue });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (mine !== generation) {
      reader.cancel();
      return;
    }
    if (done) break;
    buffer += value;
    const lines = buffer.split("\n");
    buffer = lines.pop();
    for (const line of lines) {
      const found = JSON.parse(line);
      if (found.error) throw new Error(found.error);
      if (found.tokens) {
        showVerdict(entry, found);
        entry.text = found.text;
      } else entry.summary.textContent = found.text;
    }
  }
}

async function summarize() {
  if (cards.size === 0) return; // the runs are not known yet
  const dialogue = byId("dialogue").value;
  if (!dialogue.trim()) {
    say("Enter a dialogue first", true);
    byId("dialogue").focus();
    return;
  }
  const mine = ++generation;
  shown = dialogue;
  for (const entry of cards.values()) {
    entry.text = null;
    entry.summary.textContent = "";
    entry.facts.replaceChildren();
    entry.card.classList.remove("chosen");
    entry.card.classList.add("busy");
  }
  allowVotes(false);
  say("Summarizing ...");
  try {
    for (const entry of cards.values()) {
      await summarizeWith(entry, dialogue, mine);
      if (mine !== generation) return;
      entry.card.classList.remove("busy");
    }
    const texts = new Set([...cards.values()].map((entry) => entry.text));
    const canVote = texts.size > 1;
    allowVotes(canVote);
    say(canVote ? "Which one is best?" : cards.size > 1 ? "The summaries are the same" : "Done");
  } catch (error) {
    if (mine !== generation) return;
    for (const entry of cards.values()) entry.card.classList.remove("busy");
    say(`It did not work: ${error.message}`, true);
  }
}

function allowVotes(isAllowed) {
  for (const entry of cards.values()) entry.best.disabled = !isAllowed;
  byId("tie").disabled = !isAllowed;
}

async function vote(best) {
  const summaries = Object.fromEntries([...cards].map(([name, entry]) => [name, entry.text]));
  try {
    const response = await request("/api/vote", { dialogue: shown, summaries, best });
    count((await response.json()).votes);
    for (const [name, entry] of cards) entry.card.classList.toggle("chosen", name === best);
    allowVotes(false);
    say(best === null ? "Saved: equally good" : `Saved: ${best} is best`);
  } catch (error) {
    say(`It was not saved: ${error.message}`, true);
  }
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  summarize();
});
byId("example").addEventListener("click", () => {
  byId("dialogue").value = EXAMPLE;
  byId("dialogue").focus();
});
byId("color").addEventListener("change", (event) => {
  byId("cards").classList.toggle("colored", event.target.checked);
});
byId("tie").addEventListener("click", () => vote(null));
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    summarize();
    return;
  }
  if (event.target === byId("dialogue") || event.ctrlKey || event.altKey || event.metaKey) return;
  const entry = [...cards.values()][Number(event.key) - 1];
  if (entry && !entry.best.disabled) vote(entry.run.name);
  if (event.key === "0" && !byId("tie").disabled) vote(null);
});

try {
  const found = await (await request("/api/runs")).json();
  found.runs.forEach(addCard);
  count(found.votes);
  byId("cards").classList.add("colored");
  byId("tie").hidden = found.runs.length < 2;
  for (const entry of cards.values()) entry.best.hidden = found.runs.length < 2;
} catch (error) {
  say(`The page cannot start: ${error.message}`, true);
}
