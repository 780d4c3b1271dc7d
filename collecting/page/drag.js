// Drags a card to another position in its list, by mouse, pen or finger.

const THRESHOLD = 5; // pixels after which a press is a drag
const EDGE = 70; // pixels from the edge of the window within which it scrolls
const SPEED = 12; // pixels a frame

// A mouse drags a card anywhere; a finger only by its grip, because elsewhere it scrolls the page.
export function makeDraggable(card, grip, { places, canDrag, onDrop }) {
  card.addEventListener("pointerdown", (event) => {
    const byGrip = grip.contains(event.target);
    if (event.button !== 0 || !canDrag() || event.target.closest("button")) return;
    if (event.pointerType !== "mouse" && !byGrip) return;
    follow(card, event, places, onDrop);
  });
}

function follow(card, start, places, onDrop) {
  const items = places();
  const from = items.findIndex((item) => item.contains(card));
  const origin = { x: start.clientX, y: start.clientY + window.scrollY };
  let pointer = { x: start.clientX, y: start.clientY };
  let dragging = false;
  let target = from;
  const stopping = new AbortController();
  const options = { signal: stopping.signal };

  function begin() {
    dragging = true;
    card.setPointerCapture(start.pointerId);
    card.classList.add("dragging");
    document.body.classList.add("is-dragging");
    requestAnimationFrame(scrollAtEdge);
  }

  function draw() {
    card.style.transform = `translateY(${pointer.y + window.scrollY - origin.y}px)`;
    target = findPlace(items, from, pointer.y);
    items.forEach((item, place) => {
      item.classList.toggle("drop-above", place === target && target < from);
      item.classList.toggle("drop-below", place === target && target > from);
    });
  }

  function scrollAtEdge() {
    if (!dragging) return;
    const below = pointer.y > window.innerHeight - EDGE;
    const by = pointer.y < EDGE ? -SPEED : below ? SPEED : 0;
    if (by) {
      window.scrollBy(0, by);
      draw();
    }
    requestAnimationFrame(scrollAtEdge);
  }

  function stop(dropped) {
    stopping.abort();
    const moved = dragging && dropped && target !== from;
    dragging = false;
    card.style.transform = "";
    card.classList.remove("dragging");
    document.body.classList.remove("is-dragging");
    for (const item of items) item.classList.remove("drop-above", "drop-below");
    if (moved) onDrop(target);
  }

  const move = (event) => {
    if (event.pointerId !== start.pointerId) return;
    pointer = { x: event.clientX, y: event.clientY };
    const far = Math.hypot(pointer.x - start.clientX, pointer.y - start.clientY);
    if (!dragging && far >= THRESHOLD) begin();
    if (dragging) draw();
  };
  const isMine = (event) => event.pointerId === start.pointerId;
  window.addEventListener("pointermove", move, options);
  window.addEventListener("pointerup", (event) => isMine(event) && stop(true), options);
  window.addEventListener("pointercancel", (event) => isMine(event) && stop(false), options);
  window.addEventListener("keydown", (event) => event.key === "Escape" && stop(false), options);
}

// The position of a card that is dragged to a height: past the middle of another card, it takes
// that card's position.
function findPlace(items, from, y) {
  let place = from;
  items.forEach((item, other) => {
    const box = item.getBoundingClientRect();
    const middle = box.top + box.height / 2;
    if (other < from && y < middle) place = Math.min(place, other);
    if (other > from && y > middle) place = Math.max(place, other);
  });
  return place;
}
