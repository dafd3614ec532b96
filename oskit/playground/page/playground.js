"use strict";
// All texts that come from documents, queries or the cluster go through textContent: none is ever read as HTML.

const NAMES = ["A", "B"];
const SLOPE = 10; // hits of each side between which lines are drawn
const CHIPS = 5;
const BARS = 15;
const AGAIN_MS = 3000; // until a cluster that is away is asked again
const $ = (id) => document.getElementById(id);

function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name === "onclick") made.addEventListener("click", value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const number = (value, digits) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const whole = (value) => value.toLocaleString("en");
const plural = (count, what) => `${whole(count)} ${what}${count === 1 ? "" : "s"}`;

// --- the local server ---

/** The cluster, or this page's server, is away: it may be back in a moment. */
class Away extends Error {}

async function api(path, body, signal) {
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } };
  let response;
  try {
    response = await fetch(`api/${path}`, { ...options, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Away("The playground does not answer: `oskit playground` has ended, or was started anew.");
  }
  const text = await response.text();
  if (response.ok) return JSON.parse(text);
  if (response.status === 403) throw new Error(text);
  const { error, hint } = JSON.parse(text);
  const told = hint ? `${error.replace(/\.$/, "")}. ${hint}` : error;
  throw response.status === 503 ? new Away(told) : new Error(told);
}

function tell(place, message) {
  place.textContent = message;
  place.hidden = !message;
}

// --- a side: one way to search, and what it found ---

class Side {
  constructor(place) {
    this.place = place;
    this.name = NAMES[place];
    this.way = $("way").content.firstElementChild.cloneNode(true);
    this.found = $("side").content.firstElementChild.cloneNode(true);
    this.answer = null;
    this.running = null;
    this.again = null;
    this.about = null;
    for (const part of [this.way, this.found]) part.querySelector(".badge").textContent = this.name;
    this.way.setAttribute("aria-label", `Search ${this.name}`);
    this.found.setAttribute("aria-label", `Hits of ${this.name}`);
    this.controls = Object.fromEntries([...this.way.querySelectorAll("[name]")].map((one) => [one.name, one]));
    this.way.addEventListener("change", (event) => this.changed(event.target.name));
    this.controls.weight.addEventListener("input", () => this.arrange());
    this.part(".copy").addEventListener("click", () => this.copy());
    $("ways").append(this.way);
    $("results").append(this.found);
  }

  part(selector) {
    return this.found.querySelector(selector);
  }

  async changed(name) {
    if (name === "index") {
      this.cancel();
      this.busy(new AbortController());
      await this.describe();
    }
    this.arrange();
    await this.ask();
  }

  /** Ask what may be done with the chosen index, and offer that. */
  async describe(wanted = {}) {
    const index = this.controls.index.value;
    this.about = null;
    this.wanted = wanted; // what is not offered yet, if this fails
    try {
      const about = await api(`index?name=${encodeURIComponent(index)}`);
      if (this.controls.index.value !== index) return;
      this.about = about;
      tell(this.way.querySelector(".reason"), about.note);
    } catch (error) {
      this.fail(error);
      return;
    }
    const { without, encoders, documents, kind, chunks } = this.about;
    const is = this.about.index === index ? "" : ` · alias of ${this.about.index}`;
    this.way.querySelector(".about").textContent = `${plural(documents, "document")} · ${kind}${chunks ? ", in chunks" : ""}${is}`;
    for (const option of this.controls.by.options) option.disabled = Boolean(without[option.value]);
    if (wanted.by) this.controls.by.value = wanted.by;
    if (this.controls.by.selectedOptions[0]?.disabled !== false) {
      this.controls.by.value = ["sparse", "bm25"].find((by) => !without[by]) ?? "";
    }
    const why = [...new Set(Object.values(without).filter(Boolean))].map((text) => `${text[0].toUpperCase()}${text.slice(1).replace(/\.$/, "")}.`);
    if (why.length) {
      const left = without.sparse && without.bm25 ? "Neither sparse search nor BM25 is possible" : without.sparse ? "BM25 only" : "Sparse search only";
      tell(this.way.querySelector(".reason"), `${left}: ${why.join(" ")}`);
    }
    this.controls.encoder.replaceChildren(...encoders.map(({ id, name }) => el("option", { value: id }, name)));
    if (encoders.some(({ id }) => id === wanted.encoder)) this.controls.encoder.value = wanted.encoder;
  }

  /** Show the controls that belong to the way that is chosen. */
  arrange() {
    const { by, weight, share } = this.controls;
    const sparse = by.value === "sparse";
    const shown = {
      encoding: sparse || by.value === "hybrid",
      fusing: by.value === "hybrid",
      tuning: sparse && this.about?.kind === "sparse_vector",
      phasing: sparse && Boolean(this.about?.two_phase),
    };
    for (const [name, is] of Object.entries(shown)) {
      for (const one of this.way.querySelectorAll(`.${name}`)) one.hidden = !is;
    }
    share.textContent = number(Number(weight.value), 2);
    this.found.querySelector(".title").textContent = `${by.selectedOptions[0]?.text ?? ""} · ${this.controls.index.value}`;
  }

  /** The way as the server takes it: only what is on the screen counts. */
  chosen() {
    const { index, by, encoder, weight, fusion, filter, two_phase, top_n, heap_factor } = this.controls;
    const visible = (one) => one.closest("label").hidden === false;
    const way = { index: index.value, by: by.value, filter: filter.value };
    if (visible(encoder)) way.encoder = encoder.value;
    if (visible(fusion)) Object.assign(way, { weight: Number(weight.value), fusion: fusion.value });
    if (visible(two_phase)) way.two_phase = two_phase.checked;
    if (visible(top_n) && top_n.value) way.top_n = Number(top_n.value);
    if (visible(heap_factor) && heap_factor.value) way.heap_factor = Number(heap_factor.value);
    return way;
  }

  cancel() {
    clearTimeout(this.again);
    this.running?.abort();
    this.busy(null);
  }

  busy(running) {
    this.running = running;
    this.found.setAttribute("aria-busy", String(running !== null));
    this.part(".spinner").hidden = running === null;
  }

  /** Search; what was asked before is given up, so that its answer cannot come later than this one's. */
  async ask() {
    this.cancel();
    const query = $("query").value;
    remember();
    const running = new AbortController();
    this.busy(running);
    if (!this.about) {
      await this.describe(this.wanted);
      this.arrange();
      if (this.running !== running) return;
    }
    if (this.about && !query.trim()) this.show(null);
    if (!this.about || !query.trim() || !this.controls.by.value) return this.busy(null);
    const body = { query, way: this.chosen(), size: Number($("size").value), judged: judged?.text === query ? judged.id : null };
    try {
      const answer = await api("search", body, running.signal);
      if (this.running === running) this.show(answer);
    } catch (error) {
      if (this.running === running) this.fail(error);
    }
    if (this.running === running) this.busy(null);
  }

  fail(error) {
    this.show(null);
    const away = error instanceof Away;
    tell(this.part(".problem"), away ? `${error.message} It is asked again in a moment.` : error.message);
    clearTimeout(this.again);
    if (away) this.again = setTimeout(() => this.ask(), AGAIN_MS);
  }

  show(answer) {
    this.answer = answer;
    tell(this.part(".problem"), "");
    const warnings = [answer?.warning, answer?.note, answer?.no_request, answer?.pipeline && `The index's search pipeline ${answer.pipeline} took part.`];
    tell(this.part(".warning"), warnings.filter(Boolean).join(" · "));
    this.part(".copy").disabled = !answer?.request;
    this.part(".figures").replaceChildren(...(answer ? this.figures(answer) : []));
    compare();
  }

  figures(answer) {
    const figure = (name, value, small = "") => el("div", {}, el("dt", {}, name), el("dd", {}, value, el("small", {}, small)));
    const { took_ms, whole_ms, total, at_least } = answer;
    const shown = [
      figure("took, in the cluster", whole(took_ms), " ms"),
      figure("whole, with encoding", number(whole_ms, 0), " ms"),
      figure("matched", `${at_least && total ? "≥ " : ""}${whole(total)}`),
    ];
    if (answer.judged) {
      shown.unshift(figure("nDCG@10", number(answer.judged.ndcg, 3), ` ${answer.judged.relevant} relevant of ${judged.relevant}`));
    }
    return shown;
  }

  async copy() {
    const button = this.part(".copy");
    const text = JSON.stringify(this.answer.request.body, null, 2);
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "The browser does not let it be copied";
    }
    setTimeout(() => (button.textContent = "Copy search body"), 2000);
  }
}

