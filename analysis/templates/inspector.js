// The tree inspector: one or two algorithms on one prompt, step by step.
const state = { panes: [], step: 0, timer: null };
const PLAY_MILLISECONDS = 700;

// Traces travel deflated and in base64; a trace is unpacked when it is first looked at.
async function unpack(entry) {
  if (!entry.trace) {
    const bytes = Uint8Array.from(atob(entry.packed), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    entry.trace = JSON.parse(await new Response(stream).text());
  }
  return entry.trace;
}

class Pane {
  constructor(entry, trace) {
    this.entry = entry;
    this.trace = trace;
    this.steps = trace.steps.map((step) => readStep(trace, step));
    this.emitted = this.steps.map((nodes) => this.taken(nodes));
    this.before = [0];
    for (const tokens of this.emitted) this.before.push(this.before.at(-1) + tokens.length);
    this.box = element("div", { class: "pane" });
  }

  taken(nodes) {
    const path = nodes.filter((node) => node.flags & ACCEPTED && node.parent >= 0);
    return [...path, ...nodes.filter((node) => node.flags & BONUS)];
  }

  // The step that emits the token at this place of the text.
  stepAt(place) {
    const found = this.before.findLastIndex((start) => start <= place);
    return Math.min(found, this.steps.length - 1);
  }

  show(step) {
    this.step = Math.max(0, Math.min(step, this.steps.length - 1));
    this.nodes = this.steps[this.step];
    this.chosen = 0;
    const drafted = this.nodes.filter((node) => !(node.flags & BONUS)).length;
    const verified = this.nodes.filter((node) => node.flags & VERIFIED).length;
    const facts = `step ${this.step + 1} of ${this.steps.length}: ${drafted} nodes drafted, ${verified} verified, `
      + `${this.emitted[this.step].length} tokens emitted; ${(this.before.at(-1) / this.steps.length).toFixed(2)} per step over all`;
    this.detail = element("p", { class: "facts", "aria-live": "polite" });
    this.canvas = element("div", { class: "canvas", tabindex: "0" }, drawTree(this.nodes, (index) => this.choose(index)));
    this.canvas.classList.toggle("fitted", byId("fit").checked);
    this.box.replaceChildren(element("h3", {}, this.entry.method), element("p", { class: "facts" }, facts), this.answer(), this.detail, this.canvas);
    this.choose(0);
    const end = this.nodes.at(-1); // the bonus, where the accepted path ends
    requestAnimationFrame(() => { this.canvas.scrollTop = Math.max(0, end.y - this.canvas.clientHeight / 2); });
    this.box.querySelector(".now, .own")?.scrollIntoView({ block: "nearest" });
  }

  answer() {
    const past = this.emitted.slice(0, this.step).flat().map((node) => node.text).join("");
    const spans = this.emitted[this.step].map((node) => element("span", { class: node.flags & BONUS ? "own" : "now" }, node.text));
    const box = element("div", { class: "answer", "aria-label": "text so far" }, past, ...spans);
    requestAnimationFrame(() => { box.scrollTop = box.scrollHeight; });
    return box;
  }

  choose(index) {
    this.chosen = index;
    for (const node of this.canvas.querySelectorAll(".node")) node.classList.toggle("chosen", Number(node.dataset.node) === index);
    this.detail.textContent = describe(this.nodes[index]);
  }

  walk(key) {
    this.choose(neighbour(this.nodes, this.chosen, key));
    this.canvas.querySelector(".chosen")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}

function showStep(step) {
  const [left, right] = state.panes;
  state.step = Math.max(0, Math.min(step, numSteps() - 1));
  const scroll = [window.scrollX, window.scrollY];
  left.show(state.step);
  if (right) right.show(byId("align").checked ? right.stepAt(left.before[left.step]) : state.step);
  window.scrollTo(...scroll);
  byId("step").value = state.step;
  byId("where").textContent = `step ${state.step + 1} of ${numSteps()}`;
}

const numSteps = () => byId("align").checked ? state.panes[0].steps.length : Math.max(...state.panes.map((pane) => pane.steps.length));

function play(on) {
  clearInterval(state.timer);
  state.timer = on ? setInterval(() => state.step + 1 < numSteps() ? showStep(state.step + 1) : play(false), PLAY_MILLISECONDS) : null;
  byId("play").textContent = on ? "pause" : "play";
}

async function openPrompt() {
  play(false);
  const of = (select) => DATA.traces.find((entry) => entry.prompt === byId("prompt").value && String(entry.id) === select.value);
  const entries = [of(byId("left")), of(byId("right"))].filter(Boolean);
  state.panes = await Promise.all(entries.map(async (entry) => new Pane(entry, await unpack(entry))));
  byId("panes").replaceChildren(...state.panes.map((pane) => pane.box));
  byId("step").max = numSteps() - 1;
  showStep(0);
}

function listMethods() {
  const entries = DATA.traces.filter((entry) => entry.prompt === byId("prompt").value);
  const options = () => entries.map((entry) => element("option", { value: entry.id }, entry.method));
  byId("left").replaceChildren(...options());
  byId("right").replaceChildren(element("option", { value: "" }, "nothing"), ...options());
  const drafting = entries.find((entry) => entry.drafts) || entries[0];
  byId("left").value = drafting.id;
  return openPrompt();
}

function onKey(event) {
  const typing = ["SELECT", "TEXTAREA"].includes(event.target.tagName) || (event.target.tagName === "INPUT" && event.target.type === "search");
  if (typing || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "d") return byId("theme").click();
  if (!state.panes.length) return;
  const actions = { ArrowRight: () => showStep(state.step + 1), ArrowLeft: () => showStep(state.step - 1), Home: () => showStep(0),
    End: () => showStep(numSteps() - 1), " ": () => play(!state.timer), f: () => byId("fit").click() };
  const inTree = event.shiftKey && event.key.startsWith("Arrow");
  if (event.key === " " && event.target.tagName === "BUTTON") return;
  if (!inTree && !(event.key in actions)) return;
  event.preventDefault();
  if (inTree) (state.panes.find((pane) => pane.box.contains(document.activeElement)) || state.panes[0]).walk(event.key);
  else actions[event.key]();
}

function initInspector() {
  document.addEventListener("keydown", onKey);
  if (!byId("prompt")) return;
  byId("prompt").append(...[...new Set(DATA.traces.map((entry) => entry.prompt))].map((prompt) => element("option", {}, prompt)));
  byId("prompt").addEventListener("change", listMethods);
  for (const id of ["left", "right"]) byId(id).addEventListener("change", openPrompt);
  const buttons = { first: () => showStep(0), back: () => showStep(state.step - 1), next: () => showStep(state.step + 1),
    last: () => showStep(numSteps() - 1), play: () => play(!state.timer) };
  for (const [id, action] of Object.entries(buttons)) byId(id).addEventListener("click", action);
  byId("step").addEventListener("input", () => showStep(Number(byId("step").value)));
  byId("fit").addEventListener("change", () => showStep(state.step));
  byId("align").addEventListener("change", () => { byId("step").max = numSteps() - 1; showStep(state.step); });
  return listMethods();
}

window.ready = Promise.resolve(initInspector());
