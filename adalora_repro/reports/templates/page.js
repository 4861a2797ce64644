"use strict";
// What is behind the numbers, on demand. Text from records only ever becomes text (textContent), never markup.
const data = JSON.parse(document.getElementById("data").textContent);
const detail = document.getElementById("detail");
const byName = new Map(data.runs.map((run) => [run.name, run]));

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function runHref(run) {
  return "#run=" + encodeURIComponent(run.name);
}

// --- one run

function facts(title, values) {
  const names = Object.keys(values);
  if (!names.length) return [];
  const table = element("table", undefined, { class: "facts values" });
  const body = table.createTBody();
  for (const name of names) {
    const row = body.insertRow();
    row.append(element("th", name, { scope: "row" }), element("td", values[name], { dir: "auto" }));
  }
  return [element("h3", title), table];
}

function curve(run) {
  const [steps, losses] = run.curve;
  if (steps.length < 2) return [];
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const width = 600, height = 120, last = steps[steps.length - 1];
  const x = (step) => ((step - steps[0]) / (last - steps[0] || 1)) * width;
  const y = (loss) => height - ((loss - low) / (high - low || 1)) * height;
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const told = `Training loss ${low} to ${high}, steps ${steps[0]} to ${last}`;
  for (const [name, value] of Object.entries({ viewBox: `0 -4 ${width} ${height + 8}`, role: "img", "aria-label": told }))
    svg.setAttribute(name, value);
  const line = document.createElementNS(space, "polyline");
  line.setAttribute("points", steps.map((step, i) => `${x(step).toFixed(1)},${y(losses[i]).toFixed(1)}`).join(" "));
  svg.append(line);
  const figure = element("figure", undefined, { class: "curve" });
  figure.append(svg, element("figcaption", `${told}; ${steps.length} of the logged points`));
  return [element("h3", "Training loss"), figure];
}

function ranks(run) {
  if (!run.ranks) return [];
  const names = data.shared[run.ranks[0]], values = run.ranks[1];
  const rows = new Map(), layers = [];
  names.forEach((name, i) => {
    const [stack, layer, ...role] = name.split(".");
    const key = `${stack} ${role.join(".")}`;
    if (!rows.has(key)) rows.set(key, new Map());
    rows.get(key).set(layer, values[i]);
    if (!layers.includes(layer)) layers.push(layer);
  });
  const table = element("table", undefined, { class: "ranks values" });
  const head = table.createTHead().insertRow();
  head.append(element("th", "layer", { scope: "col" }), ...layers.map((layer) => element("th", layer, { scope: "col" })));
  const body = table.createTBody();
  for (const [key, found] of rows) {
    const row = body.insertRow();
    row.append(element("th", key, { scope: "row" }), ...layers.map((layer) => element("td", found.get(layer) ?? "")));
  }
  const wide = element("div", undefined, { class: "wide", tabindex: "0" });
  wide.append(table);
  return [element("h3", "Final ranks"), wide];
}

function provenance(run) {
  const path = element("p", undefined, { class: "path" });
  path.append(element("a", run.path, { href: run.href }));
  const parts = [path];
  if (run.error) parts.push(element("h3", "Error"), element("pre", run.error));
  for (const [title, values] of Object.entries(run.parts)) {
    parts.push(...facts(title, typeof values === "number" ? data.shared[values] : values));
    if (title === "Result") parts.push(...curve(run));
    if (title === "Parameters and budget") parts.push(...ranks(run));
  }
  return parts;
}

// --- the dialog: a run, or the runs of a cell

function open(title, ...content) {
  const head = element("header");
  const close = element("button", "Close", { type: "button" });
  close.addEventListener("click", () => detail.close());
  head.append(element("h2", title, { id: "detail-title" }), close);
  const body = element("div");
  body.append(...content);
  detail.replaceChildren(head, body);
  if (!detail.open) detail.showModal();
  detail.scrollTop = 0;
}