// --- hits ---

function showHits(side, ranks, other) {
  const list = side.part(".hits");
  const hits = side.answer?.hits ?? [];
  list.replaceChildren(...hits.map((hit, place) => hitOf(side, hit, place + 1, ranks.get(hit.id), other)));
  if (side.answer && !hits.length) list.append(el("li", { class: "quiet" }, "No document matched."));
}

function hitOf(side, hit, rank, elsewhere, other) {
  const name = hit.title || hit.id;
  const tags = [];
  if (hit.grade !== null) tags.push(el("span", { class: hit.grade > 0 ? "tag relevant" : "tag" }, hit.grade > 0 ? `relevant (${hit.grade})` : "judged: not relevant"));
  if (other.answer) tags.push(moveTag(side, rank, elsewhere, other));
  const chips = hit.matched.slice(0, CHIPS).map(([token, , , product]) => el("span", { class: "tag", dir: "auto" }, `${token} +${number(product, 2)}`));
  const item = el("li", { class: "hit", tabindex: 0, "aria-label": `${rank}: ${name}` });
  const toggle = el("button", { type: "button", class: "toggle", "aria-expanded": "false" },
    hit.matched.length ? `${plural(hit.matched.length, "token")} matched` : "Details");
  toggle.addEventListener("click", () => open(item, toggle, hit, side));
  item.append(
    el("span", { class: "rank" }, String(rank)),
    el("div", { class: "top" }, el("span", { class: "name", dir: "auto" }, name), ...tags, el("span", { class: "score" }, number(hit.score, Object.keys(hit.sides).length ? 4 : 3))),
    el("p", { class: "text", dir: "auto" }, ...marked(hit)),
    chips.length ? el("div", { class: "top detail" }, ...chips) : "",
    toggle,
  );
  return item;
}

