// Helpers for the document, for requests, and for what the browser remembers.

export const byId = (id) => document.getElementById(id);

export function make(tag, properties = {}) {
  return Object.assign(document.createElement(tag), properties);
}

// A reply of the server to a request with a JSON body or none. Errors have its words and status.
export async function request(path, body) {
  const options = body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  let reply;
  try {
    reply = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer");
  }
  if (reply.ok) return reply;
  const content = await reply.json().catch(() => ({ error: `the server says ${reply.status}` }));
  throw Object.assign(new Error(content.error), { status: reply.status });
}

// Values kept in this browser. The page works without them, as in a private window.
export const memory = {
  get(key) {
    try {
      return JSON.parse(localStorage.getItem(`alignsum.${key}`));
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem(`alignsum.${key}`, JSON.stringify(value));
    } catch {
      // Not kept.
    }
  },
  remove(key) {
    try {
      localStorage.removeItem(`alignsum.${key}`);
    } catch {
      // Not kept.
    }
  },
};

// Plain text as paragraphs and numbered lists; a term with a colon at the start of a line is bold.
export function makeInstructions(text) {
  const parts = [];
  for (const line of text.split("\n").filter((one) => one.trim())) {
    const [, number, term, words] = /^(\d+\. )?(\p{L}[\p{L} ]{0,20}:)?(.*)$/su.exec(line);
    const item = make(number ? "li" : "p");
    item.append(make("strong", { textContent: term ?? "" }), words);
    if (number && parts.at(-1)?.tagName !== "OL") parts.push(make("ol"));
    if (number) parts.at(-1).append(item);
    else parts.push(item);
  }
  return parts;
}

// A dialogue as turns with colored speakers. No character is added or left out.
export function makeTurns(dialogue) {
  const speakers = [];
  return dialogue.split("\n").map((line) => {
    const turn = make("p", { className: "turn", dir: "auto" });
    const match = /^(#?[^:\s][^:]{0,30}):(?=\s)/u.exec(line);
    if (match === null) {
      turn.textContent = line;
      return turn;
    }
    if (!speakers.includes(match[1])) speakers.push(match[1]);
    const speaker = make("strong", { textContent: match[0] });
    speaker.style.color = `var(--speaker-${(speakers.indexOf(match[1]) % 4) + 1})`;
    turn.append(speaker, line.slice(match[0].length));
    return turn;
  });
}