function openCell(cell) {
  const content = [element("p", cell.said), ...cell.notes.map((note) => element("p", note))];
  for (const [place, number] of cell.runs.entries()) {
    const run = data.runs[number];
    const one = element("details", undefined, { class: "run" });
    one.append(element("summary", `seed ${run.key[6]}: ${run.metric} ${run.score} — ${run.name}`));
    one.addEventListener("toggle", () => one.childElementCount > 1 || one.append(...provenance(run)));
    one.open = place === 0;
    content.push(one);
  }
  content.push(element("h3", "Another run of this cell"), element("pre", cell.command));
  open(cell.title, ...content);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return ""; // typed by hand: leads nowhere
  }
}

function follow() {
  const [kind, ...rest] = location.hash.slice(1).split("=");
  const name = decoded(rest.join("="));
  if (kind === "cell" && Object.hasOwn(data.cells, name)) openCell(data.cells[name]);
  else if (kind === "run" && byName.has(name)) open(name, ...provenance(byName.get(name)));
  else {
    if (detail.open) detail.close();
    choose(location.hash.slice(1));
  }
}

detail.addEventListener("close", () => {
  if (/^#(cell|run)=/.test(location.hash)) history.replaceState(null, "", location.pathname + location.search);
});
detail.addEventListener("click", (event) => event.target === detail && detail.close());

// --- one scope at a time

const scopes = [...document.querySelectorAll("article.scope")];
let shown = scopes[0].id;

function choose(id) {
  const target = id && document.getElementById(id);
  const scope = target && target.closest("article.scope");
  if (scope) shown = scope.id;
  for (const one of scopes) one.hidden = one.id !== shown;
  for (const list of document.querySelectorAll(".contents [data-scope]")) list.hidden = list.dataset.scope !== shown;
  for (const link of document.querySelectorAll(".scopes a")) mark(link, link.hash === `#${shown}`);
  if (scope) target.scrollIntoView();
}

function mark(link, current) {
  if (current) link.setAttribute("aria-current", "true");
  else link.removeAttribute("aria-current");
}

const contents = new Map([...document.querySelectorAll(".contents a")].map((link) => [link.hash.slice(1), link]));
const seen = new Set();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) seen.add(entry.target.id);
    else seen.delete(entry.target.id);
  }
  const first = [...contents.keys()].find((id) => seen.has(id));
  if (first) for (const [id, link] of contents) mark(link, id === first);
}, { rootMargin: "-80px 0px 0px 0px" }); // what is under the bar of a narrow window is not seen
for (const id of contents.keys()) watcher.observe(document.getElementById(id));

// --- the list of runs

const list = document.querySelector("#list tbody");
const more = document.getElementById("more");
const texts = data.runs.map((run) => [run.status, run.name, ...run.key, `seed=${run.key[6]}`, `lr=${run.lr}`, run.error].join(" ").toLowerCase());
const STEP = 100;
let matches = [], drawn = 0;

function row(run) {
  const [task, method, budget, backbone, source, protocol, seed] = run.key;
  const made = element("tr");
  const head = element("th", undefined, { scope: "row" });
  head.append(element("a", run.status, { href: runHref(run), class: `status-${run.status}`, "aria-label": `${run.status}: ${run.name}` }));
  made.append(head);
  for (const text of [task, method, budget, run.lr, seed, run.score, run.metric, backbone, source, protocol])
    made.append(element("td", text, { dir: "auto" }));
  return made;
}

function drawMore() {
  list.append(...matches.slice(drawn, drawn + STEP).map((number) => row(data.runs[number])));
  drawn = Math.min(drawn + STEP, matches.length);
  more.hidden = drawn === matches.length;
}

function filter() {
  const words = document.getElementById("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  matches = texts.flatMap((text, number) => (words.every((word) => text.includes(word)) ? [number] : []));
  list.replaceChildren();
  drawn = 0;
  drawMore();
  document.getElementById("count").textContent = `${matches.length} of ${data.runs.length} runs`;
}

document.getElementById("words").addEventListener("input", filter);
document.getElementById("filter").addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", drawMore);
window.addEventListener("hashchange", follow);
filter();
follow();
