"use strict";
// The overview table: sorts by a click on a heading, filters by words and by choices. All text enters as text, never as HTML.
const DATA = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawing(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function initTheme() {
  const dark = () => document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  byId("theme").addEventListener("click", () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; });
}

const sorting = { column: null, descending: true };

// A number of a column that carries an interval also gets a bar; all bars of the page share one scale.
function bar(value, low, high, most) {
  const width = 90, x = (v) => Math.max(0, Math.min(width, v / most * width));
  const picture = drawing("svg", { class: "bar", width: width + 2, height: 12, "aria-hidden": "true" },
    drawing("rect", { x: 0, y: 2, width: x(value), height: 8 }),
    drawing("line", { class: "one", x1: x(1), x2: x(1), y1: 0, y2: 12 }));
  if (low !== null && high !== null) picture.append(drawing("line", { x1: x(low), x2: x(high), y1: 6, y2: 6, "stroke-width": 2 }));
  return picture;
}

function cell(column, row, most) {
  const value = row[column.key];
  if (column.kind === "link") {
    return element("td", {}, value ? element("a", { href: value }, "run.json") : "");
  }
  if (column.kind === "words") return element("td", {}, value ?? "");
  const text = value === null || value === undefined ? "-" : column.kind === "share" ? share(value) : value.toFixed(column.digits) + (column.unit || "");
  const made = element("td", { class: "number" }, text);
  if (column.bar && typeof value === "number") {
    const [low, high] = [row[column.bar[0]] ?? null, row[column.bar[1]] ?? null];
    if (low !== null && high !== null) made.title = `95 % interval ${low.toFixed(2)} to ${high.toFixed(2)}`;
    made.append(bar(value, low, high, most[column.key]));
  }
  return made;
}

const share = (value) => value >= 0.9995 && value < 1 ? "<100%" : (100 * value).toFixed(1) + "%";

function compare(a, b) {
  const empty = (v) => v === null || v === undefined || v === "";
  if (empty(a) || empty(b)) return empty(a) - empty(b) || 0; // no figure comes last, whatever the direction
  const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return sorting.descending ? -order : order;
}

function shown() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const choices = [...document.querySelectorAll("#filters select")].filter((select) => select.value !== "");
  const rows = DATA.rows.filter((row) => choices.every((select) => String(row[select.name]) === select.value)
    && words.every((word) => row.haystack.includes(word)));
  if (sorting.column) rows.sort((a, b) => compare(a[sorting.column], b[sorting.column]));
  return rows;
}

function fillTable() {
  const rows = shown();
  const most = {};
  for (const column of DATA.columns.filter((c) => c.bar)) {
    most[column.key] = Math.max(1.2, ...DATA.rows.map((row) => row[column.bar[1]] ?? row[column.key] ?? 0));
  }
  byId("points").tBodies[0].replaceChildren(...rows.map((row) =>
    element("tr", { class: row.status }, ...DATA.columns.map((column) => cell(column, row, most)))));
  byId("count").textContent = `${rows.length} of ${DATA.rows.length} points`;
  for (const head of byId("points").tHead.rows[0].cells) {
    const sorted = head.dataset.key === sorting.column;
    head.setAttribute("aria-sort", sorted ? (sorting.descending ? "descending" : "ascending") : "none");
  }
}

function sortBy(column) {
  const same = sorting.column === column.key;
  sorting.descending = same ? !sorting.descending : column.kind !== "words";
  sorting.column = column.key;
  fillTable();
}

// A column whose value never changes is said once, above the table.
function dropConstants() {
  const values = (column) => [...new Set(DATA.rows.map((row) => String(row[column.key])))];
  const constant = DATA.columns.filter((column) => column.constant && DATA.rows.length > 1 && values(column).length === 1);
  DATA.columns = DATA.columns.filter((column) => !constant.includes(column));
  byId("common").textContent = constant.length ? `All points: ${constant.map((c) => `${c.title} ${values(c)[0]}`).join(", ")}.` : "";
}

function initTable() {
  dropConstants();
  for (const row of DATA.rows) row.haystack = Object.values(row).join(" ").toLowerCase();
  const heads = DATA.columns.map((column) => {
    const button = element("button", { type: "button" }, column.title);
    button.addEventListener("click", () => sortBy(column));
    return element("th", { "data-key": column.key, scope: "col", class: column.kind === "words" || column.kind === "link" ? "" : "number" }, button);
  });
  byId("points").tHead.append(element("tr", {}, ...heads));
  const search = element("input", { id: "search", type: "search", placeholder: "filter by words", "aria-label": "filter by words" });
  search.addEventListener("input", fillTable);
  byId("filters").append(search);
  for (const column of DATA.columns.filter((c) => c.filter)) {
    const values = [...new Set(DATA.rows.map((row) => String(row[column.key])))].sort(new Intl.Collator("en", { numeric: true }).compare);
    if (values.length < 2) continue;
    const select = element("select", { name: column.key, "aria-label": column.title }, element("option", { value: "" }, `${column.title}: all`),
      ...values.map((value) => element("option", { value }, value)));
    select.addEventListener("change", fillTable);
    byId("filters").append(select);
  }
  byId("filters").append(element("span", { id: "count", class: "hint" }));
  fillTable();
}

function initPlots() {
  const choice = byId("plot-filter");
  if (!choice) return;
  choice.addEventListener("change", () => {
    for (const figure of document.querySelectorAll("figure")) figure.hidden = choice.value !== "" && figure.dataset.group !== choice.value;
  });
}

initTheme();
initTable();
initPlots();
