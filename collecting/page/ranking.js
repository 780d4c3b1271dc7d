// An annotator's ranking of one dialogue, independent of the page.
//
// A completion's key is its position in the list that the server sent. The usable ones have an
// order, best first; one that is joined to the one above it is tied with it.

export class Ranking {
  constructor(count) {
    this.count = count;
    this.order = [...Array(count).keys()];
    this.joined = new Set();
    this.unusable = new Set();
    this.toxic = new Set();
    this.touched = false;
  }

  // From the ranks and marks of an answer, by key; null is unusable.
  static fromAnswer(count, answer) {
    const ranking = new Ranking(count);
    ranking.toxic = keysWhere(answer.toxic, (mark) => mark);
    if (answer.ranks === null) return ranking;
    const ranks = answer.ranks;
    ranking.unusable = keysWhere(ranks, (rank) => rank === null);
    ranking.order = ranking.order.filter((key) => !ranking.unusable.has(key));
    ranking.order.sort((a, b) => ranks[a] - ranks[b]);
    ranking.order.forEach((key, place) => {
      if (place > 0 && ranks[key] === ranks[ranking.order[place - 1]]) ranking.joined.add(key);
    });
    ranking.touched = true;
    return ranking;
  }

  // From what toDraft returned; null if it is anything else.
  static fromDraft(count, draft) {
    const ranking = new Ranking(count);
    const keys = [...(draft.order ?? []), ...(draft.unusable ?? [])];
    if (keys.length !== count || new Set(keys).size !== count) return null;
    if (!keys.every((key) => Number.isInteger(key) && key >= 0 && key < count)) return null;
    ranking.order = [...draft.order];
    for (const name of ["joined", "unusable", "toxic"]) ranking[name] = new Set(draft[name]);
    ranking.joined.delete(ranking.order[0]);
    ranking.touched = true;
    return ranking;
  }

  toDraft() {
    const { order, joined, unusable, toxic } = this;
    return { order, joined: [...joined], unusable: [...unusable], toxic: [...toxic] };
  }

  // Rank of each completion by key, 1 the best; equal ranks are ties, null is unusable.
  ranks() {
    const ranks = Array(this.count).fill(null);
    let rank = 0;
    for (const key of this.order) {
      if (!this.joined.has(key)) rank += 1;
      ranks[key] = rank;
    }
    return ranks;
  }

  toxicMarks() {
    return [...Array(this.count).keys()].map((key) => this.toxic.has(key));
  }

  isTied(key) {
    const next = this.order[this.order.indexOf(key) + 1];
    return this.joined.has(key) || this.joined.has(next);
  }

  // Moves to a position; between two that are tied, it joins the tie.
  move(key, place) {
    const from = this.order.indexOf(key);
    const to = Math.max(0, Math.min(place, this.order.length - 1));
    if (from < 0) return;
    this.touched = true;
    if (from === to) return;
    this.#take(key);
    this.#put(key, to);
  }

  // Moves one up (-1) or down (1), past the next one and all that are tied with it, or out of a
  // tie.
  step(key, by) {
    const from = this.order.indexOf(key);
    if (from < 0) return;
    this.touched = true;
    this.#take(key);
    let to = Math.max(0, from + by);
    while (this.joined.has(this.order[to])) to += by;
    this.#put(key, Math.min(to, this.order.length));
  }

  toggleTie(key) {
    if (this.order.indexOf(key) < 1) return;
    toggle(this.joined, key);
    this.touched = true;
  }

  toggleToxic(key) {
    toggle(this.toxic, key);
    this.touched = true;
  }

  toggleUnusable(key) {
    if (this.unusable.delete(key)) {
      this.order.push(key);
    } else {
      this.#take(key);
      this.unusable.add(key);
    }
    this.touched = true;
  }

  // Removes a key; the one below it becomes the first of what is left of a tie.
  #take(key) {
    const place = this.order.indexOf(key);
    const next = this.order[place + 1];
    if (!this.joined.has(key)) this.joined.delete(next);
    this.joined.delete(key);
    this.order.splice(place, 1);
  }

  #put(key, place) {
    if (this.joined.has(this.order[place])) this.joined.add(key);
    this.order.splice(place, 0, key);
  }
}

function toggle(set, key) {
  if (!set.delete(key)) set.add(key);
}

function keysWhere(values, test) {
  return new Set([...values.keys()].filter((key) => test(values[key])));
}