function moveTag(side, rank, elsewhere, other) {
  if (elsewhere === undefined) return el("span", { class: "tag only" }, `only in ${side.name}`);
  if (side.place === 0 || elsewhere === rank) return el("span", { class: "tag" }, `${elsewhere === rank ? "=" : ""} ${elsewhere} in ${other.name}`.trim());
  const up = elsewhere > rank;
  const told = `${up ? "up" : "down"} ${Math.abs(elsewhere - rank)}, from ${elsewhere} in ${other.name}`;
  return el("span", { class: up ? "tag up" : "tag down", "aria-label": told, title: told, role: "img" }, `${up ? "▲" : "▼"} ${Math.abs(elsewhere - rank)}`);
}

/** The text, with the words marked that are tokens which matched. */
function marked(hit) {
  const tokens = new Set(hit.matched.map(([token]) => token.toLowerCase()));
  const parts = hit.text.split(/([\p{L}\p{N}]+)/u).map((part) => (tokens.has(part.toLowerCase()) ? el("mark", {}, part) : part));
  if (hit.letters > hit.text.length) parts.push(`… (${whole(hit.letters)} characters in all)`);
  return parts;
}

function open(item, toggle, hit, side) {
  const is = item.classList.toggle("open");
  toggle.setAttribute("aria-expanded", String(is));
  item.querySelector(".more")?.remove();
  if (!is) return;
  const facts = [];
  if (hit.title) facts.push(`_id: ${hit.id}`);
  if (hit.passage) facts.push(`best passage${hit.start === null ? "" : `, from character ${whole(hit.start)} on`}`);
  facts.push(...hit.fields.map(([name, value]) => `${name}: ${value}`));
  item.append(
    el("div", { class: "detail more scroll" },
      Object.keys(hit.sides).length ? sidesTable(hit) : "",
      hit.matched.length ? tokenTable(hit, side) : "",
      facts.length ? el("p", { class: "facts", dir: "auto" }, facts.join(" · ")) : ""),
  );
}

