// The board: a box switches columns off; "worst" is the lowest of the columns that are shown.
for (const board of all(".board")) {
  const table = board.querySelector("table"), boxes = all(".filters input", board);
  const heads = all("thead th", table);
  const percent = (cell) => {
    const text = cell.textContent.trim();
    return text === "refused" ? 0 : text === "not measured" ? null : parseFloat(text);
  };
  const show = () => {
    const on = heads.map((head) => head.dataset.attackers !== undefined && boxes.every((box) =>
      box.checked || head.dataset[box.dataset.of] !== box.value));
    heads.forEach((head, column) => {
      if (head.dataset.attackers === undefined) return;
      for (const row of table.rows) row.cells[column].style.display = on[column] ? "" : "none";
    });
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) {
      const seen = [...row.cells].filter((cell, i) => on[i]).map(percent).filter((one) => one !== null);
      row.cells[1].textContent = seen.length ? Math.min(...seen).toFixed(1) : "-";
    }
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[1].click();
  };
  boxes.forEach((box) => box.addEventListener("change", show));
  show();
}
