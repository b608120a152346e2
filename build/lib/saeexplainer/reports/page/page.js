"use strict";
// The table of features and the view of one. Everything shown goes through textContent: what a model wrote is text here,
// whatever it looks like. The index is read when the page opens, a block of details when one of its features is opened.

const DASH = "–";
const OVERSCAN = 12; // rows drawn above and below what is seen
const BLOCKS_KEPT = 8;
const LEAD = 16; // characters before a hit that a narrow cell has room for

const $ = (id) => document.getElementById(id);
const numbers = new Intl.NumberFormat("en-US");
const natural = new Intl.Collator("en", { numeric: true });
const fixed = (value, digits) => (value === null || value === undefined ? DASH : value.toFixed(digits));
const percent = (value) => (value === null || value === undefined ? DASH : String(Math.round(100 * value)));
const signed = (value) => (value === null ? DASH : (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(Math.round(100 * value)));

/** An element with properties and children; a string child is text. */
function make(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name in element && name !== "role") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

/** What a model or a text said: isolated, in its own direction. */
const said = (text, className) => make("bdi", { className: className || "", dir: "auto" }, text);

/** The text, with what the search asks for marked: a list of strings and elements. */
function marked(text) {
  if (!view.terms.length) return [text];
  const longest = [...view.terms].sort((a, b) => b.length - a.length);
  const pattern = longest.map((term) => term.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&")).join("|");
  const hit = (part, i) => (i % 2 ? make("mark", { className: "hit" }, part) : part);
  return text.split(new RegExp(`(${pattern})`, "giu")).map(hit).filter(Boolean);
}

/** The same for a cell that may be too narrow for a long text: it then begins shortly before the first hit. */
function excerpt(text) {
  const lower = text.toLowerCase();
  const first = Math.min(...view.terms.map((term) => lower.indexOf(term)).filter((at) => at >= 0));
  if (!(first > LEAD) || first === Infinity) return marked(text);
  return ["… ", ...marked(text.slice(text.lastIndexOf(" ", first - LEAD / 2) + 1))];
}

/** The value that `report_page.deflated` packed into a script element. */
async function inflated(id) {
  const packed = $(id).textContent.trim();
  const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(packed) : Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

// ---- The index

let data; // index, as the page was written
let size = 0; // features
let haystacks = []; // a lower-case string a feature
const position = new Map(); // id to feature number
const ids = new Map(); // id as the table shows it, without the subject, to the whole one

async function readIndex() {
  data = await inflated("index");
  $("index").remove();
  data.features.id.forEach((id, at) => {
    position.set(id, at);
    ids.set(shortId(id), id);
  });
  size = data.features.id.length;
  haystacks = data.features.id.map(haystack);
}

function haystack(id, at) {
  return [id, ...data.features.tokens[at], ...sayings(at).map(([, text]) => text)].join("\n").toLowerCase();
}

/** All that is said of a feature: who says it, and what. */
function sayings(at) {
  return [
    ...data.evaluations.map((name) => [name, measured(name, at)?.[0]]),
    ...data.rounds.map((name) => [`best of ${name}`, data.outcomes[name]?.[at]?.[1]]),
    ["label", data.features.label[at]],
    ["truth", data.features.truth[at]],
  ].filter(([, text]) => text);
}

/** Where a search term is that no cell of the row shows; null where all are seen. */
function elsewhere(at, shown) {
  const seen = [data.features.id[at], shown, ...data.features.tokens[at]].join("\n").toLowerCase();
  const terms = view.terms.filter((term) => !seen.includes(term));
  return sayings(at).find(([, text]) => terms.some((term) => text.toLowerCase().includes(term))) ?? null;
}

const measured = (name, at) => data.measured[name]?.[at] ?? null;
const accuracy = (name, at) => measured(name, at)?.[1] ?? null;
const verdictOf = (at) => measured(view.shown, at)?.[2] ?? null;
const truthOf = (at) => measured(view.shown, at)?.[3] ?? null;
const f1 = (at) => measured(view.shown, at)?.[4] ?? null;

/** What the last round that saw a feature made of it: best reward, best explanation, outcome. */
function lastOutcome(at) {
  for (let i = data.rounds.length - 1; i >= 0; i--) {
    const found = data.outcomes[data.rounds[i]]?.[at];
    if (found) return found;
  }
  return null;
}

function change(at) {
  const now = accuracy(view.shown, at), before = accuracy(view.against, at);
  return now === null || before === null ? null : now - before;
}

/** The explanation of a feature and where it comes from; features without an evaluation have candidates or a label. */
function explanationOf(at) {
  const row = measured(view.shown, at);
  if (row) return ["", row[0]];
  const best = lastOutcome(at);
  return best ? ["best candidate", best[1]] : ["label", data.features.label[at] || ""];
}

// ---- What is shown

const view = { shown: null, against: null, sort: null, down: false, terms: [], rows: [], open: null };
const COLUMNS = [
  { key: "id", title: "Feature", of: (at) => at },
  { key: "explanation", title: "Explanation", of: (at) => explanationOf(at)[1] || null },
  { key: "tokens", title: "Fires on", of: (at) => data.features.tokens[at][0] || null },
  { key: "accuracy", title: "Accuracy %", number: true, of: (at) => accuracy(view.shown, at) },
  { key: "change", title: "Change", number: true, of: change },
  { key: "verdict", title: "Verdict", of: (at) => rankOf(verdictOf(at)) },
  { key: "f1", title: "Truth F1", number: true, of: f1 },
  { key: "reward", title: "Reward", number: true, of: (at) => lastOutcome(at)?.[0] ?? null },
  { key: "density", title: "Density %", number: true, of: (at) => data.features.density[at] },
];
const rankOf = (verdict) => (verdict === null ? null : data.verdicts.indexOf(verdict));

const FILTERS = {
  split: (at, wanted) => data.features.split[at] === wanted,
  verdict: (at, wanted) => verdictOf(at) === wanted,
  truth: (at, wanted) => truthOf(at) === wanted,
  change: (at, wanted) => {
    const by = change(at);
    return by !== null && (wanted === "better" ? by > 0 : wanted === "worse" ? by < 0 : by === 0);
  },
  outcome: (at, wanted) => data.rounds.some((name) => outcomeMatches(data.outcomes[name]?.[at]?.[2], wanted)),
};
const outcomeMatches = (found, wanted) =>
  found !== undefined && (wanted === "pairs" ? /^[1-9]\d* pair/.test(found) : wanted === "quarantine" ? found.endsWith("quarantine") : found === wanted);

/** Filter and sort again, and draw from the top. */
function refresh() {
  view.shown = $("shown").value || null;
  view.against = $("against").value || null;
  view.terms = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const active = Object.entries(FILTERS).map(([name, test]) => [test, $(name).value]).filter(([, wanted]) => wanted);
  const rows = [];
  for (let at = 0; at < size; at++) {
    if (view.terms.every((term) => haystacks[at].includes(term)) && active.every(([test, wanted]) => test(at, wanted))) rows.push(at);
  }
  view.rows = sorted(rows);
  $("count").textContent = rows.length === size ? `${numbers.format(size)} features` : `${numbers.format(rows.length)} of ${numbers.format(size)} features`;
  $("empty").hidden = rows.length > 0;
  $("table").setAttribute("aria-rowcount", rows.length + 1);
  $("list").scrollTop = 0;
  drawHead();
  draw();
}

/** Unknown values come last in either direction; equal ones keep the order of the features. */
function sorted(rows) {
  const column = COLUMNS.find((each) => each.key === view.sort);
  if (!column) return rows;
  const keys = new Map(rows.map((at) => [at, column.of(at)]));
  const sign = view.down ? -1 : 1;
  return rows.sort((a, b) => {
    const [x, y] = [keys.get(a), keys.get(b)];
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    return sign * (typeof x === "string" ? natural.compare(x, y) : x - y) || a - b;
  });
}

function sortBy(column) {
  const first = Boolean(column.number); // numbers: largest first
  if (view.sort !== column.key) [view.sort, view.down] = [column.key, first];
  else if (view.down === first) view.down = !first;
  else view.sort = null;
  refresh();
  $("head").querySelector(`.c-${column.key} button`).focus();
}

function drawHead() {
  $("head").replaceChildren(
    ...COLUMNS.map((column) => {
      const on = view.sort === column.key;
      const arrow = on ? (view.down ? " ↓" : " ↑") : "";
      const title = column.key === "change" && view.against ? `vs ${view.against}` : column.title;
      const cell = make("th", { scope: "col", className: `c-${column.key}${column.number ? " number" : ""}` },
        make("button", { type: "button", title: `Sort by ${title.toLowerCase()}`, onclick: () => sortBy(column) }, title + arrow));
      if (on) cell.setAttribute("aria-sort", view.down ? "descending" : "ascending");
      return cell;
    }),
  );
}

// ---- The rows that are seen

const rowHeight = () => parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--row"));

function draw() {
  const list = $("list"), height = rowHeight();
  const first = Math.max(0, Math.floor(list.scrollTop / height) - OVERSCAN);
  const last = Math.min(view.rows.length, Math.ceil((list.scrollTop + list.clientHeight) / height) + OVERSCAN);
  const focused = document.activeElement?.closest?.("#rows tr")?.dataset.id;
  const rows = [spacer(first * height)];
  for (let i = first; i < last; i++) rows.push(row(view.rows[i], i));
  rows.push(spacer((view.rows.length - last) * height));
  $("rows").replaceChildren(...rows);
  if (focused) rowOf(focused)?.querySelector("a").focus({ preventScroll: true });
}

function spacer(height) {
  const cell = make("td"); // in the first column: one that spans them all would keep hidden columns' room
  cell.style.height = `${height}px`;
  return make("tr", { className: "spacer", ariaHidden: "true" }, cell);
}

const rowOf = (id) => [...$("rows").children].find((each) => each.dataset.id === id);
const shortId = (id) => id.split("/").slice(-2).join("/");
const address = (id) => "#" + id.split("/").map(encodeURIComponent).join("/");

function row(at, place) {
  const id = data.features.id[at];
  const line = make("tr", { ariaSelected: String(view.open === id), ariaRowIndex: String(place + 2) }, ...CELLS.map((cell) => cell(at)));
  line.dataset.id = id;
  return line;
}

const cell = (key, ...children) => make("td", { className: `c-${key}` }, ...children);
const numeric = (key, ...children) => make("td", { className: `c-${key} number` }, ...children);

const CELLS = [
  (at) => {
    const id = data.features.id[at], split = data.features.split[at];
    return cell("id", make("a", { href: address(id), title: id }, ...marked(shortId(id))), make("span", { className: "tag" }, split));
  },
  (at) => {
    const [source, text] = explanationOf(at);
    const shown = text ? make("bdi", { dir: "auto" }, ...excerpt(text)) : make("span", { className: "unknown" }, DASH);
    const other = elsewhere(at, text);
    return cell("explanation", make("div", { title: source ? `${source}: ${text}` : text },
      source && text ? make("span", { className: "source" }, source) : "", shown,
      other ? make("div", { className: "elsewhere" }, `${other[0]}: `, make("bdi", { dir: "auto" }, ...excerpt(other[1]))) : ""));
  },
  (at) => {
    const tokens = data.features.tokens[at];
    return cell("tokens", make("span", { className: "dim" }, ...(tokens.length ? tokens.flatMap((token, i) => [i ? " · " : "", make("bdi", { dir: "auto" }, ...marked(token))]) : [DASH])));
  },
  (at) => {
    const value = accuracy(view.shown, at);
    return numeric("accuracy", value === null ? "" : bar(value), make("span", { className: "figure" }, percent(value)));
  },
  (at) => {
    const by = change(at);
    return numeric("change", make("span", { className: by > 0 ? "good" : by < 0 ? "bad" : "dim" }, signed(by)));
  },
  (at) => cell("verdict", verdictOf(at) === null ? make("span", { className: "unknown" }, DASH) : wordMark(verdictOf(at), "v")),
  (at) => {
    const known = truthOf(at);
    return numeric("f1", known === null ? "" : wordMark(known, "t", false), " ", fixed(f1(at), 2));
  },
  (at) => numeric("reward", fixed(lastOutcome(at)?.[0], 2)),
  (at) => numeric("density", make("span", { className: "dim" }, data.features.density[at] === null ? DASH : fixed(100 * data.features.density[at], 2))),
];

function bar(value) {
  const fill = make("i");
  fill.style.width = `${Math.min(100, 100 * value)}%`;
  return make("span", { className: "bar", ariaHidden: "true" }, fill);
}

/** A verdict with its symbol; the legend's words are its tooltip. */
function wordMark(name, kind, spelt = true) {
  const [symbol, meaning] = data.words[name];
  const words = spelt ? [" ", make("span", { className: "word" }, name)] : [];
  return make("span", { className: `${kind}-${name.replace(/\W+/g, "-")}`, title: `${name}: ${meaning}` }, symbol, ...words);
}

// ---- One feature

const blocks = new Map(); // number of a block to a promise of its details, least recently used first

function detailOf(at) {
  const number = Math.floor(at / data.block);
  const found = blocks.get(number) || inflated(`block-${number}`);
  blocks.delete(number);
  blocks.set(number, found);
  if (blocks.size > BLOCKS_KEPT) blocks.delete(blocks.keys().next().value);
  return found.then((details) => details[at % data.block]);
}

/** Bring the view in line with the address. */
async function follow() {
  const asked = decoded(location.hash.slice(1)), id = ids.get(asked) ?? asked;
  const at = position.get(id);
  const wanted = at !== undefined || (id.includes("/") && id) ? id : null; // other hashes are places on this page
  view.open = wanted;
  draw();
  $("browser").classList.toggle("open", wanted !== null);
  $("pane").hidden = wanted === null;
  if (wanted === null) return draw();
  const content = at === undefined ? unknownFeature(id) : feature(at, await detailOf(at));
  if (view.open !== wanted) return; // another one was asked for meanwhile
  $("pane").replaceChildren(...content);
  $("pane").scrollTop = 0;
  document.title = `${wanted} · SAEExplainer`;
  reveal(wanted);
}

function decoded(hash) {
  try {
    return decodeURIComponent(hash);
  } catch {
    return hash;
  }
}

/** Scroll the list to a feature, if it is among the rows. */
function reveal(id) {
  const place = view.rows.indexOf(position.get(id));
  const list = $("list"), height = rowHeight();
  if (place >= 0) {
    const top = place * height, room = list.clientHeight - 2 * height;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top > list.scrollTop + room) list.scrollTop = top - room;
  }
  draw();
}

const unknownFeature = (id) => [paneHead(id, ""), make("p", { className: "empty" }, "This report holds no such feature. It may be from another run.")];

function feature(at, detail) {
  return [
    paneHead(data.features.id[at], data.features.split[at]),
    facts(at, detail),
    ...contexts(detail),
    ...explanations(detail),
    ...data.rounds.flatMap((name) => round(name, detail.rounds[name])),
  ];
}

function paneHead(id, split) {
  const step = (by, label, sign) => make("button", { type: "button", ariaLabel: label, title: label, onclick: () => move(by) }, sign);
  return make("header", {},
    make("h3", {}, said(id), split ? make("span", { className: "tag" }, split) : ""),
    step(-1, "previous feature", "↑"), step(1, "next feature", "↓"),
    make("button", { type: "button", id: "close", ariaLabel: "close", title: "close (Esc)", onclick: close }, "✕"));
}

function facts(at, detail) {
  const { maximum, density, label } = data.features;
  const fact = (name, ...value) => make("div", {}, make("dt", {}, name), make("dd", {}, ...value));
  const truth = detail.truth.flatMap(([concept, score], i) => [i ? ", " : "", said(concept), ` ${fixed(score, 2)}`]);
  return make("dl", {},
    fact("maximum", fixed(maximum[at], 2)),
    fact("fires on", density[at] === null ? DASH : `${fixed(100 * density[at], 3)} % of tokens`),
    label[at] ? fact("open-loop label", said(label[at])) : "",
    detail.truth.length ? (detail.truth[0][1] >= data.clear ? fact("encodes (F1)", ...truth) : fact("encodes", "unclear; least bad concepts (F1): ", ...truth)) : "");
}

function explanations(detail) {
  const names = data.evaluations.filter((name) => detail.evaluations[name]);
  if (!names.length) return [];
  return [
    make("h4", {}, "Explanations, and the texts they led to"),
    make("p", { className: "legend" }, "The number before a text is its activation in units of the feature's maximum; bold from ", fixed(data.firing, 1), " on, where it counts as firing. A token is as bright as it fires."),
    ...names.map((name) => evaluation(name, detail.evaluations[name], name === view.shown)),
  ];
}

function evaluation(name, row, open) {
  const truth = row.truth === null ? [] : [" · ", wordMark(row.truth, "t", row.truth !== "unclear"), row.truth === "unclear" ? " truth unclear" : ""];
  const measures = [
    row.verdict && data.words[row.verdict][1],
    `mean activation ${fixed(row.mean, 2)}`,
    row.f1 === null ? "" : `F1 with the truth ${fixed(row.f1, 2)}`,
    row.sure === null ? "" : `token probability ${fixed(row.sure, 2)}`,
  ];
  return make("details", { open, className: "evaluation" },
    make("summary", {},
      make("span", { className: "who" }, name),
      row.explanation ? said(row.explanation, "said") : make("span", { className: "unknown" }, DASH),
      make("span", { className: "result" }, row.verdict ? wordMark(row.verdict, "v") : DASH, ` · ${percent(row.accuracy)} %`, ...truth)),
    make("div", { className: "body" },
      make("p", { className: "measures" }, measures.filter(Boolean).join(" · ")),
      make("div", {}, ...row.texts.map(([activation, segments]) => text(activation, segments)))));
}

function contexts(detail) {
  const shown = detail.contexts.map(({ activation, text: segments }) => text(activation, segments, 1));
  return [
    make("h4", {}, `Strongest contexts in the corpus`),
    shown.length ? make("div", { className: "contexts" }, ...shown) : make("p", { className: "unknown" }, "None is stored."),
  ];
}

/** One text with its activation; `digits` for activations in their own unit, which never count as firing here. */
function text(activation, segments, digits) {
  const firing = digits === undefined && activation >= data.firing ? " firing" : "";
  return make("div", { className: "text" },
    make("span", { className: `activation${firing}` }, fixed(activation, digits ?? 2)),
    make("p", { dir: "auto" }, ...tokens(segments)));
}

/** A flat list of strings, each token that fires followed by its activation (`payload.segments`). */
function tokens(segments) {
  const found = [];
  for (let i = 0; i < segments.length; i++) {
    const value = segments[i + 1];
    if (typeof value !== "number") {
      found.push(segments[i]);
      continue;
    }
    // The space that a token carries stays outside its colour.
    const [, before, core, after] = /^(\s*)([^]*?)(\s*)$/.exec(segments[i]);
    const mark = make("mark", { title: `${percent(value)} % of the maximum`, className: value >= data.firing ? "firing" : "" }, core || segments[i]);
    mark.style.setProperty("--a", Math.min(1, 0.15 + 0.85 * value).toFixed(2));
    found.push(core ? before : "", mark, core ? after : "");
    i++;
  }
  return found.filter(Boolean);
}

function round(name, found) {
  if (!found) return [];
  const reason = found.dropped ? `dropped, ${found.outcome}: ${data.dropReasons[found.outcome] || "it gave no pair"}` : found.outcome;
  return [
    make("h4", {}, `Candidates of ${name}`),
    make("p", { className: "legend" }, `${found.candidates.length} candidates, best reward first; ${reason}.`),
    ...found.quarantined.map(([chosen, rejected, why]) => make("p", { className: "legend bad" }, "In quarantine: ", said(chosen), " over ", said(rejected), ` (${why})`)),
    ...found.candidates.map(candidate),
  ];
}

function candidate(row) {
  return make("details", { className: "candidate" },
    make("summary", {},
      make("span", { className: "who" }, `reward ${fixed(row.reward, 2)}`),
      row.explanation ? said(row.explanation, "said") : make("span", { className: "unknown" }, DASH),
      make("span", { className: "result" }, row.role ? make("span", { className: `role ${row.role}` }, row.role) : "")),
    make("div", { className: "body" }, ...row.texts.map(([activation, written]) => text(activation, [written]))));
}

// ---- Moving about

/** Open the feature `by` rows from the one that is open, or the first; it takes the place of the open one in history. */
function move(by) {
  const place = view.rows.indexOf(position.get(view.open));
  const next = view.rows[place < 0 ? 0 : Math.min(view.rows.length - 1, Math.max(0, place + by))];
  if (next === undefined) return;
  const target = address(data.features.id[next]);
  if (view.open === null) history.pushState(null, "", target);
  else history.replaceState(null, "", target);
  follow();
}

function close() {
  const id = view.open;
  history.pushState(null, "", location.href.split("#")[0]);
  follow();
  (rowOf(id)?.querySelector("a") || $("search")).focus({ preventScroll: true });
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !data) return;
  const inSearch = event.target === $("search");
  const typing = inSearch || event.target.matches?.("select, input");
  const inPane = $("pane").contains(event.target);
  if (event.key === "Escape" && view.open !== null) close();
  else if (event.key === "/" && !typing) $("search").focus();
  else if (((event.key === "ArrowDown" || event.key === "ArrowUp") && !inPane && (!typing || inSearch)) || (/^[jk]$/.test(event.key) && !typing)) {
    move(event.key === "ArrowDown" || event.key === "j" ? 1 : -1);
  } else return;
  event.preventDefault();
}

// ---- Start

function options(id, choices, chosen) {
  $(id).replaceChildren(...choices.map(([value, name]) => make("option", { value, defaultSelected: value === chosen }, name)));
}

function fillTools() {
  const names = data.evaluations.map((name) => [name, name]);
  const outcomes = data.rounds.flatMap((name) => data.outcomes[name].map((found) => found?.[2])).filter(Boolean);
  const dropped = [...new Set(outcomes)].filter((each) => !/^\d+ pairs?/.test(each)).sort(natural.compare);
  const held = outcomes.some((each) => each.endsWith("quarantine"));
  options("shown", names, data.shown);
  options("against", names, data.start);
  options("split", [["", "any"], ...[...new Set(data.features.split)].map((each) => [each, each])]);
  const spelt = (each) => [each, `${data.words[each][0]} ${each}`];
  options("verdict", [["", "any"], ...data.verdicts.map(spelt)]);
  options("truth", [["", "any"], ...data.truths.map(spelt)]);
  options("change", [["", "any"], ["better", "better"], ["worse", "worse"], ["same", "the same"]]);
  options("outcome", [["", "any"], ["pairs", "gave pairs"], ...(held ? [["quarantine", "in quarantine"]] : []), ...dropped.map((each) => [each, `dropped: ${each}`])]);
  $("outcome-label").hidden = !data.rounds.length;
  $("truth-label").hidden = !data.evaluations.some((name) => data.measured[name]?.some((row) => row && row[3] !== null));
}

/** The first column is as wide as the widest id, with the tag of a split and, where there is no room, without. */
function fitIds() {
  const widest = (texts) => texts.reduce((most, text) => (text.length > most.length ? text : most), "");
  const link = make("a", {}, widest([...ids.keys()])), tag = make("span", { className: "tag" }, widest([...new Set(data.features.split)]));
  const probe = make("div", { className: "probe" }, link, tag);
  $("list").append(probe);
  for (const [name, element] of [["--tagged", probe], ["--bare", link]]) $("list").style.setProperty(name, `${Math.ceil(element.getBoundingClientRect().width)}px`);
  probe.remove();
}

async function start() {
  await readIndex();
  fillTools();
  fitIds();
  view.sort = null;
  let frame = 0;
  const redraw = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      draw();
    });
  };
  $("list").addEventListener("scroll", redraw, { passive: true });
  new ResizeObserver(redraw).observe($("list"));
  $("search").addEventListener("input", refresh);
  // The search box reports a change when it loses focus: drawing then would take the row away under the click.
  $("tools").addEventListener("change", (event) => event.target !== $("search") && refresh());
  $("tools").addEventListener("submit", (event) => event.preventDefault());
  $("tools").addEventListener("reset", () => setTimeout(() => { view.sort = null; refresh(); }));
  $("rows").addEventListener("click", (event) => {
    const id = event.target.closest("tr")?.dataset.id;
    if (id && !event.target.closest("a")) location.hash = address(id);
  });
  document.addEventListener("keydown", onKey);
  addEventListener("popstate", follow);
  refresh();
  await follow();
  if (view.open !== null) $("features").scrollIntoView();
  document.documentElement.dataset.ready = "yes";
}

start();
