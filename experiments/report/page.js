const make = (tag, parent, attributes = {}, text = "") => {
  const svg = parent.namespaceURI && parent.namespaceURI.endsWith("svg");
  const made = svg ? document.createElementNS(parent.namespaceURI, tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return parent.appendChild(made);
};

// Filter: what belongs to a defence or attack that is switched off is hidden, wherever it stands.
for (const box of all("nav input")) {
  box.addEventListener("change", () => {
    const key = box.dataset.of;
    for (const one of all(`[data-${key}]`))
      if (one.dataset[key] === box.value) one.classList.toggle("off", !box.checked);
  });
}

// Hover: the nearest point of a chart, or the cell of a matrix, in words.
const tip = make("div", document.body, { id: "tip", hidden: "" });
const tell = (event, text) => {
  tip.hidden = !text;
  tip.textContent = text;
  const left = event.pageX + 14;
  tip.style.left = Math.min(left, scrollX + innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = event.pageY + 14 + "px";
};
const within = (svg, event) => {
  const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
  return [(event.clientX - box.left) * view.width / box.width, (event.clientY - box.top) * view.height / box.height];
};
const nearest = (svg, x, y) => {
  let best = [400, ""];
  for (const line of all("g[data-at]:not(.off)", svg)) {
    const xs = line.dataset.x.split(" "), ys = line.dataset.y.split(" ");
    line.dataset.at.split(" ").forEach((at, i) => {
      const [a, b] = at.split(",").map(Number), far = (a - x) ** 2 + (b - y) ** 2;
      const where = `${svg.dataset.x.split(",")[0]} ${xs[i]}`;
      if (far < best[0]) best = [far, `${line.dataset.d}: ${ys[i]}${svg.dataset.unit} (${where})`];
    });
  }
  return best[1];
};
for (const svg of all("svg.chart")) {
  svg.addEventListener("pointermove", (event) => tell(event, nearest(svg, ...within(svg, event))));
  svg.addEventListener("pointerleave", (event) => tell(event, ""));
}

// Clients and rounds: another run in the place of the first.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const [choices, colours] = [read("choices"), read("colours")];
const CELL = 14, NAMES = 46, WIDE = 640;
const draw = (svg, one) => {
  const step = (WIDE - NAMES - 4) / Math.max(1, one.columns.length);
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${WIDE} ${CELL * one.names.length + 32}`);
  one.cells.forEach((row, i) => [...row].forEach((letter, j) => {
    make("path", svg, { d: `M${NAMES + j * step} ${i * CELL + 1}h${step}v${CELL - 2}h${-step}z`, fill: colours[letter] });
  }));
  one.names.forEach((name, i) => make("text", svg,
    { x: NAMES - 5, y: i * CELL + 10.5, "text-anchor": "end", class: one.marked[i] ? "bad" : "" }, one.marked[i] ? `◆ ${name}` : name));
  const every = Math.max(1, Math.ceil(one.columns.length / 12));
  one.columns.forEach((name, j) => { if (j % every === 0)
    make("text", svg, { x: NAMES + (j + 0.5) * step, y: CELL * one.names.length + 12, "text-anchor": "middle" }, name); });
};
for (const [title, runs] of Object.entries(choices)) {
  const figure = all("section").find((one) => one.dataset.title === title).querySelector("figure");
  const svg = figure.querySelector("svg"), select = document.createElement("select");
  select.setAttribute("aria-label", "run");
  figure.querySelector("figcaption").replaceChildren(select);
  const printed = make("span", select.parentNode, { class: "printed" }, runs[0][0]);
  runs.forEach(([name], i) => make("option", select, { value: i }, name));
  select.addEventListener("change", () => {
    draw(svg, runs[select.value][1]);
    printed.textContent = runs[select.value][0];
  });
  svg.addEventListener("pointermove", (event) => {
    const one = runs[select.value][1], [x, y] = within(svg, event), i = Math.floor(y / CELL);
    const j = Math.floor((x - NAMES) / ((WIDE - NAMES - 4) / one.columns.length));
    const letter = (one.cells[i] || "")[j], key = all(".keys li", figure.closest("section")).find((k) => k.dataset.k === colours[letter]);
    tell(event, letter ? `client ${one.names[i]}${one.marked[i] ? " (Byzantine)" : ""}, round ${one.columns[j]}: ${key ? key.textContent.trim() : ""}` : "");
  });
  svg.addEventListener("pointerleave", (event) => tell(event, ""));
}
