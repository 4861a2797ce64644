"use strict";
// Sorting and filtering the list of runs, copying commands, and what is behind a run, on demand.
// Text from records only ever becomes text (textContent), never markup.
const data = JSON.parse(document.getElementById("data").textContent);
const detail = document.getElementById("detail");
const words = document.getElementById("words");
const body = document.querySelector("#list tbody");
const rows = body ? [...body.rows] : [];

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// --- the list of runs: "name=value" is a whole word of a run, anything else a part of its text

const texts = new Map(rows.map((row) => [row, [row.dataset.words.toLowerCase().split(" "), row.textContent.toLowerCase()]]));

function filter() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const [row, [tokens, text]] of texts) {
    row.hidden = !wanted.every((word) => (word.includes("=") ? tokens.includes(word) : text.includes(word)));
    count += !row.hidden;
  }
  document.getElementById("count").textContent = `${count} of ${rows.length} runs`;
}

function sortBy(heading) {
  const column = heading.cellIndex;
  const down = heading.getAttribute("aria-sort") === "ascending";
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => row.cells[column].dataset.number ?? row.cells[column].textContent;
  const compare = (a, b) => (a === "" || b === "" ? (a === "") - (b === "") : (a - b || String(a).localeCompare(b)) * (down ? -1 : 1));
  body.append(...rows.sort((a, b) => compare(value(a), value(b))));
}

// --- the details of a run

function facts(title, values) {
  const table = element("table", undefined, { class: "values" });
  for (const [name, value] of Object.entries(values)) {
    const row = table.insertRow();
    row.append(element("th", name, { scope: "row" }), element("td", value, { dir: "auto" }));
  }
  return [element("h3", title), table];
}

function showRun(name) {
  const run = data.runs[name];
  const head = element("header");
  const close = element("button", "Close", { type: "button" });
  close.addEventListener("click", () => detail.close());
  head.append(element("h2", name, { id: "detail-title" }), close);
  const button = rows.flatMap((row) => [...row.querySelectorAll(".copy")]).find((one) => one.dataset.run === name);
  const again = element("div", undefined, { class: "command" });
  again.append(element("code", button.dataset.copy), element("button", "Copy", { type: "button", class: "copy", "data-copy": button.dataset.copy }));
  const path = element("p", undefined, { class: "path" });
  path.append(element("a", run.path, { href: run.href }));
  const parts = [path, again];
  if (run.error) parts.push(element("h3", "Error"), element("pre", run.error, { tabindex: "0" }));
  for (const [title, index] of Object.entries(run.parts)) parts.push(...facts(title, data.shared[index]));
  const content = element("div");
  content.append(...parts);
  detail.replaceChildren(head, content);
  if (!detail.open) detail.showModal();
  detail.scrollTop = 0;
}

// --- addresses: #run=NAME, #list=WORDS, or the id of a part of the page

const scopes = [...document.querySelectorAll("article.scope")];
let shown = scopes[0].id;

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
  if (kind === "run" && Object.hasOwn(data.runs, name)) return showRun(name);
  if (detail.open) detail.close();
  if (kind === "list") {
    words.value = name;
    filter();
    document.getElementById("runs").scrollIntoView();
    words.focus({ preventScroll: true });
  }
  const target = document.getElementById(kind);
  const scope = target && target.closest("article.scope");
  if (scope) shown = scope.id;
  for (const one of scopes) one.hidden = one.id !== shown;
  for (const link of document.querySelectorAll(".scope-link")) {
    if (link.hash === `#${shown}`) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

detail.addEventListener("close", () => {
  if (location.hash.startsWith("#run=")) history.replaceState(null, "", location.pathname + location.search);
});
detail.addEventListener("click", (event) => event.target === detail && detail.close());
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button.copy");
  if (button) {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  }
});
for (const button of document.querySelectorAll("#list thead button"))
  button.addEventListener("click", () => sortBy(button.parentNode));
words.addEventListener("input", filter);
document.getElementById("filter").addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("hashchange", follow);
filter();
follow();