const row = (cell, ...values) => el("tr", {}, ...values.map((value) => el(cell, cell === "th" ? { scope: "col" } : {}, value)));
const bar = (share) => {
  const drawn = el("i");
  drawn.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return el("td", { class: "bar" }, drawn);
};

function tokenTable(hit, side) {
  const heaviest = Math.max(...hit.matched.map(([, , , product]) => product));
  const words = side.chosen().by === "bm25";
  const rows = hit.matched.map(([token, query, weight, product]) => {
    const made = row("td", el("bdi", { title: token }, token), number(query, 3), number(weight, 3));
    made.append(bar(product / heaviest), el("td", {}, number(product, 3)));
    return made;
  });
  const head = row("th", "token", words ? "idf" : "query", words ? "tf" : "document", "", "product");
  const score = hit.sides.sparse ? hit.sides.sparse.score : hit.score;
  const rounded = words ? "" : ", of the rounded weights that an index keeps";
  const told = score === null ? "sum" : `sum; the ${hit.sides.sparse ? "sparse side's " : ""}score${rounded}: ${number(score, 3)}`;
  const foot = el("tr", {}, el("td", { colspan: 4 }, told), el("td", { class: "sum" }, number(hit.sum, 3)));
  const caption = words ? "BM25: idf × saturated term frequency" : "Query weight × document weight";
  return el("table", { class: "matched" }, el("caption", {}, caption), el("thead", {}, head), el("tbody", {}, ...rows), el("tfoot", {}, foot));
}

function sidesTable(hit) {
  const cell = (value, digits) => (value === null ? "–" : number(value, digits));
  const rows = Object.entries(hit.sides).map(([name, { rank, score, normalized, share }]) =>
    row("td", name, cell(rank, 0), cell(score, 3), cell(normalized, 4), share === null ? "–" : `${number(share * 100, 0)} %`));
  const head = row("th", "side", "rank", "score", "normalized", "of the score");
  return el("table", {}, el("caption", {}, "What each side adds"), el("thead", {}, head), el("tbody", {}, ...rows));
}

// --- what moved ---

function compare() {
  const [a, b] = sides;
  const ranks = sides.map((side) => new Map((side.answer?.hits ?? []).map((hit, place) => [hit.id, place + 1])));
  showHits(a, ranks[1], b);
  showHits(b, ranks[0], a);
  showQueryBars();
  $("moved").hidden = !(a.answer && b.answer && ranks[0].size + ranks[1].size);
  if ($("moved").hidden) return;
  const both = [...ranks[0].keys()].filter((id) => ranks[1].has(id));
  const furthest = both.reduce((best, id) => (Math.abs(ranks[0].get(id) - ranks[1].get(id)) > Math.abs(ranks[0].get(best) - ranks[1].get(best)) ? id : best), both[0]);
  const same = both.length === ranks[0].size && both.length === ranks[1].size;
  let told = `${both.length} in both, ${ranks[0].size - both.length} only in A, ${ranks[1].size - both.length} only in B`;
  if (both.length && ranks[0].get(furthest) !== ranks[1].get(furthest)) {
    const title = nameOf(a.answer.hits[ranks[0].get(furthest) - 1]);
    told += `. Furthest: “${title.length > 60 ? `${title.slice(0, 59)}…` : title}”, from ${ranks[0].get(furthest)} to ${ranks[1].get(furthest)}`;
  } else if (same) told = "Both have the same hits in the same order";
  $("moved-told").textContent = `${told}.`;
  $("ranks-a").replaceChildren(...slopeRows(a, ranks[1]));
  $("ranks-b").replaceChildren(...slopeRows(b, ranks[0]));
  drawLines(ranks);
}

const nameOf = (hit) => hit.title || hit.text.slice(0, 120) || hit.id;

