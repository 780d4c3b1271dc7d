// The token view: PPO's rollouts, colored by a quantity of each token.

const difference = (c, t) => c.logprobs[t] - c.ref_logprobs[t];
// Key, name, columns needed, value of token t, neutral value, explanation.
const MEASURES = [
  ["kl", "log π − log π_ref", ["logprobs", "ref_logprobs"], difference, 0,
    "Orange: more likely under the policy than under the reference; blue: less. The sum is the sequence's KL (k1) in nats."],
  ["ratio", "ratio π / π_old", ["new_logprobs", "logprobs"],
    (c, t) => Math.exp(c.new_logprobs[t] - c.logprobs[t]), 1,
    "Orange: the update made the token more likely; blue: less likely. Taken in the last epoch before its step. Underlined: clipped."],
  ["advantages", "advantage", ["advantages"], (c, t) => c.advantages[t], 0,
    "Orange: better than expected; blue: worse. As used by the update, after whitening if enabled."],
  ["values", "value", ["values"], (c, t) => c.values[t], 0,
    "The value head's estimate of the remaining reward, before the token."],
  ["rewards", "reward", ["rewards"], (c, t) => c.rewards[t], 0,
    "The KL penalty of each token, plus the score at the last one."],
  ["returns", "return", ["returns"], (c, t) => c.returns[t], 0,
    "Target of the value head: advantage before whitening, plus value."],
  ["entropy", "entropy", ["entropy"], (c, t) => c.entropy[t], 0,
    "Entropy of the distribution that the token was sampled from, in nats."],
];
const ALSO = [["log π", "logprobs"], ["log π_ref", "ref_logprobs"]];

function isKnown([, , needed], columns) {
  return needed.every((name) => columns[name]);
}

// The numbers that the rollout has for a token, with their names.
function numbersOf(rollout, t) {
  const c = rollout.columns;
  return [
    ...ALSO.filter(([, name]) => c[name]).map(([label, name]) => [label, c[name][t]]),
    ...MEASURES.filter((m) => isKnown(m, c)).map((m) => [m[1], m[3](c, t)]),
  ];
}

const written = (value) => (value === null || Number.isNaN(value) ? "-" : value.toFixed(4));

function showTip(rollout, t, element) {
  const tip = byId("tip");
  const rows = numbersOf(rollout, t).map(([name, value]) => `${name.padEnd(18)}${written(value).padStart(10)}`);
  tip.textContent = [`${JSON.stringify(rollout.tokens[t])}, token ${t + 1} of ${rollout.tokens.length}`, ...rows].join("\n");
  tip.hidden = false;
  const [at, own] = [element.getBoundingClientRect(), tip.getBoundingClientRect()];
  tip.style.left = `${Math.max(4, Math.min(at.left, innerWidth - own.width - 8))}px`;
  const above = at.top - own.height - 6;
  tip.style.top = `${above > 4 ? above : at.bottom + 6}px`;
}

function makeTokenTable(rollout) {
  const head = ["token", ...numbersOf(rollout, 0).map(([name]) => name)];
  const body = rollout.tokens.map((token, t) => make("tr", {},
    make("th", { scope: "row" }, JSON.stringify(token)),
    ...numbersOf(rollout, t).map(([, value]) => make("td", { class: "number" }, written(value)))));
  return make("div", { class: "scroll", tabindex: "0" }, make("table", {},
    make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...body)));
}

// Filled when it is opened, because most never are.
function unfold(title, build) {
  const details = make("details", {}, make("summary", {}, title));
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(build());
  });
  return details;
}

function startTokens() {
  const [run, batch, measure, sort] = ["rollout-run", "rollout-batch", "measure", "rollout-sort"].map(byId);
  byId("token-controls").hidden = false;
  document.querySelector(".legend").hidden = false;
  fill(run, data.rollouts.map((one, place) => [place, one.name]));

  const sum = (rollout) => rollout.tokens.reduce((total, _, t) => total + difference(rollout.columns, t), 0);
  const sorters = {
    order: null,
    kl: (a, b) => sum(b) - sum(a),
    score: (a, b) => b.score - a.score,
  };

  function chooseRun() {
    const chosen = data.rollouts[run.value];
    const last = chosen.batches.length - 1;
    fill(batch, chosen.batches.map((one, place) => [place, `${one.batch}`]), last);
    const known = MEASURES.filter((m) => isKnown(m, chosen.batches[last].rollouts[0].columns));
    const before = measure.value;
    fill(measure, known.map(([key, label]) => [key, label]));
    if (known.some(([key]) => key === before)) measure.value = before;
    render();
  }

  function colorOf(value, plain, reach) {
    if (value === null || Number.isNaN(value)) return "";
    const size = Math.min(Math.abs(value - plain) / reach, 1) * 0.7;
    return value > plain ? `rgb(220 90 0 / ${size.toFixed(3)})` : `rgb(40 110 200 / ${size.toFixed(3)})`;
  }

  function makeRollout(rollout, [key, , , value, plain], reach, clip) {
    const tokens = rollout.tokens.map((token, t) => {
      const span = make("span", { class: "token", "data-token": t }, token);
      const number = value(rollout.columns, t);
      span.style.backgroundColor = colorOf(number, plain, reach);
      if (key === "ratio" && clip !== null && Math.abs(number - 1) > clip) span.classList.add("clipped");
      span.addEventListener("pointerenter", () => showTip(rollout, t, span));
      span.addEventListener("pointerleave", () => { byId("tip").hidden = true; });
      return span;
    });
    const about = `score ${written(rollout.score)} · KL ${written(sum(rollout))} nats · ` +
      `${rollout.tokens.length} tokens${rollout.finished ? "" : " · cut at the length limit"}`;
    return make("article", { class: "rollout", "data-id": rollout.id },
      make("h3", {}, rollout.id, make("small", {}, about)),
      make("p", { class: "said" }, ...tokens),
      unfold("Numbers", () => makeTokenTable(rollout)),
      unfold("Prompt", () => make("p", { class: "dialogue" }, rollout.prompt)));
  }

  function render() {
    const chosen = data.rollouts[run.value];
    const { rollouts, rows } = chosen.batches[batch.value];
    const how = MEASURES.find(([key]) => key === measure.value);
    const [, , , value, plain, note] = how;
    const known = rollouts.filter((rollout) => isKnown(how, rollout.columns));
    const sizes = known.flatMap((rollout) =>
      rollout.tokens.map((_, t) => Math.abs(value(rollout.columns, t) - plain)));
    const reach = percentile(sizes, 0.98) || 1e-9;
    const ordered = sorters[sort.value] ? [...known].sort(sorters[sort.value]) : known;
    byId("rollout-list").replaceChildren(
      ...ordered.map((rollout) => makeRollout(rollout, how, reach, chosen.clip)));
    byId("measure-note").textContent = `${note} ${known.length} of the batch's ${rows} rollouts, the first ones; ` +
      `${chosen.batches.length} of ${chosen.total} recorded batches.`;
    byId("legend-low").textContent = (plain - reach).toFixed(3);
    byId("legend-high").textContent = (plain + reach).toFixed(3);
  }

  run.addEventListener("change", chooseRun);
  for (const select of [batch, measure, sort]) select.addEventListener("change", render);
  byId("token-controls").addEventListener("submit", (event) => event.preventDefault());
  chooseRun();
}

if (data.rollouts.length) whenShown("tokens", startTokens);
