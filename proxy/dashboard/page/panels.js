// The figures. Each panel is filled from a look, and left out where there is nothing of its kind.

const RUNGS = ["hit", "trusted", "shared", "draft", "miss", "bypass"];
const RECENT = 5;
// A page that was just opened draws the first minute as wide as it can.
const LEAST_SLOTS = 60;

/** The mean of the last seconds: one alone jumps. */
const recent = (points, field) => {
  const values = points.slice(-RECENT).map((point) => point[field]).filter((value) => value != null);
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
};
const last = (points, field) => (points.length ? points[points.length - 1][field] : null);

/** `at(points)`: [number, unit, more], of the points up to the one that is meant. */
const TILES = [
  { title: "Tokens", field: "tokens_out", least: 10,
    at: (points) => [rate(recent(points, "tokens_out")), "/s", `${rate(recent(points, "tokens_in"))} /s of prompts`] },
  { title: "Time to first token", field: "first_p50", second: "first_p99", least: 0.005,
    at: (points) => [...duration(last(points, "first_p50")), `p99 ${inWords(last(points, "first_p99"))}`] },
  { title: "Between tokens", field: "between_p50", second: "between_p99", least: 0.002,
    at: (points) => [...duration(last(points, "between_p50")), `p99 ${inWords(last(points, "between_p99"))}`] },
  { title: "Requests", field: "requests", second: "errors", least: 1,
    at: (points) => [rate(recent(points, "requests")), "/s", `${rate(recent(points, "errors"))} /s failed`] },
  { title: "In the engine", field: "running", second: "waiting", least: 4,
    at: (points) => [count(last(points, "running")), "running", `${count(last(points, "waiting"))} waiting`] },
  { title: "KV in use", field: "kv_usage", least: 0.1,
    at: (points) => {
      const usage = last(points, "kv_usage");
      return [usage == null ? UNKNOWN : (100 * usage).toFixed(usage < 0.1 ? 1 : 0), "%", "of the blocks there are"];
    } },
];

class Tile {
  constructor(about) {
    this.about = about;
    this.meant = null;
    this.value = make("p", "value");
    this.more = make("p", "more");
    this.number = document.createTextNode(UNKNOWN);
    this.unit = make("small");
    this.value.append(this.number, this.unit);
    this.spark = new Sparkline(about.title, (place) => { this.meant = place; this.show(); });
    this.element = make("article", "panel tile", make("h2", "", about.title), this.value, this.more, this.spark.element);
    this.points = [];
  }

  draw(points, slots) {
    this.points = points;
    this.slots = slots;
    const values = points.map((point) => point[this.about.field]);
    const second = this.about.second ? points.map((point) => point[this.about.second]) : [];
    const [number, unit, more] = this.about.at(points);
    this.spark.draw(values, second, slots, this.about.least, `${number} ${unit}, ${more}`);
    this.show();
  }

  /** The latest, or what the pointer is over. */
  show() {
    const place = this.meant == null ? null : this.meant - (this.slots - this.points.length);
    const points = place == null ? this.points : this.points.slice(0, Math.max(0, place + 1));
    const [number, unit, more] = this.about.at(points);
    if (this.number.data !== number) this.number.data = number;
    setText(this.unit, unit);
    const ago = place == null ? 0 : this.points.length - 1 - place;
    setText(this.more, ago > 0 ? `${more}, ${ago} s ago` : more);
  }
}

class Panels {
  constructor() {
    this.points = [];
    this.kept = 300;
    this.tiles = TILES.map((about) => new Tile(about));
    byId("tiles").append(...this.tiles.map((tile) => tile.element));
  }

  past(points) {
    this.points = points;
  }

  show(look) {
    this.points.push(look.point);
    while (this.points.length > this.kept) this.points.shift();
    const slots = Math.min(this.kept, Math.max(LEAST_SLOTS, this.points.length));
    for (const tile of this.tiles) tile.draw(this.points, slots);
    showSavings(look.savings);
    showCache(look.cache, this.points);
    showEngines(look.engines, look.drafters);
    showRoutes(look);
    showUpstreams(look.upstreams);
    showTenants(look.savings && look.savings.tenants);
  }
}

function showSavings(savings) {
  byId("saved").hidden = !savings;
  if (!savings) return;
  const { saved, total, levers } = savings;
  const spared = levers.reduce((sum, lever) => sum + lever.tokens, 0);
  const sums = [
    ["Money", money(saved.cost), saved.share == null ? "" : percent(saved.share)],
    ["Waiting", ...duration(saved.seconds)],
    ["Tokens not computed", count(spared), ""],
    ["Requests", count(total.requests), total.failed ? `${count(total.failed)} failed` : ""],
  ];
  fill(byId("saved-sums"), sums, () => make("div", "", make("dt"), make("dd", "", make("span"), " ", make("small"))),
    (sum, [name, value, more]) => {
      setText(sum.firstChild, name);
      setText(sum.lastChild.firstChild, value);
      setText(sum.lastChild.lastChild, more);
    });
  const some = (value) => (value ? count(value) : UNKNOWN);
  fillRows(byId("levers"), levers.map((lever) => [
    lever.name,
    some(lever.requests),
    some(lever.tokens),
    lever.cost ? money(lever.cost) : UNKNOWN,
    lever.seconds ? (lever.is_estimate ? "≈ " : "") + inWords(lever.seconds) : UNKNOWN,
  ]));
  fill(byId("assumptions"), savings.assumptions, () => make("li"), setText);
}

