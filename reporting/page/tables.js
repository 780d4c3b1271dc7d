// Tables: sorting by title, groups that unfold, the choice of a baseline, hints at hidden columns.

function sortValue(row, column) {
  const cell = row.children[column];
  const value = cell.dataset.sort ?? cell.textContent.trim();
  return value === "" || value === "-" ? null : value;
}

function compareValues(a, b) {
  const numbers = [Number(a), Number(b)];
  return numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1];
}

function sortTable(table, column, direction) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = rows.filter((row) => !row.classList.contains("member"));
  heads.sort((one, other) => {
    const [a, b] = [sortValue(one, column), sortValue(other, column)];
    if (a === null || b === null) return (a === null) - (b === null); // missing values come last
    return direction * compareValues(a, b);
  });
  // The runs of a group stay below it.
  const members = (head) => rows.filter(
    (row) => row.classList.contains("member") && row.dataset.group === head.dataset.group,
  );
  body.append(...heads.flatMap((head) => [head, ...members(head)]));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const titles = [...table.tHead.rows[0].cells];
  titles.forEach((title, column) => {
    title.querySelector("button").addEventListener("click", () => {
      const before = title.getAttribute("aria-sort");
      const first = Number(title.dataset.better) > 0 ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      titles.forEach((one) => one.removeAttribute("aria-sort"));
      title.setAttribute("aria-sort", before === first ? other : first);
      sortTable(table, column, title.getAttribute("aria-sort") === "ascending" ? 1 : -1);
    });
  });
}

for (const button of document.querySelectorAll(".expand")) {
  button.addEventListener("click", () => {
    const head = button.closest("tr");
    const open = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", String(open));
    for (const row of head.parentElement.rows) {
      const own = row.classList.contains("member") && row.dataset.group === head.dataset.group;
      if (own) row.hidden = !open;
    }
  });
}

byId("baseline")?.addEventListener("change", (event) => {
  for (const table of document.querySelectorAll(".difference")) {
    table.hidden = table.dataset.baseline !== event.target.value;
  }
});

// Tell readers that a table is wider than the screen.
function hintAtColumns() {
  for (const hint of document.querySelectorAll(".hint")) {
    const box = hint.nextElementSibling;
    hint.hidden = box.scrollWidth <= box.clientWidth + 1;
  }
}

window.addEventListener("resize", hintAtColumns);
document.addEventListener("view", hintAtColumns);
byId("baseline")?.addEventListener("change", hintAtColumns);