function slopeRows(side, elsewhere) {
  return side.answer.hits.slice(0, SLOPE).map((hit, place) => {
    const missing = !elsewhere.has(hit.id);
    const title = missing ? `${nameOf(hit)} (only in ${side.name})` : nameOf(hit);
    return el("li", { class: missing ? "missing" : "", title }, el("b", {}, String(place + 1)), el("span", { dir: "auto" }, nameOf(hit)));
  });
}

function drawLines(ranks) {
  const svg = $("lines");
  const height = 26;
  const rows = Math.max(...ranks.map((one) => Math.min(one.size, SLOPE)));
  svg.setAttribute("viewBox", `0 0 100 ${rows * height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.style.height = `${rows * height}px`;
  const middle = (rank) => (rank - 0.5) * height;
  const lines = [...ranks[0]].filter(([id, rank]) => rank <= SLOPE && ranks[1].get(id) <= SLOPE).map(([id, rank]) => {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    const [from, to] = [middle(rank), middle(ranks[1].get(id))];
    path.setAttribute("d", `M6 ${from} C50 ${from} 50 ${to} 94 ${to}`);
    path.setAttribute("vector-effect", "non-scaling-stroke");
    path.setAttribute("class", to < from ? "up" : to > from ? "down" : "");
    return path;
  });
  svg.replaceChildren(...lines);
}

// --- token weights as bars ---

function weightTable({ tokens, count }, caption) {
  const body = el("tbody");
  const heaviest = tokens.length ? tokens[0][1] : 1;
  const fill = (shown) => body.replaceChildren(...tokens.slice(0, shown).map(([token, weight]) => {
    const made = row("td", el("bdi", { title: token }, token));
    const drawn = bar(weight / heaviest);
    drawn.style.width = "auto";
    made.append(drawn, el("td", {}, number(weight, 3)));
    return made;
  }));
  fill(BARS);
  const table = el("table", { class: "weights" }, el("caption", {}, `${caption}${plural(count, "token")}`), body);
  const more = el("button", { type: "button", class: "toggle", onclick: () => (fill(tokens.length), more.remove()) },
    tokens.length < count ? `Show the ${tokens.length} heaviest` : `Show all ${count}`);
  return el("div", { class: "hit-like" }, table, tokens.length > BARS ? more : "");
}

function showQueryBars() {
  const shown = sides.filter((side) => side.answer && side.chosen().by !== "bm25").map((side) => {
    const weights = side.answer.query_weights;
    if (!weights.count) return el("p", { class: "quiet" }, `${side.name}: the query has no token.`);
    const table = weightTable(weights, `${side.name} · ${side.controls.encoder.selectedOptions[0]?.text ?? ""} · `);
    if (side.place) table.classList.add("of-b");
    return table;
  });
  $("query-bars").replaceChildren(...shown);
  $("query-tokens").hidden = !shown.length;
}

let weighing = null;

async function weigh(event) {
  event.preventDefault();
  weighing?.abort();
  const running = (weighing = new AbortController());
  const side = sides[Number($("whose").value)];
  const [told, bars] = [$("text-told"), $("text-bars")];
  bars.replaceChildren();
  if (!$("text").value.trim()) return told.replaceChildren(el("p", { class: "quiet" }, "Type or paste a text."));
  told.replaceChildren(el("span", { class: "spinner" }, "encoding…"));
  const body = { text: $("text").value, kind: $("kind").value, index: side.controls.index.value, encoder: side.controls.encoder.value };
  try {
    const found = await api("weights", body, running.signal);
    if (weighing !== running) return;
    told.replaceChildren(...(found.note ? [el("p", { class: "quiet" }, found.note)] : []));
    bars.replaceChildren(found.count ? weightTable(found, `${number(found.whole_ms, 0)} ms · `) : el("p", { class: "quiet" }, "The text has no token."));
  } catch (error) {
    if (weighing === running) told.replaceChildren(el("p", { class: "problem", role: "alert" }, error.message));
  }
}

// --- judged queries ---

let judged = null;
let offered = { judged: null };
let stepping = 0;

async function step(by) {
  if (!offered.judged) return;
  const to = ((judged?.number ?? (by > 0 ? -1 : 0)) + by + offered.judged) % offered.judged;
  const mine = ++stepping;
  try {
    const found = await api(`judged?number=${to}`);
    if (mine !== stepping) return;
    judged = found;
    $("query").value = judged.text;
    $("standing").textContent = `Judged query ${whole(judged.number + 1)} of ${whole(offered.judged)} · ${judged.id} · ${plural(judged.relevant, "relevant document")}`;
    askBoth();
  } catch (error) {
    tell($("problem"), error.message);
  }
}

// --- the whole page ---

const sides = [];

function askBoth() {
  tell($("problem"), "");
  for (const side of sides) side.ask();
}

/** Keep what is chosen in the URL, so that reloading or another tab shows the same. */
function remember() {
  const state = { query: $("query").value, size: $("size").value, ways: sides.map((side) => side.chosen()) };
  history.replaceState(null, "", `${location.pathname}#${encodeURIComponent(JSON.stringify(state))}`);
}

function remembered() {
  try {
    return JSON.parse(decodeURIComponent(location.hash.slice(1)));
  } catch {
    return { ways: [] };
  }
}

const isField = (target) => target.matches("input, select, textarea");

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { key, target } = event;
  const hit = target.closest(".hit");
  if (key === "Escape") {
    for (const side of sides) side.cancel();
    if (isField(target)) target.blur();
  } else if (isField(target) && !(target.id === "query" && key === "ArrowDown")) {
    return;
  } else if (key === "/") {
    $("query").focus();
    $("query").select();
  } else if (key === "ArrowDown" || key === "ArrowUp") {
    const to = hit ? (key === "ArrowDown" ? hit.nextElementSibling : hit.previousElementSibling) : document.querySelector(".hit");
    (to ?? (key === "ArrowUp" ? $("query") : hit))?.focus();
  } else if (key === "ArrowLeft" || key === "ArrowRight") {
    const by = key === "ArrowRight" ? 1 : -1;
    if (!hit) step(by);
    else sides[by > 0 ? 1 : 0].found.querySelectorAll(".hit")[[...hit.parentElement.children].indexOf(hit)]?.focus();
  } else if (key === "Enter" && target === hit) {
    hit.querySelector(".toggle").click();
  } else return;
  event.preventDefault();
}

