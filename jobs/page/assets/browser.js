"use strict";
// The summary, the tables and the document browser. Texts reach the page by textContent alone.
const byId = (id) => document.getElementById(id);
function make(tag, attributes = {}, ...inside) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...inside.filter((part) => part !== null && part !== undefined));
  return node;
}
const { figures, words } = report;
const { strings, documents } = report.browser;
const count = (value) => value.toLocaleString("en-US");
const short = (value, digits = 3) => value === null || value === undefined ? "–" : value === 0 ? "0"
  : Math.abs(value) < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(digits)));
const fixed = (value) => value === null || value === undefined ? "–" : value.toFixed(4); // columns of like figures
const small = (value) => value === null || value === undefined ? "–" : value === 0 ? "0" : value.toExponential(2);
const percent = (value) => value === null || value === undefined ? "–" : `${(value * 100).toFixed(2)} %`;
const size = (bytes) => bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;

// ---- characters that must not act: white space gets a sign, controls and direction marks their names
const SIGNS = { " ": "·", "\n": "⏎", "\r": "␍", "\t": "⇥" };
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/;
const named = (char) => SIGNS[char] || (HIDDEN.test(char) ? `⟨${char.codePointAt(0).toString(16)}⟩` : char);
const visible = (text) => Array.from(text, named).join("");
const tokenName = (text) => visible(text).replaceAll("·", "␣");  // where a token stands alone
const excerpt = (text) => Array.from(text, (char) => /\s/.test(char) ? " " : named(char)).join("");
function signed(text) {  // text nodes, white space pale
  return text.split(/([ \n\r\t]+)/).filter(Boolean)
    .map((part) => /^\s/.test(part) ? make("span", { class: "sign" }, visible(part)) : visible(part));
}

// ---- summary
function summary() {
  byId("title").textContent = figures.out.split("/").filter(Boolean).pop() || figures.out;
  const state = figures.finished ? "finished" : `not finished: ${count(figures.sealed)} of ${count(figures.units)} units are ready`;
  byId("subtitle").textContent = `Run ${figures.fingerprint.slice(0, 12)} by targetsmith ${figures.engine_version}, ${state}.`
    + (figures.out === byId("title").textContent ? "" : ` ${figures.out}`);
  document.title = `${byId("title").textContent} · Targetsmith report`;
  const disk = Object.values(figures.products).reduce((sum, one) => sum + one.disk_bytes, 0);
  const tiles = [
    ["documents", count(figures.documents)], ["in quarantine", count(figures.quarantined)], ["text", size(figures.text_bytes)],
    ["teacher tokens", count(figures.teacher_tokens)], ["evaluations a token", short(figures.evaluations_per_token)], ["on disk", size(disk)],
  ];
  if (figures.expected_tv !== null) tiles.push(["expected total variation", short(figures.expected_tv)]);
  for (const [name, value] of tiles) byId("tiles").append(make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  const found = figures.differences.filter((one) => one.finding);
  for (const one of found) {
    byId("findings").append(make("p", { class: "note finding" },
      make("b", {}, "Finding: "), `the same text costs ${short(one.bits_per_byte, 4)} bits a byte by ${one.product} and `
      + `${short(one.against_bits_per_byte, 4)} by ${one.against}, over ${count(one.documents)} documents. Look at the documents that differ most: `
      + one.largest.slice(0, 3).map(([, id]) => excerpt(id)).join(", ")));
  }
  if (!found.length && figures.differences.length) {
    const most = figures.differences.reduce((a, b) => Math.abs(b.difference_bits_per_byte) > Math.abs(a.difference_bits_per_byte) ? b : a);
    if (most.difference_bits_per_byte !== null) byId("findings").append(make("p", { class: "note" },
      `No product is far from another in what the same text costs: at most ${percent(Math.abs(most.difference_bits_per_byte) / most.against_bits_per_byte)} `
      + `(${Math.abs(most.difference_bits_per_byte).toFixed(4)} bits a byte, ${most.product} beside ${most.against}, `
      + `${count(most.documents)} documents${most.left_out ? `, ${count(most.left_out)} left out` : ""}).`));
  }
  const table = byId("products");
  const heads = ["product", "regime", "vocabulary", "scored positions", "stored mass", "width", "non-canonical", "bits / byte", "tokens / byte", "top-1 is true", "on disk"];
  table.append(make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))));
  const body = table.appendChild(make("tbody"));
  for (const [name, one] of Object.entries(figures.products)) {
    const cost = one.cost || {};
    const dot = make("span", { class: "dot", "data-product-dot": name });
    const cells = [one.facts.regime + (one.facts.codec === "topk" ? "" : `, ${one.facts.codec}`), count(one.facts.vocab_size), count(one.scored),
      one.mean_stored_mass === null ? "–" : one.mean_stored_mass.toFixed(5), small(one.mean_width), small(one.mean_noncanonical_mass),
      fixed(cost.bits_per_byte), fixed(cost.tokens_per_byte), percent(one.agreement), size(one.disk_bytes)];
    body.append(make("tr", {}, make("td", {}, dot, name), ...cells.map((cell) => make("td", {}, cell))));
  }
  byId("width-words").textContent = words.width;
  byId("read-words").textContent = figures.sampled
    ? `Distributions, costs and places are of ${count(figures.read_units)} of ${count(figures.sealed)} units, drawn by seed ${figures.seed}. Sizes and means of the table are of all.`
    : "Of all that is published.";
  byId("foot").textContent = `Made from ${figures.out} by targetsmith report. This file needs no network and sends nothing. How each figure is defined: docs/operations.md, "Looking at an output".`;
}