function showCache(cache, points) {
  const sums = {};
  for (const point of points)
    for (const [outcome, number] of Object.entries(point.outcomes)) sums[outcome] = (sums[outcome] || 0) + number;
  const total = Object.values(sums).reduce((sum, number) => sum + number, 0);
  const shares = RUNGS.map((rung) => [rung, sums[rung] || 0]);
  const told = shares.filter(([, number]) => number).map(([rung, number]) => `${rung} ${percent(number / total)}`);
  byId("rungs").setAttribute("aria-label", told.join(", ") || "no answers yet");
  fill(byId("rungs"), shares, () => make("span"), (part, [rung, number]) => {
    part.className = rung;
    part.style.flexGrow = number;
  });
  fill(byId("rung-legend"), shares, () => make("li", "", make("i"), make("span"), make("span", "muted")),
    (item, [rung, number]) => {
      item.children[0].className = rung;
      setText(item.children[1], rung);
      setText(item.children[2], total ? percent(number / total) : UNKNOWN);
    });
  const facts = [];
  const since = cache.outcomes;
  const answerable = Object.entries(since).reduce((sum, [name, number]) => sum + (name === "bypass" ? 0 : number), 0);
  const reused = (since.hit || 0) + (since.trusted || 0) + (since.shared || 0);
  if (answerable) facts.push(["answered without the model", percent(reused / answerable)]);
  if (cache.entries != null)
    facts.push(["entries kept", `${count(cache.entries)} in ${bytes(cache.used_bytes)} of ${bytes(cache.max_bytes)}`]);
  if (cache.verified)
    facts.push(["near answers that were right", `${percent(cache.verified_same / cache.verified)} of ${count(cache.verified)}`]);
  fillFacts(byId("cache-facts"), facts);
}

function showEngines(engines, drafters) {
  byId("engine").hidden = !engines.length;
  fill(byId("engines"), engines,
    () => make("div", "engine", make("p", "", make("span"), make("span", "muted")), make("div", "meter", make("span"))),
    (element, engine) => {
      const [line, meter] = element.children;
      setText(line.firstChild, engine.model || "engine");
      setText(line.lastChild, engine.up ? `${count(engine.running)} running, ${count(engine.waiting)} waiting, `
        + `KV ${percent(engine.kv_usage)} of ${count(engine.kv_blocks)} blocks` : "loading");
      meter.classList.toggle("full", engine.kv_usage > 0.9);
      meter.firstChild.style.width = `${100 * (engine.kv_usage || 0)}%`;
    });
  const generated = engines.reduce((sum, engine) => sum + (engine.generated || 0), 0);
  const accepted = drafters.reduce((sum, drafter) => sum + drafter.accepted, 0);
  const facts = [["tokens generated", count(generated)]];
  if (accepted) facts.push(["of these, guessed right", percent(accepted / generated)]);
  for (const { drafter, drafted, accepted: right } of drafters)
    facts.push([`${drafter}: right of those guessed`, `${percent(right / drafted)} of ${count(drafted)}`]);
  const put_back = engines.reduce((sum, engine) => sum + (engine.preemptions || 0), 0);
  if (put_back) facts.push(["put back to wait", count(put_back)]);
  fillFacts(byId("drafters"), facts);
}

const word = (text) => (cell) => { cell.className = "word"; setText(cell, text.replaceAll("_", " ")); };

/** [name, text] for each route: the shares of what was decided, the most frequent first. */
function decided(rows, field) {
  const routes = new Map();
  for (const row of rows) routes.set(row.route, [...(routes.get(row.route) || []), row]);
  return [...routes].map(([route, own]) => {
    const total = own.reduce((sum, row) => sum + row.count, 0);
    return [route, own.map((row) => `${row[field]} ${percent(row.count / total)}`).join(", ")];
  });
}

function showRoutes({ routes, fallbacks, decisions, comparisons, promises }) {
  byId("routing").hidden = !routes.length && !promises.length;
  fillRows(byId("routes"), routes.map(({ target, reason, count: number }) => [target, word(reason), count(number)]));
  fillFacts(byId("decisions"), [
    ...promises.map(({ route, quality, needed, broken }) => [
      `${route}: promise`,
      broken ? `${percent(quality)} was not kept: all go to the large tier` : `${percent(quality)}, kept from p ${needed.toFixed(2)} on`,
    ]),
    ...decided(decisions, "decision"),
    ...decided(comparisons, "outcome").map(([route, text]) => [`${route}, beside the large tier`, text]),
    ...fallbacks.map(({ target, count: number }) => [`${target}: could not answer`, count(number)]),
  ]);
}

function showUpstreams(upstreams) {
  byId("upstreams").hidden = !upstreams.length;
  fillRows(byId("upstream-rows"), upstreams.map((upstream) => [
    upstream.name,
    (cell) => {
      cell.className = "word";
      if (!cell.firstChild) cell.append(make("span", "breaker", make("span", "dot"), make("span")));
      const [dot, word] = cell.firstChild.children;
      dot.className = `dot ${{ closed: "good", open: "bad" }[upstream.breaker] || ""}`;
      setText(word, upstream.breaker);
    },
    `${rate(upstream.attempts_per_second)} /s`,
    percent(upstream.failed),
    inWords(upstream.first_token.p50),
    money(upstream.cost),
  ]));
}

function showTenants(tenants) {
  byId("tenants").hidden = !(tenants && tenants.length);
  fillRows(byId("tenant-rows"), (tenants || []).map((tenant) => [
    tenant.name || "(not known)",
    count(tenant.requests),
    count(tenant.failed),
    count(tenant.prompt_tokens),
    count(tenant.completion_tokens),
    money(tenant.cost),
    money(Object.values(tenant.saved_cost).reduce((sum, value) => sum + value, 0)),
  ]));
}
