// The example browser: search, sort, and one page at a time.

const PAGE = 20;

function markText(text, overlap, names) {
  // Per character: 0 plain, 1 in a word of a reference, 2 in a name that the dialogue lacks.
  const kinds = new Uint8Array(text.length);
  let word = 0;
  for (const match of text.matchAll(/[a-z0-9]+/gi)) {
    if (overlap[word++] === "1") kinds.fill(1, match.index, match.index + match[0].length);
  }
  for (const name of names) {
    const plain = name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    for (const match of text.matchAll(new RegExp(`(?<!\\p{L})${plain}(?!\\p{L})`, "gu"))) {
      kinds.fill(2, match.index, match.index + match[0].length);
    }
  }
  const parts = [];
  for (let start = 0; start < text.length;) {
    let end = start + 1;
    while (end < text.length && kinds[end] === kinds[start]) end++;
    const piece = text.slice(start, end);
    if (kinds[start] === 0) parts.push(piece);
    else if (kinds[start] === 1) parts.push(make("mark", { class: "hit" }, piece));
    else parts.push(make("mark", { class: "unknown", title: "not in the dialogue" }, piece));
    start = end;
  }
  return parts;
}

function describeScores(run, place) {
  return data.metrics
    .filter((metric) => ["rouge1", "rougeL", "toxicity", "reward"].includes(metric.key))
    .map((metric) => [metric, run.scores[metric.key]?.[place]])
    .filter(([, value]) => value !== undefined && value !== null)
    .map(([metric, value]) => `${metric.label} ${(metric.scale * value).toFixed(metric.digits)}`)
    .join(" · ");
}

function startExamples() {
  const { ids, dialogues, references, runs } = data.examples;
  const shown = new Set(runs.keys());
  let order = [];
  let page = 0;

  const controls = Object.fromEntries(
    ["query", "sort", "sort-run", "sort-other", "direction", "only-names"]
      .map((id) => [id, byId(id)]),
  );
  const names = runs.map((run, place) => [place, run.name]);
  const sortable = data.metrics.filter((metric) => runs.some((run) => run.scores[metric.key]));
  fill(controls.sort, [["", "nothing (test order)"], ...sortable.map((m) => [m.key, m.label])]);
  const find = (name) => runs.findIndex((run) => run.name === name);
  const own = Math.max(find(data.chosen.own), 0);
  const other = find(data.chosen.other) === own ? -1 : find(data.chosen.other);
  fill(controls["sort-run"], names, own);
  fill(controls["sort-other"], [["", "0 (its own value)"], ...names], other < 0 ? "" : other);

  const textsOf = (i) => [ids[i], dialogues[i], ...references[i], ...runs.map((run) => run.texts[i])];

  function sortBy() {
    const metric = data.metrics.find((one) => one.key === controls.sort.value);
    if (!metric) return null;
    const own = runs[controls["sort-run"].value].scores[metric.key];
    const other = controls["sort-other"].value;
    const base = other === "" ? null : runs[other].scores[metric.key];
    const value = (i) => {
      const [a, b] = [own?.[i] ?? null, other === "" ? 0 : base?.[i] ?? null];
      return a === null || b === null ? null : a - b;
    };
    return { metric, value, isGain: other !== "" };
  }

  function choose() {
    const query = controls.query.value.trim().toLowerCase();
    const onlyNames = controls["only-names"].checked;
    const by = sortBy();
    for (const id of ["sort-run", "sort-other", "direction"]) controls[id].disabled = by === null;
    order = [...ids.keys()].filter((i) =>
      (!query || textsOf(i).join("\n").toLowerCase().includes(query)) &&
      (!onlyNames || runs.some((run, place) => shown.has(place) && run.names[i].length > 0)));
    if (by) {
      const direction = Number(controls.direction.value);
      const values = new Map(order.map((i) => [i, by.value(i)]));
      order.sort((a, b) => {
        const [one, other] = [values.get(a), values.get(b)];
        if (one === null || other === null) return (one === null) - (other === null);
        return direction * (one - other);
      });
    }
    page = 0;
    render();
  }

  function makeExample(i, by) {
    const texts = make("dl", { class: "texts" });
    references[i].forEach((reference, number) => texts.append(
      make("div", { class: "reference" },
        make("dt", {}, references[i].length > 1 ? `reference ${number + 1}` : "reference"),
        make("dd", {}, reference))));
    runs.forEach((run, place) => {
      if (!shown.has(place) || run.texts[i] === null) return;
      texts.append(make("div", { "data-run": run.name },
        make("dt", {}, make("i", { class: `key c${run.color}` }), run.name,
          make("small", {}, describeScores(run, i))),
        make("dd", {}, ...markText(run.texts[i], run.overlap[i], run.names[i]))));
    });
    const value = by?.value(i) ?? null;
    const written = value === null ? null : by.isGain
      ? `${by.metric.label} ${signed(by.metric.scale * value, by.metric.digits)}`
      : `${by.metric.label} ${(by.metric.scale * value).toFixed(by.metric.digits)}`;
    return make("article", { class: "example", "data-id": ids[i] },
      make("h3", {}, ids[i], written === null ? null : make("small", {}, written)),
      make("p", { class: "dialogue", tabindex: "0" }, dialogues[i]), texts);
  }

  function render() {
    const by = sortBy();
    const pages = Math.max(1, Math.ceil(order.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const here = order.slice(page * PAGE, (page + 1) * PAGE);
    byId("example-list").replaceChildren(...here.map((i) => makeExample(i, by)));
    const range = here.length
      ? `${page * PAGE + 1} to ${page * PAGE + here.length} of ${order.length.toLocaleString("en")}`
      : "none";
    document.querySelectorAll(".pager .place").forEach((place) => { place.textContent = range; });
    document.querySelectorAll(".pager .previous").forEach((b) => { b.disabled = page === 0; });
    document.querySelectorAll(".pager .next").forEach((b) => { b.disabled = page === pages - 1; });
  }

  function turn(by) {
    page += by;
    render();
    byId("examples").scrollIntoView();
  }

  runs.forEach((run, place) => {
    const box = make("input", { type: "checkbox" });
    box.checked = true;
    box.addEventListener("change", () => {
      if (box.checked) shown.add(place);
      else shown.delete(place);
      choose();
    });
    byId("shown-runs").append(make("label", { class: "check" }, box,
      make("span", {}, make("i", { class: `key c${run.color}` }), run.name)));
  });
  for (const control of Object.values(controls)) control.addEventListener("input", choose);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  document.querySelectorAll(".pager .previous").forEach((b) => b.addEventListener("click", () => turn(-1)));
  document.querySelectorAll(".pager .next").forEach((b) => b.addEventListener("click", () => turn(1)));
  choose();
}

if (byId("example-list")) whenShown("examples", startExamples);