// ---- worst positions
const kinds = { widest: "widest", most_surprising: "most surprising" };
let kind = "widest";
function choices(holder, options, chosen, change) {
  holder.replaceChildren(...Object.entries(options).map(([value, name]) => {
    const button = make("button", { type: "button", "data-value": value, "aria-pressed": String(value === chosen) }, name);
    button.addEventListener("click", () => change(value));
    return button;
  }));
}
function places() {
  const select = byId("place-product");
  const known = Object.entries(figures.products).filter(([, one]) => one.widest.length || one.most_surprising.length);
  byId("places").hidden = !known.length;
  if (!known.length) return;
  if (!select.childElementCount) {
    select.append(...known.map(([name]) => make("option", { value: name }, name)));
    select.addEventListener("change", places);
  }
  const one = figures.products[select.value];
  if (!one[kind].length) kind = one.widest.length ? "widest" : "most_surprising";
  choices(byId("place-kind"), Object.fromEntries(Object.entries(kinds).filter(([key]) => one[key].length)), kind, (value) => { kind = value; places(); });
  const rows = one[kind].map((place) => {
    const inside = documents.findIndex((doc) => doc.row === place.doc_row);
    const snippet = make("td", { class: "snippet" }, make("div", {}, make("span", {}, make("bdi", {}, visible(place.before))),
      make("mark", {}, tokenName(place.token)), make("span", {}, make("bdi", {}, visible(place.after)))));
    const name = inside < 0 ? excerpt(place.doc_id) : make("button", { type: "button", class: "open" }, excerpt(place.doc_id));
    const row = make("tr", { class: inside < 0 ? null : "linked" }, make("td", {}, name), make("td", { "data-name": "position" }, count(place.position)),
      make("td", { "data-name": "width" }, short(place.width)),
      make("td", { "data-name": "bits" }, place.surprise_bits === null ? "∞" : place.surprise_bits.toFixed(1)),
      snippet, make("td", { class: "left name", "data-name": "likeliest" }, tokenName(place.likeliest)));
    if (inside >= 0) row.addEventListener("click", () => {
      show(inside, { product: select.value, position: place.position, colour: kind === "widest" ? "w" : "b" });
      byId("documents").scrollIntoView();
    });
    return row;
  });
  const heads = [["document"], ["position"], ["width"], ["bits"], ["text before, the token, text behind", "middle"], ["likeliest", "left"]];
  byId("place-table").replaceChildren(make("thead", {}, make("tr", {}, ...heads.map(([head, style]) => make("th", { scope: "col", class: style }, head)))), make("tbody", {}, ...rows));
}

