"use strict";
// Values under the pointer, sections on a phone, and the browser of tasks and samples. Whatever a
// model wrote enters the page as text (textContent), never as markup.
const root = document.documentElement;
addEventListener("error", (event) => { root.dataset.errors = event.message; });

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function show(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (value === 0 || (size >= 1e-3 && size < 1e6)) return String(+value.toPrecision(3));
  return value.toExponential(1);
}

// Curves: the values nearest to the pointer, read back from the drawing itself.
const tip = document.getElementById("tip");
let hair = null;

function pointsOf(path) {
  if (!path.points) path.points = path.getAttribute("d").slice(1).split(/[LM]/).map((p) => p.split(" ").map(Number));
  return path.points;
}

function point(svg, event) {
  const [x0, x1] = svg.dataset.x.split(" ").map(Number);
  const [y0, y1] = svg.dataset.y.split(" ").map(Number);
  const [left, right, top, bottom] = svg.dataset.box.split(" ").map(Number);
  const frame = svg.getBoundingClientRect();
  const at = ((event.clientX - frame.left) / frame.width) * svg.viewBox.baseVal.width;
  const x = Math.min(right, Math.max(left, at));
  const step = x0 + ((x - left) / (right - left)) * (x1 - x0);
  tip.replaceChildren(make("div", "", "step " + Math.round(step)));
  for (const path of svg.querySelectorAll("path.line")) {
    let best = null;
    for (const p of pointsOf(path)) if (!best || Math.abs(p[0] - x) < Math.abs(best[0] - x)) best = p;
    const value = y0 + ((bottom - best[1]) / (bottom - top)) * (y1 - y0);
    const words = svg.dataset.unit === "share" ? +(100 * value).toFixed(1) + "%" : show(value);
    tip.append(make("div", "", (path.dataset.label ? path.dataset.label + " " : "") + words));
  }
  if (hair && hair.ownerSVGElement !== svg) hair.remove();
  if (!hair || !hair.isConnected) {
    hair = document.createElementNS("http://www.w3.org/2000/svg", "line");
    hair.setAttribute("class", "hair");
    svg.append(hair);
  }
  for (const [name, value] of [["x1", x], ["x2", x], ["y1", top], ["y2", bottom]]) hair.setAttribute(name, value);
  tip.hidden = false;
  const wide = tip.offsetWidth;
  tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - wide - 6)) + "px";
  tip.style.top = Math.max(4, event.clientY - tip.offsetHeight - 14) + "px";
}

function unpoint() {
  tip.hidden = true;
  if (hair) hair.remove();
}

for (const svg of document.querySelectorAll("svg.lines")) {
  svg.addEventListener("pointermove", (event) => point(svg, event));
  svg.addEventListener("pointerdown", (event) => point(svg, event));
  svg.addEventListener("pointerleave", unpoint);
}
addEventListener("scroll", unpoint, { passive: true });

// Sections: on a phone all but the first are closed; a link opens its own; paper shows them all.
const all = [...document.querySelectorAll("details.section")];
if (matchMedia("(max-width: 600px)").matches) all.slice(1).forEach((s) => { s.open = false; });
const more = document.getElementById("more");
if (more) more.open = false;
for (const link of document.querySelectorAll("nav a")) {
  link.addEventListener("click", () => { document.querySelector(link.hash).open = true; });
}
if (location.hash) {
  const wanted = document.getElementById(location.hash.slice(1));
  if (wanted && wanted.tagName === "DETAILS") wanted.open = true;
}
addEventListener("beforeprint", () => all.forEach((s) => { if (s !== more) s.open = true; }));

// The browser.
const data = JSON.parse(document.getElementById("data").textContent);
const home = document.getElementById("browser");
const PAGE = 25;

function readRuns() {
  const rows = { samples: [], tasks: [] };
  data.runs.forEach((run, number) => {
    for (const values of run.samples) {
      const row = { run: number };
      run.fields.forEach((name, i) => { row[name] = values[i]; });
      row.prompt = run.prompts[row.prompt];
      rows.samples.push(row);
    }
    for (const [step, type, key, json] of run.tasks) rows.tasks.push({ run: number, step, type, key, json });
  });
  // The newest first; within a step the order of the record, from its end.
  for (const list of Object.values(rows)) list.reverse().sort((a, b) => b.step - a.step);
  return rows;
}

function colour(type) {
  return "k" + (Math.max(0, data.types.indexOf(type)) % 6);
}

function sampleCard(row) {
  const card = make("article", "sample " + colour(row.type));
  const line = make("div", "line1");
  line.append(make("b", "", row.role + " / " + row.type));
  const mark = { correct: "good", valid: "good", wrong: "bad", invalid: "bad", malformed: "bad" }[row.outcome] || "";
  line.append(make("span", mark, row.outcome + (row.reason && row.reason !== row.outcome ? ": " + row.reason : "")));
  const facts = [["step", row.step], ["reward", show(row.reward)], ["advantage", show(row.advantage)]];
  if (row.solve_rate !== null) facts.push(["solve rate", show(row.solve_rate)]);
  facts.push(["tokens", row.tokens]);
  if (row.finish !== "stop") facts.push(["ended by", row.finish]);
  if (row.count > 1) facts.push(["seen", row.count + " times"]);
  if (row.is_estimate) facts.push(["use", "estimate"]);
  if (data.runs.length > 1) facts.push(["run", data.runs[row.run].name]);
  for (const [name, value] of facts) line.append(make("span", "", name + " " + value));
  const two = make("div", "two");
  for (const [title, text] of [["prompt", row.prompt], ["the model wrote", row.text]]) {
    const side = make("div");
    side.append(make("h4", "", title), make("pre", "", text));
    two.append(side);
  }
  card.append(line, two);
  if (row.role === "propose" && row.task_key) card.append(make("h4", "", "the task it became"), make("pre", "", row.task_key));
  return card;
}

