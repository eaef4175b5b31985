"use strict";
const all = (what, where = document) => [...where.querySelectorAll(what)];
// Sort: a click on the head of a column; numbers by size, words by letters, gaps last.
const value = (row, column) => {
  const text = (row.cells[column] || {}).textContent || "";
  const number = parseFloat(text.replace(/,/g, ""));
  return text.trim() === "-" ? null : Number.isNaN(number) ? text.trim() : number;
};
const before = (a, b) => a === null ? 1 : b === null ? -1
  : typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
for (const table of all("table")) {
  const heads = all("thead tr:last-child th", table);
  heads.forEach((head, column) => {
    head.classList.add("sortable");
    head.tabIndex = 0;
    const sort = () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((x, y) => {
        const [a, b] = [value(x, column), value(y, column)];
        return (down && a !== null && b !== null ? -1 : 1) * before(a, b);
      });
      table.tBodies[0].append(...rows);
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
}