async function start() {
  const kept = remembered();
  history.replaceState(null, "", location.pathname + location.hash); // without the token
  $("ask").addEventListener("submit", (event) => (event.preventDefault(), askBoth()));
  $("size").addEventListener("change", askBoth);
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("weigh").addEventListener("submit", weigh);
  document.addEventListener("keydown", keys);
  await begin(kept);
}

/** What may be chosen, once the cluster tells it. */
async function begin(kept) {
  try {
    offered = await api("offer");
  } catch (error) {
    if (error instanceof Away) setTimeout(() => begin(kept), AGAIN_MS);
    return tell($("problem"), error.message);
  }
  tell($("problem"), "");
  $("cluster").textContent = offered.cluster;
  for (const one of document.querySelectorAll(".judging")) one.hidden = !offered.judged;
  $("standing").textContent = offered.judged ? plural(offered.judged, "judged query").replace("querys", "queries") : "";
  sides.push(new Side(0), new Side(1));
  const [first, second = first] = offered.indexes;
  const standard = [{ index: first, by: first === second ? "bm25" : "sparse" }, { index: second, by: "sparse" }];
  await Promise.all(sides.map(async (side, place) => {
    const wanted = offered.indexes.includes(kept.ways?.[place]?.index) ? kept.ways[place] : standard[place];
    side.controls.index.replaceChildren(...offered.indexes.map((name) => el("option", { value: name }, name)));
    for (const name of ["index", "weight", "fusion", "filter", "top_n", "heap_factor"]) {
      if (wanted[name] !== undefined) side.controls[name].value = wanted[name];
    }
    side.controls.two_phase.checked = Boolean(wanted.two_phase);
    await side.describe(wanted);
    side.arrange();
  }));
  if (kept.size) $("size").value = kept.size;
  if (kept.query) $("query").value = kept.query;
  $("query").focus();
  if (kept.query) askBoth();
}

start();