function taskCard(row, open) {
  const card = make("article", "sample " + colour(row.type));
  const line = make("div", "line1");
  line.append(make("b", "", row.type), make("span", "", row.step ? "entered at step " + row.step : "a seed"));
  if (data.runs.length > 1) line.append(make("span", "", "run " + data.runs[row.run].name));
  const button = make("button", "", "its samples");
  button.addEventListener("click", () => open(row.key));
  line.append(button);
  card.append(line, make("pre", "", row.key), ...taskFields(row.json));
  return card;
}

// The task's own record: texts of several lines each in a block, the rest in one line.
function taskFields(json) {
  let record;
  try {
    record = JSON.parse(json);
  } catch {
    return [make("pre", "", json)]; // too long, and cut
  }
  const short = [], blocks = [];
  for (const [name, value] of Object.entries(record)) {
    const text = typeof value === "string" ? value : JSON.stringify(value);
    if (name === "type") continue;
    if (text.includes("\n")) blocks.push(make("h4", "", name), make("pre", "", text.trimEnd()));
    else short.push(name + " " + text);
  }
  if (short.length) blocks.push(make("h4", "", "as it was checked"), make("pre", "", short.join("   ")));
  return blocks;
}

function browse() {
  const rows = readRuns();
  const controls = make("form", "controls");
  const count = make("p", "count");
  const list = make("div");
  const button = make("button", "", "Show more");
  const fields = {};
  let limit = PAGE;

  function field(name, title, element) {
    const label = make("label", "", title);
    label.append(element);
    controls.append(label);
    element.addEventListener("input", () => { limit = PAGE; refresh(); });
    fields[name] = element;
  }
  function choice(name, title, options) {
    const select = make("select");
    for (const [value, words] of options) {
      const option = make("option", "", words);
      option.value = value;
      select.append(option);
    }
    field(name, title, select);
  }
  function values(name) {
    const found = [...new Set(rows.samples.map((r) => r[name]))].filter((v) => v !== "").sort();
    return [["", "all"], ...found.map((v) => [v, v])];
  }
  choice("view", "show", [["samples", "samples"], ["tasks", "tasks"]]);
  if (data.runs.length > 1) choice("run", "run", [["", "all"], ...data.runs.map((r, i) => [String(i), r.name])]);
  choice("role", "role", values("role"));
  choice("type", "type", [["", "all"], ...data.types.map((t) => [t, t])]);
  choice("outcome", "outcome", values("outcome"));
  choice("reason", "reason", values("reason"));
  for (const [name, title] of [["from", "from step"], ["to", "to step"]]) {
    const input = make("input");
    input.type = "number";
    input.min = "0";
    field(name, title, input);
  }
  const search = make("input");
  search.type = "search";
  search.placeholder = "prompt, text or task";
  field("text", "contains", search);
  controls.addEventListener("submit", (event) => event.preventDefault());

  function matches(row) {
    const f = fields;
    if (f.run && f.run.value && row.run !== Number(f.run.value)) return false;
    if (f.type.value && row.type !== f.type.value) return false;
    if (f.from.value && row.step < Number(f.from.value)) return false;
    if (f.to.value && row.step > Number(f.to.value)) return false;
    if (f.view.value === "samples") {
      for (const name of ["role", "outcome", "reason"]) if (f[name].value && row[name] !== f[name].value) return false;
    }
    const wanted = f.text.value;
    const texts = f.view.value === "samples" ? [row.prompt, row.text, row.task_key] : [row.key, row.json];
    return !wanted || texts.some((t) => t.includes(wanted));
  }
  function samplesOf(key) {
    for (const name of ["role", "outcome", "reason", "from", "to"]) fields[name].value = "";
    fields.view.value = "samples";
    fields.text.value = key;
    limit = PAGE;
    refresh();
    home.scrollIntoView();
  }
  function refresh() {
    const view = fields.view.value;
    const found = rows[view].filter(matches);
    for (const name of ["role", "outcome", "reason"]) fields[name].disabled = view === "tasks";
    list.replaceChildren(...found.slice(0, limit).map((r) => (view === "tasks" ? taskCard(r, samplesOf) : sampleCard(r))));
    count.textContent = found.length + " of the " + rows[view].length + " " + view + " on this page";
    button.hidden = found.length <= limit;
  }
  button.type = "button";
  button.addEventListener("click", () => { limit += 4 * PAGE; refresh(); });
  home.replaceChildren(controls, count, list, button);
  refresh();
}

if (home) browse();
root.dataset.ready = "yes";
