"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  let printing = false;
  const PALETTES = {
    light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7570b3"],
    dark: ["#58a6f0", "#f0883e", "#3fc498", "#e29cc6", "#f2c14e", "#8fd3f9", "#c9a86a", "#a9a5e0"],
  };
  const color = (c) => {
    const dark = !printing && matchMedia("(prefers-color-scheme: dark)").matches;
    return PALETTES[dark ? "dark" : "light"][candidates.indexOf(c) % 8];
  };
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "pentagon", "star", "hexagon"];
  const SCALE = { s: [1000, "ms"], B: [1e-6, "MB"], 1: [100, "%"], points: [1, "points"], "1/s": [1, "/s"], J: [1000, "mJ"],
    number: [1, ""] };
  const candidates = [...new Set(data.points.map((p) => p.candidate))].sort();
  const recipes = [...new Set(data.points.map((p) => p.recipe))].sort();
  // Plotly reads a little HTML in its texts: names must not be taken for it.
  const esc = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const scaled = (name, v) => (v === null || v === undefined ? null : v * SCALE[data.metrics[name].unit][0]);
  const unit = (name) => SCALE[data.metrics[name].unit][1];
  const digits = (v) => (Math.abs(v) >= 100 ? v.toFixed(0) : v.toPrecision(3));
  const said = (name, v) => {
    const x = scaled(name, v);
    return data.metrics[name].unit === "1" ? `${x.toFixed(2)}%` : `${digits(x)} ${unit(name)}`.trim();
  };
  const title = (name) => `${data.metrics[name].name} (${[unit(name), `${data.metrics[name].better} is better`].filter(Boolean).join(", ")})`;
  const CONFIG = { displaylogo: false, responsive: true, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const v = (name) => style.getPropertyValue(name).trim();
    return printing ? { ink: "#000", muted: "#444", line: "#ccc", panel: "#fff", bad: "#a3261b" }
      : { ink: v("--ink"), muted: v("--muted"), line: v("--line"), panel: v("--panel"), bad: v("--bad") };
  }
  function layout(more) {
    const t = theme();
    const axis = (extra) => ({ gridcolor: t.line, linecolor: t.line, zeroline: false, automargin: true, tickcolor: t.line,
      fixedrange: false, ...extra });
    const { xaxis, yaxis, ...rest } = more;
    return { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: t.ink, size: 12.5,
      family: getComputedStyle(document.body).fontFamily }, margin: { l: 60, r: 16, t: 16, b: 48 },
      hoverlabel: { bgcolor: t.panel, bordercolor: t.muted, font: { color: t.ink }, align: "left" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: t.line, activecolor: t.ink }, xaxis: axis(xaxis), yaxis: axis(yaxis), ...rest };
  }

  /* A plot is drawn when it is a screen away or nearer; on paper all of them are. */
  const drawn = new WeakSet(), waiting = new Map();
  function put(box, traces, form) {
    if (drawn.has(box) || printing) { waiting.delete(box); drawn.add(box); Plotly.react(box, traces, form, CONFIG); return; }
    waiting.set(box, [traces, form]);
    nearing.observe(box);
  }
  const nearing = new IntersectionObserver((changes) => {
    for (const { target, isIntersecting } of changes) {
      if (!isIntersecting || !waiting.has(target)) continue;
      nearing.unobserve(target);
      drawn.add(target);
      put(target, ...waiting.get(target));
    }
  }, { rootMargin: "100% 0px" });

  /* ---- trade-off ---- */
  function options(select, names, value) {
    select.replaceChildren(...names.map((n) => new Option(data.metrics[n].name, n, n === value, n === value)));
  }
  function device() { return data.devices[$("device") ? $("device").selectedIndex : 0]; }
  function setUpAxes() {
    const names = Object.keys(data.metrics);
    const objective = device() ? device().objective : [];
    const own = data.points.find((p) => p.chosen);
    const has = (n) => names.includes(n) && (!own || n in own.m);
    const x = [objective.find((n) => ["s", "B"].includes((data.metrics[n] || {}).unit)), "p95", "p90", "p50", "ttft_p50",
      "latency_mean", "size", names[1]].find(has);
    const y = [objective.find((n) => n !== x && has(n)), "accuracy", names[0]].find(has);
    if ($("device")) {
      $("device").replaceChildren(...data.devices.map((d) => new Option(d.name, d.name)));
      $("device").addEventListener("change", drawAll);
    }
    options($("x"), names, x); options($("y"), names, y);
    options($("z"), names, has("peak_rss") ? "peak_rss" : "size");
    for (const id of ["x", "y", "z", "bars"]) $(id).addEventListener("change", drawTradeoff);
  }
  function shown() { return data.points.filter((p) => p.device === device().name); }
  function hover(p, extra) {
    const lines = [`<b>${esc(p.name)}</b>`, esc(p.run)];
    for (const n of [...new Set(extra)]) {
      if (!p.m[n]) continue;
      const [v, low = null, high = null, kind = "measured"] = p.m[n];
      const ends = low !== null && high !== null ? ` (${said(n, low)} to ${said(n, high)})` : "";
      lines.push(`${data.metrics[n].name}: ${said(n, v)}${ends}${kind === "measured" ? "" : ` ${kind}`}`);
    }
    lines.push(p.chosen ? "<b>chosen</b>" : p.feasible ? `keeps all budgets${p.rank ? `, rank ${p.rank}` : ""}`
      : `breaks ${esc(p.broken.join(", "))}`);
    return lines.join("<br>");
  }
  function front(points, x, y) {
    const low = (n) => data.metrics[n].better === "lower";
    const sign = (n) => (low(n) ? 1 : -1);
    const sorted = [...points].sort((a, b) => sign(x) * (a.m[x][0] - b.m[x][0]) || sign(y) * (a.m[y][0] - b.m[y][0]));
    const kept = [];
    for (const p of sorted) {
      const last = kept[kept.length - 1];
      if (!last || sign(y) * (p.m[y][0] - last.m[y][0]) < 0) kept.push(p);
    }
    return kept;
  }
  function errorBars(group, n) {
    const t = theme();
    const v = (i) => group.map((p) => (typeof p.m[n][i] !== "number" ? 0 : Math.abs(scaled(n, p.m[n][i]) - scaled(n, p.m[n][0]))));
    return { type: "data", symmetric: false, array: v(2), arrayminus: v(1), thickness: 1, width: 0, color: t.muted };
  }
  function marks(points, x, y, z) {
    const sizes = points.map((p) => (p.m[z] ? p.m[z][0] : null)).filter((v) => v !== null);
    const [min, max] = [Math.min(...sizes), Math.max(...sizes)];
    const most = $("plot-tradeoff").clientWidth < 560 ? 9 : 14;
    const size = (p) => (!p.m[z] ? 7 : max > min ? 7 + most * Math.sqrt((p.m[z][0] - min) / (max - min)) : 11);
    return candidates.filter((c) => points.some((p) => p.candidate === c)).map((c) => {
      const group = points.filter((p) => p.candidate === c);
      const symbol = (p) => SYMBOLS[recipes.indexOf(p.recipe) % SYMBOLS.length] + (p.feasible ? "" : "-open");
      return { type: "scatter", mode: "markers", name: esc(c), legendgroup: "c", showlegend: false,
        x: group.map((p) => scaled(x, p.m[x][0])), y: group.map((p) => scaled(y, p.m[y][0])),
        text: group.map((p) => hover(p, [y, x, z])), hovertemplate: "%{text}<extra></extra>",
        marker: { color: color(c), opacity: 0.85, size: group.map(size), symbol: group.map(symbol), line: { width: 1.5, color: color(c) } },
        ...($("bars").checked ? { error_x: errorBars(group, x), error_y: errorBars(group, y) } : {}) };
    });
  }
  function key(points) {
    const t = theme();
    const dummy = (name, marker, group, groupTitle) => ({ type: "scatter", mode: "markers", x: [null], y: [null], name,
      marker: { size: 9, ...marker }, hoverinfo: "skip", legendgroup: group, ...(groupTitle ? { legendgrouptitle: { text: groupTitle } } : {}) });
    const there = (list, field) => list.filter((n) => points.some((p) => p[field] === n));
    return [
      ...there(candidates, "candidate").map((c, i) => dummy(esc(c), { color: color(c) }, "c", i ? "" : "Candidate")),
      ...there(recipes, "recipe").map((r, i) => dummy(esc(r), { color: t.muted, symbol: SYMBOLS[recipes.indexOf(r) % SYMBOLS.length] }, "r", i ? "" : "Recipe")),
      dummy("keeps all", { color: t.muted }, "b", "Budgets"),
      dummy("breaks some", { color: t.muted, symbol: "circle-open", line: { width: 1.5 } }, "b"),
    ];
  }
  function budgetLines(x, y) {
    const t = theme(), shapes = [], annotations = [];
    for (const b of device().budgets) {
      const line = { color: t.bad, width: 1.2, dash: "dash" }, font = { color: t.bad, size: 11.5 };
      const text = esc(`${data.metrics[b.metric] ? data.metrics[b.metric].name : b.metric} ${b.op === "<=" ? "≤" : "≥"} ${b.text}`);
      if (b.metric === x) {
        shapes.push({ type: "line", x0: scaled(x, b.limit), x1: scaled(x, b.limit), yref: "paper", y0: 0, y1: 1, line });
        annotations.push({ x: scaled(x, b.limit), yref: "paper", y: 1, yanchor: "bottom", text, showarrow: false, font });
      }
      if (b.metric === y) {
        shapes.push({ type: "line", y0: scaled(y, b.limit), y1: scaled(y, b.limit), xref: "paper", x0: 0, x1: 1, line });
        annotations.push({ y: scaled(y, b.limit), xref: "paper", x: 1, xanchor: "right", yanchor: "bottom", text, showarrow: false, font });
      }
    }
    return { shapes, annotations };
  }
  // No room below zero for what cannot be negative.
  const fromZero = (points, n) => (points.every((p) => p.m[n][0] >= 0) ? { rangemode: "nonnegative" } : {});
  function drawTradeoff() {
    if (!data.points.length) return;
    const [x, y, z] = ["x", "y", "z"].map((id) => $(id).value), t = theme();
    const points = shown().filter((p) => p.m[x] && p.m[y]);
    const best = front(points, x, y), chosen = points.find((p) => p.chosen);
    const traces = [{ type: "scatter", mode: "lines", name: "Pareto front", x: best.map((p) => scaled(x, p.m[x][0])),
      y: best.map((p) => scaled(y, p.m[y][0])), line: { color: t.muted, width: 1.3, dash: "dot" }, hoverinfo: "skip",
      legendgroup: "b" }, ...marks(points, x, y, z), ...key(points)];
    const { shapes, annotations } = budgetLines(x, y), phone = $("plot-tradeoff").clientWidth < 560;
    if (chosen) annotations.push({ x: scaled(x, chosen.m[x][0]), y: scaled(y, chosen.m[y][0]), text: "<b>chosen</b>", showarrow: true,
      arrowhead: 0, arrowcolor: t.ink, font: { color: t.ink }, standoff: 8,
      // The better side of the chosen one is where few marks are, but a phone has no room beside the axis.
      ax: phone ? 0 : data.metrics[x].better === "lower" ? -30 : 30, ay: (data.metrics[y].better === "higher" ? -34 : 34) * (phone ? -1 : 1) });
    Plotly.react("plot-tradeoff", traces, layout({ shapes, annotations, hovermode: "closest", margin: { l: 60, r: 16, t: 48, b: 50 },
      xaxis: { title: { text: title(x) }, ...fromZero(points, x) }, yaxis: { title: { text: title(y) }, ...fromZero(points, y) },
      legend: { itemclick: false, itemdoubleclick: false, font: { size: 12 }, tracegroupgap: 8,
        ...(phone ? { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom", font: { size: 11 }, tracegroupgap: 0 } : {}) } }), CONFIG);
    $("sum-tradeoff").textContent = summary(points, best, chosen, x, y, z);
  }
  function summary(points, best, chosen, x, y, z) {
    const m = (n) => data.metrics[n].name;
    const line = best.map((p) => `${p.name} (${p.run}): ${said(y, p.m[y][0])} at ${said(x, p.m[x][0])}`);
    const more = line.length > 6 ? `, and ${line.length - 6} more` : "";
    const own = chosen ? ` Chosen: ${chosen.name} with ${m(y)} ${said(y, chosen.m[y][0])} and ${m(x)} ${said(x, chosen.m[x][0])}.` : "";
    return `${m(y)} against ${m(x)} of ${points.length} entries, size of the mark: ${m(z)}; hollow marks break a budget.${own} ` +
      `Pareto front of these two: ${line.slice(0, 6).join("; ")}${more}. Numbers are those that served the choice.`;
  }

  /* ---- latency and start-up ---- */
  function rowsOf(select, all, draw) {
    const few = Math.min(12, all.length);
    if (!select.options.length) {
      select.append(new Option(`the first ${few} by rank and nearness`, "few"), new Option("all", "all"));
      select.addEventListener("change", draw);
      select.closest(".tools").hidden = all.length <= few;
    }
    return (select.value === "all" ? all : all.slice(0, few)).reverse();
  }
  const tick = (p) => `${p.chosen ? "★ " : ""}${esc(p.name)}  <span style="font-size:10.5px">${esc(p.run)}</span>`;
  const phoneTick = (p) => `${p.chosen ? "★ " : ""}${esc(p.name)}<br><span style="font-size:10px">${esc(p.run)}</span>`;
  function rowAxis(rows, width) {
    const make = width < 560 ? phoneTick : tick;
    return { tickvals: rows.map((p) => p.key), ticktext: rows.map(make), type: "category", showgrid: false };
  }
  function drawLatency() {
    const box = $("plot-latency");
    if (!box) return;
    const rows = rowsOf($("latency-rows"), shown().filter((p) => data.samples[p.key]), drawLatency);
    const traces = rows.map((p) => ({ type: "box", orientation: "h", x: data.samples[p.key].map((v) => v * 1000),
      y: data.samples[p.key].map(() => p.key), name: esc(p.name), showlegend: false, boxpoints: false, width: 0.55, line: { width: 1.2 },
      marker: { color: color(p.candidate) }, hoverinfo: "x" }));
    const limits = device().budgets.filter((b) => /^p\d/.test(b.metric));
    const t = theme();
    const shapes = limits.map((b) => ({ type: "line", x0: b.limit * 1000, x1: b.limit * 1000, yref: "paper", y0: 0, y1: 1,
      line: { color: t.bad, width: 1.2, dash: "dash" } }));
    const annotations = limits.map((b) => ({ x: b.limit * 1000, yref: "paper", y: 1, yanchor: "bottom", showarrow: false,
      text: esc(`${b.metric} ${b.op === "<=" ? "≤" : "≥"} ${b.text}`), font: { color: t.bad, size: 11.5 } }));
    box.style.height = `${90 + (box.clientWidth < 560 ? 40 : 30) * rows.length}px`;
    put(box, traces, layout({ shapes, annotations, margin: { l: 20, r: 16, t: 48, b: 46 },
      xaxis: { title: { text: "Time of one call (ms)" }, rangemode: "tozero" }, yaxis: rowAxis(rows, box.clientWidth) }));
  }
  function drawStartup() {
    const box = $("plot-startup");
    if (!box) return;
    const phases = data.phases.filter(([n]) => data.metrics[n]);
    const rows = rowsOf($("startup-rows"), shown().filter((p) => phases.some(([n]) => p.m[n])), drawStartup);
    const shades = ["#b4bcc6", "#8fb0d3", "#5a8fc4", "#2a69a8", "#d98b4a"];
    const traces = phases.map(([n, name], i) => ({ type: "bar", orientation: "h", name, marker: { color: shades[i % 5] },
      y: rows.map((p) => p.key), x: rows.map((p) => (p.m[n] ? p.m[n][0] * 1000 : null)),
      text: rows.map((p) => (p.m[n] ? `${esc(p.name)}<br>${name}: ${said(n, p.m[n][0])}` : "")), textposition: "none",
      hovertemplate: "%{text}<extra></extra>" }));
    drawBars(box, traces, rows, "Process start to first answer (ms)");
  }
  function drawRoofline() {
    const box = $("plot-roofline");
    if (!box) return;
    const mean = (p) => (p.m.latency_mean ? p.m.latency_mean[0] : p.least);
    const rows = rowsOf($("roofline-rows"), shown().filter((p) => p.least !== undefined), drawRoofline);
    const said = (p) => `${esc(p.name)}<br>${esc(p.run)}<br>least time ${digits(p.least * 1000)} ms, mean time ${digits(mean(p) * 1000)} ms: ` +
      `${(100 * p.least / mean(p)).toFixed(1)}% of the peak`;
    const bar = (name, shade, of) => ({ type: "bar", orientation: "h", name, marker: { color: shade }, y: rows.map((p) => p.key),
      x: rows.map((p) => of(p) * 1000), text: rows.map(said), textposition: "none", hovertemplate: "%{text}<extra></extra>" });
    drawBars(box, [bar("least time by the peaks", "#2a69a8", (p) => p.least),
      bar("the rest", "#b4bcc6", (p) => Math.max(0, mean(p) - p.least))], rows, "Mean time of one call (ms)");
  }
  function drawBars(box, traces, rows, text) {
    box.style.height = `${110 + (box.clientWidth < 560 ? 40 : 28) * rows.length}px`;
    put(box, traces, layout({ barmode: "stack", bargap: 0.4, margin: { l: 20, r: 16, t: 56, b: 46 },
      legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0, traceorder: "normal" },
      xaxis: { title: { text } }, yaxis: rowAxis(rows, box.clientWidth) }));
  }
  function drawDevice() {
    for (const name of document.querySelectorAll("[data-device]")) name.textContent = device().name;
    drawTradeoff();
  }
  function drawBelow() { drawLatency(); drawRoofline(); drawStartup(); }
  function drawAll() {
    if (!window.Plotly) return;
    drawDevice(); drawBelow();
  }

  /* ---- tables ---- */
  function value(row, index) {
    const cell = row.cells[index];
    return cell.dataset.sort !== undefined ? cell.dataset.sort : cell.textContent.trim();
  }
  function sortBy(th) {
    const table = th.closest("table"), index = th.cellIndex, body = table.tBodies[0];
    const down = th.getAttribute("aria-sort") === "ascending";
    for (const other of th.parentNode.cells) other.setAttribute("aria-sort", "none");
    th.setAttribute("aria-sort", down ? "descending" : "ascending");
    const numeric = th.classList.contains("num");
    const collator = new Intl.Collator("en", { numeric: true });
    const compare = (a, b) => (numeric ? Number(a) - Number(b) : collator.compare(a, b));
    const rows = [...body.rows].map((row) => [value(row, index), row]);
    // What has no value stays last, in both directions.
    rows.sort(([a], [b]) => (a === "" || b === "" ? (a === "") - (b === "") : compare(a, b) * (down ? -1 : 1)));
    body.append(...rows.map(([, row]) => row));
    filter(table);
  }
  /* A long table shows its first rows until it is asked for the others, on a phone every one: there a row is a card. */
  const FEW = 20, phone = matchMedia("(max-width: 720px)");
  function more(table, count, most) {
    const button = $(`${table.id}-more`);
    if (!button) return;
    button.hidden = count <= most;
    button.textContent = `Show all ${count}`;
  }
  function filter(table) {
    const text = document.querySelector(`[data-filter="${table.id}"]`);
    const status = document.querySelector(`select[data-status="${table.id}"]`);
    const words = text ? text.value.toLowerCase().split(/\s+/).filter(Boolean) : [];
    const few = phone.matches ? FEW : Number(table.dataset.most) || Infinity;
    const most = printing || table.dataset.whole ? Infinity : few;
    let count = 0;
    for (const row of table.tBodies[0].rows) {
      const content = row.textContent.toLowerCase();
      const hit = words.every((w) => content.includes(w)) &&
        (!status || !status.value || (row.dataset.status || "").split(" ").includes(status.value));
      count += hit;
      row.hidden = !hit || count > most;
    }
    more(table, count, most);
    const output = document.querySelector(`[data-count="${table.id}"]`);
    if (output) output.textContent = `${count} of ${table.tBodies[0].rows.length} ${output.dataset.what}`;
  }
  function setUpTables(part) {
    // On a phone each row is a card, in which every cell says what it is.
    for (const table of part.querySelectorAll("table.stack")) {
      const heads = [...table.tHead.rows[0].cells].map((th) => th.textContent.trim());
      for (const row of table.tBodies[0].rows) for (const cell of row.cells) cell.dataset.head = heads[cell.cellIndex];
    }
    for (const table of part.querySelectorAll("table.data")) {
      for (const th of table.tHead.rows[0].cells) th.querySelector("button").addEventListener("click", () => sortBy(th));
      for (const control of document.querySelectorAll(`[data-filter="${table.id}"], select[data-status="${table.id}"]`)) {
        // A select changed by assistive technology may send 'change' alone.
        for (const event of ["input", "change"]) control.addEventListener(event, () => filter(table));
      }
      const button = Object.assign(document.createElement("button"), { type: "button", id: `${table.id}-more`, className: "more", hidden: true });
      button.addEventListener("click", () => { table.dataset.whole = "yes"; filter(table); });
      table.after(button);
      filter(table);
    }
  }
  setUpTables(document);
  const filterAll = () => { for (const table of document.querySelectorAll("table.data")) filter(table); };
  phone.addEventListener("change", filterAll);
  /* Until all of the page is laid out nobody knows how far down a place in it is. */
  const layOut = () => document.documentElement.classList.add("whole");
  /* A link to a method or condition opens the block that holds it. */
  async function reveal() {
    if (location.hash.length < 2) return;
    layOut();
    if (/^#[MC]\d+$/.test(location.hash)) await unpackMeasurements();
    const at = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!at) return;
    if (at.closest("details")) at.closest("details").open = true;
    at.scrollIntoView();
  }
  addEventListener("hashchange", reveal);

  /* On paper a reason stands in a row of its own: its column is far too narrow. */
  function spread() {
    for (const text of document.querySelectorAll(".verdict-cell p")) {
      const row = text.closest("tr"), below = document.createElement("tr");
      if (row.hidden) continue;
      below.className = "spread";
      below.append(Object.assign(document.createElement("td"), { colSpan: row.cells.length, textContent: text.textContent }));
      row.after(below);
    }
  }
  const opened = [];
  addEventListener("beforeprint", () => {
    printing = true;
    // The measurements are most of the pages: they are printed when they are open.
    for (const d of document.querySelectorAll("details:not([open]):not(#all-measurements)")) { d.open = true; opened.push(d); }
    filterAll();
    spread();
    drawAll();
  });
  addEventListener("afterprint", () => {
    printing = false;
    for (const row of document.querySelectorAll("tr.spread")) row.remove();
    for (const d of opened.splice(0)) d.open = false;
    filterAll();
    drawAll();
  });
  /* What stands packed in this page. */
  const unpacks = typeof DecompressionStream !== "undefined";
  function unpack(id) {
    const text = atob($(id).textContent.trim()), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }
  /* Of many measurements the table is most of the page: it is made when it is opened. */
  let measurements = null;
  function unpackMeasurements() {
    const script = $("packed-measurements");
    measurements = measurements || (async () => {
      if (!script) return;
      const box = document.createElement("div");
      // Our own page, its texts escaped when it was written.
      if (unpacks) box.innerHTML = await unpack("packed-measurements");
      else box.append("This browser is too old to unpack them; edgewise report -o report.md writes them as text.");
      script.replaceWith(box);
      setUpTables(box);
    })();
    return measurements;
  }
  if ($("all-measurements")) $("all-measurements").addEventListener("toggle", unpackMeasurements);
  reveal();

  async function runPlotly() {
    const script = document.createElement("script");
    script.textContent = await unpack("plotly"); // its own file
    document.head.append(script);
  }
  async function plots() {
    if (!data.devices.length || !Object.keys(data.metrics).length) { $("tradeoff").hidden = true; return; }
    if (!unpacks) { $("no-plots").hidden = false; return; }
    setUpAxes();
    await runPlotly();
    drawDevice();
    // What is seen first is shown before what stands below is prepared.
    await new Promise((shown) => requestAnimationFrame(() => setTimeout(shown)));
    drawBelow();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
    let width = innerWidth;
    addEventListener("resize", () => { if ((width < 720) !== (innerWidth < 720)) drawAll(); width = innerWidth; });
  }
  // Let the page show before the plots are made.
  setTimeout(() => plots().then(() => { document.documentElement.dataset.ready = "yes"; setTimeout(layOut, 200); }), 0);
})();