// ---- documents
const WIDTHS = [1e-4, 1e-3, 1e-2, 0.1, 0.4], BITS = [0.5, 2, 4, 7, 10];
const legends = { w: ["≤1e-4", "1e-4", ".001", ".01", ".1", ".4"], b: ["<½ bit", "½", "2", "4", "7", "10"] };
const FLAGS = [[1, "exact"], [2, "bounded"], [4, "budget spent"], [8, "given"], [16, "end"], [32, "no mass"], [64, "context"], [128, "read anew"]];
const state = { document: 0, product: null, colour: "w", token: -1, pinned: false, query: "" };
const teacherOf = (doc) => state.product === "teacher" ? null : doc.products.teacher || null;
const level = (value, edges) => value === null ? 5 : edges.filter((edge) => value > edge).length;

// Where characters end, in bytes: a token is shown with the characters whose last byte it has.
function characters(text) {
  const ends = [];
  let bytes = 0;
  for (const char of text) {
    const code = char.codePointAt(0);
    bytes += code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    ends.push([bytes, char]);
  }
  return ends;
}
function pieces(tokens, ends) {  // [{i, s, e, text}] of tokens with bytes, and of end tokens
  const found = [];
  let at = 0;
  for (let i = 0; i < tokens.s.length; i++) {
    if (tokens.e[i] > tokens.s[i]) {
      while (at < ends.length && ends[at][0] <= tokens.s[i]) at++;
      let text = "", next = at;
      while (next < ends.length && ends[next][0] <= tokens.e[i]) text += ends[next++][1];
      found.push({ i, s: tokens.s[i], e: tokens.e[i], text });
    } else if (tokens.f[i] & 16) found.push({ i, s: tokens.s[i], e: tokens.e[i], text: null });
  }
  return found;
}
function tokenNode(tokens, piece, which, found) {
  const name = strings[tokens.t[piece.i]];
  const node = make("span", { class: "tok", "data-i": piece.i, "data-which": which });
  if (piece.text === null) node.textContent = "∎";
  else if (piece.text === "") node.textContent = "∙";  // bytes inside a character
  else node.append(...signed(piece.text));
  if (found.some(([from, to]) => piece.s < to && piece.e > from)) node.classList.add("found");
  if (which === "student") {
    const scored = tokens.p[piece.i].length > 0 || !(tokens.f[piece.i] & (8 | 32 | 64));
    const step = scored ? (state.colour === "w" ? level(tokens.w[piece.i], WIDTHS) : level(tokens.b[piece.i], BITS)) : "off";
    node.classList.add(step === "off" ? "off" : `c${step}`);
    node.id = `t${piece.i}`;
    node.setAttribute("role", "option");
    node.setAttribute("aria-label", visible(name));
    node.setAttribute("aria-selected", "false");
  }
  return node;
}
function matches(text, ends) {  // byte ranges of what is searched for; none where small letters have another length
  const low = text.toLowerCase(), found = [];
  if (!state.query || low.length !== text.length) return found;
  const byteAt = new Map([[0, 0]]);
  let at = 0;
  for (const [end, char] of ends) byteAt.set(at += char.length, end);
  for (let hit = low.indexOf(state.query); hit >= 0; hit = low.indexOf(state.query, hit + 1)) {
    found.push([byteAt.get(hit) ?? 0, byteAt.get(hit + state.query.length) ?? 0]);
  }
  return found;
}
function drawText() {
  const doc = documents[state.document];
  const ours = doc.products[state.product], theirs = teacherOf(doc);
  const ends = characters(doc.text);
  const mine = pieces(ours, ends), other = theirs ? pieces(theirs, ends) : [];
  const charEnds = new Set([0, ...ends.map(([end]) => end)]);
  const cuts = (list) => new Set(list.map((piece) => piece.e));
  const b = cuts(other);
  const found = matches(doc.text, ends);
  const out = [];
  let line = make("div", { class: "line" }), m = 0, o = 0, start = 0;
  const close = () => { if (line.childElementCount) out.push(line); line = make("div", { class: "line" }); };
  while (m < mine.length || o < other.length) {
    // the next byte at which both have a cut between two characters
    const under = make("div", { class: "under" }), over = make("div", { class: "over" });
    let stop = null, text = "", isEnd = false;
    const first = mine[m] || other[o];
    if (first.text === null && (!other[o] || other[o].text === null || other[o].s >= first.s)) { stop = first.e; isEnd = true; }
    else for (let k = m; k < mine.length; k++) {
      const cut = mine[k].e;
      if (cut > start && charEnds.has(cut) && (!theirs || b.has(cut))) { stop = cut; break; }
    }
    if (stop === null) stop = Infinity;
    const belongs = (piece) => piece && (piece.text === null ? isEnd && piece.s <= stop || stop === Infinity : piece.e <= stop && !isEnd);
    const before = m + o;
    while (belongs(other[o])) over.append(tokenNode(theirs, other[o++], "teacher", found));
    while (belongs(mine[m])) { text += mine[m].text || ""; under.append(tokenNode(ours, mine[m++], "student", found)); }
    if (m + o === before) {  // nothing fits: take what is next, so that the walk ends
      if (other[o] && (!mine[m] || other[o].e <= mine[m].e)) over.append(tokenNode(theirs, other[o++], "teacher", found));
      else { text += mine[m].text || ""; under.append(tokenNode(ours, mine[m++], "student", found)); }
    }
    if (Number.isFinite(stop)) start = stop;
    line.append(make("span", { class: "seg" }, theirs ? over : null, under));
    if (text.includes("\n")) close();
  }
  close();
  byId("text").dataset.colour = state.colour;
  byId("text").replaceChildren(...out);
  const end = doc.from + new TextEncoder().encode(doc.text).length;
  const part = doc.from > 0 || end < doc.bytes ? `bytes ${count(doc.from)} to ${count(end)} of ${count(doc.bytes)}` : `${count(doc.bytes)} bytes`;
  byId("doc-title").replaceChildren(excerpt(doc.id), make("small", {}, `document ${count(doc.row)}, ${part}; mean width ${short(ours.d[0])}, ${short(ours.d[1])} bits a token`));
  byId("legend").dataset.colour = state.colour;
  byId("legend").replaceChildren(...legends[state.colour].map((name, i) => {
    const box = make("i", {}, name);
    box.style.background = i ? `var(--c${i})` : "transparent";
    if (i === 5) box.style.color = "var(--on5)";
    return box;
  }));
  choices(byId("colour"), { w: "width", b: "surprise" }, state.colour, setColour);
}
function tops(tokens, i, colour) {
  const rows = [];
  for (let k = 0; k < tokens.p[i].length; k += 2) {
    const [token, p] = [tokens.p[i][k], tokens.p[i][k + 1] / 1e6];
    const fill = make("div", { class: "fill" }, make("span", {}, tokenName(strings[token])));
    fill.style.setProperty("--p", `${p * 100}%`);
    fill.style.setProperty("--of", `var(--${colour})`);
    rows.push(make("div", { class: `top-row${token === tokens.t[i] ? " true" : ""}` }, fill, make("em", {}, p > 0.9999 && p < 1 ? ">.9999" : p >= 1e-3 ? p.toFixed(4) : p > 0 ? p.toExponential(0) : "<1e-6")));
  }
  return make("div", { class: "tops" }, ...rows);
}
function drawDetail() {
  const panel = byId("detail");
  const doc = documents[state.document], i = state.token;
  panel.classList.toggle("empty", i < 0);
  if (!doc || i < 0) {
    panel.replaceChildren(make("p", { class: "hint" }, "Point at a token, tap it, or use the arrow keys: its likeliest tokens are shown here, by the student and by the teacher."));
    return;
  }
  const ours = doc.products[state.product], theirs = teacherOf(doc);
  const unscored = !ours.p[i].length && (ours.f[i] & (8 | 32 | 64));
  const close = make("button", { type: "button", class: "close", "aria-label": "Close" }, "✕");
  close.addEventListener("click", () => select(-1));
  const facts = [["position", count(ours.n[i])], ["bytes", `${count(doc.from + ours.s[i])}–${count(doc.from + ours.e[i])}`]];
  if (!unscored) facts.push(["width", short(ours.w[i])], ["surprise", ours.b[i] === null ? "∞" : `${ours.b[i].toFixed(2)} bits`]);
  facts.push(["flags", FLAGS.filter(([bit]) => ours.f[i] & bit).map(([, name]) => name).join(", ") || "–"]);
  const mine = make("div", {}, make("h4", { class: "of-student" }, state.product, make("span", {}, unscored ? "not scored" : "likeliest here")));
  const parts = [make("div", { class: "facts" }, close, make("div", { class: "name" }, tokenName(strings[ours.t[i]])),
    make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]))), mine];
  if (ours.p[i].length) mine.append(tops(ours, i, "student"));
  if (theirs) {
    const beside = besides(ours, i, theirs);
    const other = make("div", {}, make("h4", { class: "of-teacher" }, "teacher", make("span", {}, beside < 0 ? "" : "likeliest here")));
    if (beside < 0) other.append(make("p", { class: "hint" }, "This place is inside a token of the teacher."));
    else if (theirs.p[beside].length) other.append(tops(theirs, beside, "teacher"));
    else other.append(make("p", { class: "hint" }, "Not scored."));
    parts.push(other);
  }
  panel.replaceChildren(...parts);
}
const besides = (ours, i, theirs) => theirs.s.findIndex((s, j) => s === ours.s[i] && (theirs.f[j] & 16) === (ours.f[i] & 16) && (theirs.e[j] > s || theirs.f[j] & 16));
function select(i, scroll) {
  const old = byId("text").querySelector(".tok.on");
  if (old) { old.classList.remove("on"); old.setAttribute("aria-selected", "false"); }
  for (const node of byId("text").querySelectorAll(".beside")) node.classList.remove("beside");
  state.token = i;
  let keep = null;
  const node = i < 0 ? null : byId(`t${i}`);
  if (node) {
    node.classList.add("on");
    node.setAttribute("aria-selected", "true");
    byId("text").setAttribute("aria-activedescendant", node.id);
    const doc = documents[state.document], ours = doc.products[state.product], theirs = teacherOf(doc);
    if (theirs) for (const other of byId("text").querySelectorAll('[data-which="teacher"]')) {
      const j = Number(other.dataset.i);
      if (theirs.s[j] < Math.max(ours.e[i], ours.s[i] + 1) && theirs.e[j] > ours.s[i]) other.classList.add("beside");
    }
    if (scroll) node.scrollIntoView({ block: "nearest" });
    keep = node;
  } else byId("text").removeAttribute("aria-activedescendant");
  drawDetail();
  if (keep && getComputedStyle(byId("detail")).position === "fixed") {  // a sheet at the bottom: not over the token
    const over = keep.getBoundingClientRect().bottom + 12 - byId("detail").getBoundingClientRect().top;
    if (over > 0) scrollBy({ top: over, behavior: "smooth" });
  }
}
function show(index, { product, position, colour } = {}) {
  state.document = index;
  if (product && documents[index].products[product]) state.product = product;
  if (colour) state.colour = colour;
  byId("product").value = state.product;
  state.pinned = false;
  drawText();
  for (const item of byId("list").children) item.setAttribute("aria-selected", String(Number(item.dataset.i) === index));
  const item = byId("list").querySelector('[aria-selected="true"]');
  if (item) byId("list").scrollTop = Math.max(0, item.offsetTop - byId("list").offsetTop - 60);
  const at = position === undefined ? -1 : documents[index].products[state.product].n.indexOf(position);
  state.pinned = at >= 0;
  select(at);
}
function setColour(value) { state.colour = value; const token = state.token; drawText(); select(token); }
function drawList() {
  const query = state.query;
  const order = byId("order").value;
  const shown = documents.map((doc, i) => [doc, i]).filter(([doc]) => !query || doc.text.toLowerCase().includes(query) || doc.id.toLowerCase().includes(query));
  if (order !== "row") {
    const at = order === "w" ? 0 : 1;
    shown.sort(([a], [b]) => b.products[state.product].d[at] - a.products[state.product].d[at]);
  }
  byId("list").replaceChildren(...shown.map(([doc, i]) => {
    const hit = query ? doc.text.toLowerCase().indexOf(query) : -1;
    const from = Math.max(0, hit - 30);
    const mean = doc.products[state.product].d[order === "b" ? 1 : 0];
    const item = make("li", { role: "option", "data-i": i, id: `d${i}`, "aria-selected": String(i === state.document) },
      make("b", {}, make("span", {}, excerpt(doc.id)), make("i", {}, order === "b" ? `${short(mean)} bits` : `width ${short(mean)}`)),
      make("p", {}, excerpt(doc.text.slice(from, from + 110))));
    item.addEventListener("click", () => show(i));
    return item;
  }));
  byId("none").hidden = shown.length > 0;
  return shown;
}
function step(by) {
  const items = Array.from(byId("list").children, (item) => Number(item.dataset.i));
  if (!items.length) return;
  const at = items.indexOf(state.document);
  show(items[Math.min(items.length - 1, Math.max(0, at + by))]);
}
function move(by) {
  const nodes = Array.from(byId("text").querySelectorAll('[data-which="student"]'), (node) => Number(node.dataset.i));
  const at = nodes.indexOf(state.token);
  state.pinned = true;
  select(nodes[Math.min(nodes.length - 1, Math.max(0, at < 0 ? 0 : at + by))], true);
}
function ofEvent(event) {
  const node = event.target.closest && event.target.closest(".tok");
  if (!node) return -1;
  const i = Number(node.dataset.i);
  if (node.dataset.which === "student") return i;
  const doc = documents[state.document], theirs = doc.products.teacher, ours = doc.products[state.product];
  const same = ours.s.findIndex((s, j) => s === theirs.s[i] && ours.e[j] > s);
  return same >= 0 ? same : ours.s.findIndex((s, j) => s <= theirs.s[i] && ours.e[j] > theirs.s[i]);
}
function browser() {
  if (!documents.length) {
    byId("document-words").textContent = words.none;
    document.querySelector(".browser").hidden = true;
    return;
  }
  byId("document-words").textContent = words.documents;
  const names = Object.keys(documents[0].products);
  state.product = names.find((name) => name.startsWith("student/")) || names[0];
  byId("product").append(...names.map((name) => make("option", { value: name }, name)));
  byId("product").addEventListener("change", () => { state.product = byId("product").value; drawList(); show(state.document); });
  byId("order").addEventListener("change", drawList);
  byId("search").addEventListener("input", () => {
    state.query = byId("search").value.trim().toLowerCase();
    const shown = drawList();
    if (shown.length && !shown.some(([, i]) => i === state.document)) show(shown[0][1]);
    else { const token = state.token; drawText(); select(token); }
  });
  byId("text").addEventListener("pointerover", (event) => { if (!state.pinned && event.pointerType === "mouse") { const i = ofEvent(event); if (i >= 0) select(i); } });
  byId("text").addEventListener("click", (event) => {
    const i = ofEvent(event);
    const again = state.pinned && i === state.token;
    state.pinned = i >= 0 && !again;
    select(again ? -1 : i);
  });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "Escape") {
      if (typing) event.target.blur();
      state.pinned = false;
      select(-1);
      return;
    }
    if (typing) return;
    const inside = byId("documents").contains(event.target) || state.token >= 0;
    const acts = {
      "/": () => byId("search").focus(), j: () => step(1), k: () => step(-1), c: () => setColour(state.colour === "w" ? "b" : "w"),
      ...(inside ? { ArrowRight: () => move(1), ArrowLeft: () => move(-1) } : {}),
      ...(event.target === byId("list") ? { ArrowDown: () => step(1), ArrowUp: () => step(-1) } : {}),
    };
    if (acts[event.key]) { event.preventDefault(); acts[event.key](); }
  });
  drawList();
  show(0);
}

// ---- quarantine
function quarantine() {
  const holder = byId("refused");
  if (!figures.quarantine.length) { holder.append(make("p", { class: "words" }, "No document is in quarantine.")); return; }
  for (const one of figures.quarantine) {
    const samples = one.samples.map((sample) => make("li", {}, make("b", {}, excerpt(sample.doc_id)), ` ${excerpt(sample.place)} ${excerpt(sample.detail)}`));
    holder.append(make("details", { open: figures.quarantine.length < 4 }, make("summary", {}, make("b", {}, `${count(one.count)} × ${one.reason}`), make("span", {}, one.meaning)),
      make("p", {}, `Do: ${one.remedy}.`), make("ul", {}, ...samples)));
  }
}

summary();
places();
browser();
drawDetail();
quarantine();
setTheme(theme());
