// Draws one step's tree: depth to the right, siblings below each other in the order in which they were drawn.
const ROW = 22, GAP = 34, PAD = 6, CHARACTER = 7.3, PROB = 34;
const VERIFIED = 1, ACCEPTED = 2, BONUS = 4;

const visible = (text) => text === "" ? "∅" : text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "·");
const short = (text) => visible(text).length > 14 ? visible(text).slice(0, 13) + "…" : visible(text);

// Nodes of a step as objects with depth, children, path probability and place; parents precede children.
function readStep(trace, step) {
  const nodes = step.p.map((parent, index) => ({
    index, parent, text: trace.texts[step.t[index]], children: [], flags: step.f[index],
    probability: step.l[index] === null ? null : Math.exp(step.l[index] / 100),
  }));
  for (const node of nodes) {
    const above = nodes[node.parent];
    node.depth = above ? above.depth + 1 : 0;
    node.path = above ? above.path * (node.probability ?? 1) : 1;
    node.rank = above ? above.children.length : 0;
    if (above) above.children.push(node);
  }
  return nodes;
}

const kind = (node) => node.flags & BONUS ? "bonus" : node.flags & ACCEPTED ? "accepted" : node.flags & VERIFIED ? "verified" : "drafted";
const mark = (node) => node.flags & BONUS ? "★ " : node.flags & ACCEPTED && node.parent >= 0 ? "✓ " : "";

// x by depth, so that columns are as wide as their widest token; y by leaf, a parent level with its first child. No recursion: a chain may be 400 deep.
function place(nodes) {
  const widths = [];
  for (const node of nodes) {
    node.label = mark(node) + short(node.text);
    node.width = node.label.length * CHARACTER + 2 * PAD;
    widths[node.depth] = Math.max(widths[node.depth] || 0, node.width);
  }
  const lefts = [4];
  for (const width of widths) lefts.push(lefts.at(-1) + width + GAP + PROB);
  let row = 0;
  const waiting = nodes.length ? [nodes[0]] : [];
  while (waiting.length) {
    const node = waiting.pop();
    node.x = lefts[node.depth];
    if (!node.children.length) node.y = (row++ + 0.5) * (ROW + 4);
    waiting.push(...[...node.children].reverse());
  }
  for (const node of [...nodes].reverse()) {
    if (node.children.length) node.y = node.children[0].y;
  }
  return { width: lefts.at(-1), height: row * (ROW + 4) + 8 };
}

function describe(node) {
  if (node.flags & BONUS) return `bonus ${visible(node.text)}: the target's own next token`;
  if (node.parent < 0) return `root ${visible(node.text)}: the last committed token`;
  const verdict = { accepted: "accepted", verified: "verified and rejected", drafted: "drafted, not verified" }[kind(node)];
  return `${visible(node.text)}  depth ${node.depth}, sibling ${node.rank + 1}, probability ${node.probability.toFixed(3)}, `
    + `path probability ${node.path.toPrecision(3)}: ${verdict}`;
}

function edge(node, above) {
  const label = above.probability === null ? 0 : PROB; // the path probability stands between node and edge
  const [x1, y1, x2] = [above.x + above.width + label, above.y, node.x], bend = Math.min(GAP, (x2 - x1) / 2);
  return drawing("path", { class: kind(node), d: `M${x1} ${y1} C${x1 + bend} ${y1} ${x2 - bend} ${node.y} ${x2} ${node.y}` });
}

function drawNode(node, choose) {
  const group = drawing("g", { class: `node ${kind(node)}`, "data-node": node.index, transform: `translate(${node.x} ${node.y})` },
    drawing("title", {}, describe(node)),
    drawing("rect", { y: -ROW / 2, width: node.width, height: ROW, rx: 5 }),
    drawing("text", { x: PAD }, node.label));
  if (node.probability !== null) group.append(drawing("text", { class: "prob", x: node.width + 4 }, node.path.toFixed(node.path < 0.0995 ? 3 : 2)));
  group.addEventListener("click", () => choose(node.index));
  return group;
}

function drawTree(nodes, choose) {
  const size = place(nodes);
  const edges = nodes.filter((node) => node.parent >= 0).map((node) => edge(node, nodes[node.parent]));
  const summary = `token tree: ${nodes.filter((n) => !(n.flags & BONUS)).length} drafted nodes, ${nodes.filter((n) => n.flags & VERIFIED).length} verified`;
  return drawing("svg", { class: "tree", role: "img", "aria-label": summary, width: size.width, height: size.height,
    viewBox: `0 0 ${size.width} ${size.height}` }, ...edges, ...nodes.map((node) => drawNode(node, choose)));
}

// The node that an arrow key leads to.
function neighbour(nodes, index, key) {
  const node = nodes[index], above = nodes[node.parent];
  if (key === "ArrowLeft") return above ? above.index : index;
  if (key === "ArrowRight") return node.children.length ? node.children[0].index : index;
  const level = nodes.filter((other) => other.depth === node.depth).sort((a, b) => a.y - b.y);
  const next = level[level.indexOf(node) + (key === "ArrowDown" ? 1 : -1)];
  return next ? next.index : index;
}
