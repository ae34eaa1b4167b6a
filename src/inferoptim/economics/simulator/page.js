// The page: reads the data, draws the controls once a language, and everything that follows from them at each change.
"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const byName = Object.fromEntries(DATA.inputs.map((i) => [i.name, i]));
  const esc = charts.esc, app = document.getElementById("app");
  const fresh = () => ({
    values: Object.fromEntries(DATA.inputs.map((i) => [i.name, i.value])),
    touched: {},
    levers: DATA.levers.map((l) => ({...l})),
    chosen: DATA.chosen,
    output: "npv",
    swing: DATA.inputs.some((i) => i.range) || DATA.levers.some((l) => l.range) ? "stated" : "ten",
  });
  let state = fresh(), language = DATA.language, timer = 0;

  // --- words and figures ----------------------------------------------------------------------------------------
  const t = (key, holes) => {
    const text = DATA.texts[language][key];
    if (text === undefined) throw new Error(`no text ${key}`);
    return Object.entries(holes || {}).reduce((s, [k, v]) => s.replaceAll(`{${k}}`, v), text);
  };
  const number = (v, options) => new Intl.NumberFormat(language, options).format(v);
  const figure = (v) => number(v, {maximumSignificantDigits: Math.abs(v) >= 1000 ? Math.max(4, String(Math.trunc(Math.abs(v))).length) : 4});
  const short = (v) => number(v, Math.abs(v) >= 1e4 ? {notation: "compact", maximumSignificantDigits: 3} : {maximumSignificantDigits: 3});
  const percent = (v, digits = 0) => number(v, {style: "percent", maximumFractionDigits: digits, minimumFractionDigits: 0});
  const money = (v, exact) => number(v, {
    style: "currency", currency: DATA.currency,
    ...(Math.abs(v) >= 1e4 && !exact ? {notation: "compact", maximumSignificantDigits: 3}
      : Math.abs(v) >= 1000 ? {maximumFractionDigits: 0} : {maximumSignificantDigits: 3, minimumFractionDigits: 0}),
  });
  const unit = (item, v) => {
    if (item.unit === "share") return percent(v, 1);
    if (item.unit === "money") return money(v);
    return figure(v);
  };

  // --- the state as the model wants it ---------------------------------------------------------------------------
  // A range moves with its slider: same width relative to its mode.
  function movedRange(range, value) {
    if (!range || value === range.mode) return range;
    const to = range.mode !== 0 ? (end) => end * value / range.mode : (end) => end + value;
    const clip = (v) => Math.min(Math.max(v, range.bounds[0]), range.bounds[1]);
    return {...range, low: clip(to(range.low)), mode: value, high: clip(to(range.high))};
  }
  function modelState() {
    const ranges = {};
    for (const item of DATA.inputs) {
      const range = movedRange(item.range, state.values[item.name]);
      if (range) ranges[item.name] = range;
    }
    const choice = DATA.choices.find((c) => c.id === state.chosen);
    if (choice) {
      delete ranges.factor;
      if (choice.range) ranges.factor = choice.range;
    }
    return {values: {...state.values, ...(choice ? {factor: choice.factor} : {})}, ranges, levers: state.levers, whole: DATA.whole};
  }
  function tenPercent(current) {
    const ranges = {};
    for (const item of DATA.inputs) {
      const v = model.assemble(current, {})[item.name];
      if (v === 0 || item.name === "horizon_months" || item.name === "gpus_per_node" || (item.name === "pue" && !state.values.power_w)) continue;
      if (item.name === "factor" && state.levers.length) continue;
      const limit = (end) => Math.min(Math.max(end, item.low + (item.strict ? 1e-12 : 0)), item.high);
      const ends = [limit(v * 0.9), limit(v * 1.1)].sort((a, b) => a - b);
      ranges[item.name] = {low: ends[0], mode: v, high: ends[1]};
    }
    for (const l of state.levers) if (l.on) ranges[l.name] = {low: l.factor * 0.9, mode: l.factor, high: l.factor * 1.1};
    return ranges;
  }

  // --- controls ---------------------------------------------------------------------------------------------------
  const travel = (item) => {
    const [low, high, scale] = item.slider, log = scale === "log";
    const span = log ? Math.log(high / low) : high - low;
    return {
      to: (v) => Math.round(1000 * Math.min(1, Math.max(0, log ? Math.log(Math.max(v, low) / low) / span : (v - low) / span))),
      from: (p) => {
        let v = log ? low * Math.exp(p / 1000 * span) : low + p / 1000 * span;
        if (item.whole) return Math.round(v);
        if (v !== 0) v = Number(v.toPrecision(log ? 3 : 4));
        return item.unit === "share" ? Math.round(v * 1000) / 1000 : v;
      },
    };
  };
  const accepted = (item, v) => Number.isFinite(v) && v >= item.low && v <= item.high && !(item.strict && v === item.low)
    && !(item.whole && v !== Math.trunc(v));
  const typed = (item, v) => (item.unit === "share" ? `${number(Number((v * 100).toPrecision(12)), {maximumFractionDigits: 10})} %`
    : number(v, {maximumFractionDigits: 10}));
  const parsed = (item, text) => {
    const share = /%\s*$/.test(text), bare = text.replace(/[\s%\u00a0\u202f]/g, "").replaceAll("−", "-");
    const v = Number(language === "fr" ? bare.replace(",", ".") : bare.replaceAll(",", ""));
    return bare === "" ? NaN : share ? v / 100 : v;
  };
  const bounds = (item) => `${item.strict ? "> " : "≥ "}${figure(item.low)} · ≤ ${figure(item.high)}`;

  function field(item) {
    const assumed = item.assumed && !(item.name in state.touched);
    const range = item.range ? `<div class="hint" data-range="${item.name}"></div>` : "";
    return `<div class="field${assumed ? " assumed" : ""}" data-field="${item.name}"><label for="t-${item.name}">${esc(t("in." + item.name))}</label>`
      + `<div class="row"><input type="range" min="0" max="1000" step="1" data-name="${item.name}" aria-label="${esc(t("in." + item.name))}">`
      + `<input type="text" inputmode="decimal" id="t-${item.name}" data-name="${item.name}"></div>${range}</div>`;
  }
  function picks() {
    if (DATA.choices.length) {
      const most = Math.min(2, Math.max(1, ...DATA.choices.map((c) => c.factor)));
      return `<p class="help">${esc(t("choice.help"))}</p>` + DATA.choices.map((c) => {
        const r = c.range, ix = number(100 * c.factor, {maximumFractionDigits: 1});
        const ends = r ? ` [${number(100 * r.low, {maximumFractionDigits: 1})} – ${number(100 * r.high, {maximumFractionDigits: 1})}]` : "";
        return `<label class="pick"><input type="radio" name="choice" value="${esc(c.id)}"${c.id === state.chosen ? " checked" : ""}>`
          + `<span>${esc(c.label)}</span><span class="ix">${ix}${ends}</span>`
          + `<span class="track"><i class="highEnd" style="left:0;width:${Math.min(100, c.factor / most * 100).toFixed(1)}%"></i></span>`
          + c.caveats.map((v) => `<small class="warn">${esc(t("caveat"))} : ${esc(v)}</small>`).join("") + "</label>";
      }).join("");
    }
    if (DATA.levers.length) {
      return `<p class="help">${esc(t("lever.help"))}</p>` + state.levers.map((l, i) =>
        `<label class="pick"><input type="checkbox" data-lever="${i}"${l.on ? " checked" : ""}><span>${esc(l.label)}</span>`
        + `<span class="ix">× ${figure(l.factor)}</span><small>${esc(t("source", {v: l.source}))}</small></label>`).join("");
    }
    return field(byName.factor);
  }
  const GROUPS = ["levers", "traffic", "price", "project", "speed", "api", "energy"];
  const CHARTS = ["flow", "bill", "tornado", "api"];

  function build() {
    document.documentElement.lang = language;
    const open = Object.fromEntries([...app.querySelectorAll("details")].map((d) => [d.dataset.group, d.open]));
    const wide = window.matchMedia("(min-width:48rem)").matches;
    const groups = GROUPS.map((g) => {
      const inside = g === "levers" ? picks() : DATA.inputs.filter((i) => i.group === g).map(field).join("");
      const isOpen = g in open ? open[g] : g === "levers" || g === "traffic" || (wide && g === "price");
      return `<details class="group" data-group="${g}"${isOpen ? " open" : ""}><summary>${esc(t("group." + g))}</summary>${inside}</details>`;
    }).join("");
    const outs = ["npv", "per_million_output_after", "saving_per_year_realisable", "payback_months"];
    const select = (name, options) => `<select data-select="${name}">${options.map(([v, label]) => `<option value="${v}"${state[name] === v ? " selected" : ""}>${esc(label)}</option>`).join("")}</select>`;
    const tools = `<div class="tools">${esc(t("tornado.of"))} ${select("output", outs.map((o) => [o, t("out." + o)]))} ${select("swing", [["stated", t("tornado.stated")], ["ten", t("tornado.ten")]])}</div>`;
    const boxes = CHARTS.map((c) => `<section class="chart"><h2>${esc(t("chart." + c))}</h2>${c === "tornado" ? tools : `<div class="legend" data-legend="${c}"></div>`}`
      + `<div data-chart="${c}"></div><div class="readout"></div></section>`).join("");
    const title = DATA.title || t("title");
    app.innerHTML = `<header><div><h1>${esc(title)}</h1><p>${esc(t("lead"))}</p></div>`
      + `<div class="langs">${["en", "fr"].map((l) => `<button type="button" data-lang="${l}" aria-pressed="${l === language}">${l.toUpperCase()}</button>`).join("")}</div></header>`
      + `<p class="says" aria-live="polite"></p><div class="kpis"></div>`
      + `<div class="cols"><div class="controls">${groups}`
      + `<div class="actions"><button type="button" data-do="save">${esc(t("save"))}</button><button type="button" data-do="link">${esc(t("link"))}</button>`
      + `<button type="button" data-do="reset">${esc(t("reset"))}</button></div></div><div class="charts">${boxes}</div></div>`
      + `<div class="handy" aria-hidden="true"></div><p class="help assumptions"></p>${DATA.notes.length ? `<ul class="notes">${DATA.notes.map((n) => `<li>${esc(n)}</li>`).join("")}</ul>` : ""}<footer></footer>`;
    sync();
    update(true);
  }
  // Sliders and fields to the state.
  function sync(except) {
    for (const input of app.querySelectorAll("input[data-name]")) {
      const item = byName[input.dataset.name], v = state.values[item.name];
      if (input !== except) input.value = input.type === "range" ? travel(item).to(v) : typed(item, v);
      if (input.type === "text") input.setAttribute("aria-invalid", "false");
    }
  }

  // --- what follows from the controls ------------------------------------------------------------------------------
  function update(atOnce) {
    const current = modelState(), x = model.assemble(current, {}), now = model.computeWithFlow(x);
    clearTimeout(timer);
    const ranges = model.rangesOf(current);
    const withIntervals = () => draw(current, x, now, model.spreads(current, DATA.outputs, DATA.draws));
    if (atOnce === true) withIntervals();
    else {
      draw(current, x, now, {});  // the figures follow the hand, the 10 000 draws wait for it to rest
      if (Object.keys(ranges).length) timer = setTimeout(withIntervals, 150);
    }
    for (const hint of app.querySelectorAll("[data-range]")) {
      const item = byName[hint.dataset.range], r = current.ranges[item.name];
      hint.textContent = r ? `${unit(item, r.low)} – ${unit(item, r.high)}` : "";
    }
    const assumed = DATA.inputs.filter((i) => i.assumed && !(i.name in state.touched)).length;
    app.querySelector(".assumptions").textContent = assumed ? `○ ${t("assumed", {n: assumed, total: DATA.inputs.length})}` : t("allStated");
    app.querySelector("footer").textContent = Object.keys(ranges).length ? t("foot", {draws: figure(DATA.draws)}) : t("footNoRange");
  }

  function draw(current, x, now, spread) {
    const f = now.figures;
    const within = (name, format) => {
      const s = spread[name];
      return s && s.low !== null && s.low !== s.high ? t("range", {low: format(s.low), high: format(s.high)}) : "";
    };
    const ranges = state.swing === "ten" ? tenPercent(current) : model.rangesOf(current);
    const bars = model.tornado(current, state.output, ranges).filter((b) => b.atLow !== b.atHigh).slice(0, 8);
    sentence(f, x, within, bars);
    cards(f, x, within, spread);
    const nameOf = (n) => (byName[n] ? t("in." + n) : n.replace(/^lever: /, ""));
    const showInput = (n, v) => (byName[n] ? unit(byName[n], v) : `× ${figure(v)}`);
    const show = state.output === "payback_months" ? figure : state.output === "per_million_output_after" ? (v) => money(v) : money;
    const host = (name) => app.querySelector(`[data-chart="${name}"]`);
    const centre = f[state.output];
    if (!bars.length || Number.isNaN(centre)) host("tornado").innerHTML = `<p class="help">${esc(t("tornado.none"))}</p>`;
    else charts.tornado(host("tornado"), bars.map((b) => ({...b, label: nameOf(b.name), low: showInput(b.name, b.inputLow), high: showInput(b.name, b.inputHigh)})), centre, show);
    const month = (v) => number(v, {maximumFractionDigits: 0});
    const pay = f.payback_months;
    charts.lines(host("flow"), [{points: now.flow.line.map((v, i) => [i, v]), cls: "after", label: ""}], {
      x: month, y: (v) => money(v), xName: t("chart.month"), label: t("chart.flow"), area: true,
      marks: Number.isNaN(pay) ? [] : [{x: pay, y: now.flow.line[pay], label: t("kpi.month", {v: month(pay)})}],
    });
    const bills = [{points: charts.steps(now.flow.before), cls: "before", label: t("chart.today")}, {points: charts.steps(now.flow.after), cls: "after", label: t("chart.after")}];
    app.querySelector('[data-legend="bill"]').innerHTML = charts.legend(bills);
    charts.lines(host("bill"), bills, {x: month, y: (v) => money(v), xName: t("chart.month"), label: t("chart.bill")});
    apiChart(host("api"), f, x, now);
  }

  function apiChart(host, f, x, now) {
    const legend = app.querySelector('[data-legend="api"]');
    if (!(now.api > 0)) {
      legend.innerHTML = ""; host.onpointermove = host.onpointerleave = null;
      host.innerHTML = `<p class="help">${esc(t("chart.noApi"))}</p>`;
      return;
    }
    const far = Math.max(x.requests_per_day * 1.5, Number.isNaN(f.break_even_requests_per_day) ? 0 : f.break_even_requests_per_day * 2);
    const node = x.gpus_per_node * x.gpu_hour_price * 24, own = [], api = [];
    for (let i = 0; i <= 240; i++) {
      const volume = far * i / 240;
      own.push([volume, Math.max(1, Math.ceil(volume / now.nodeRequests - 1e-9)) * node]);
      api.push([volume, volume * now.api]);
    }
    const series = [{points: own, cls: "after", label: t("chart.own")}, {points: api, cls: "before", label: t("chart.apiLine")}];
    legend.innerHTML = charts.legend(series);
    const mine = Math.max(1, Math.ceil(x.requests_per_day / now.nodeRequests - 1e-9)) * node;
    charts.lines(host, series, {x: short, y: (v) => money(v), xName: t("chart.requests"), label: t("chart.api"),
      marks: [{x: x.requests_per_day, y: mine, label: t("chart.you")}]});
  }

  function sentence(f, x, within, bars) {
    const cost = (v) => money(v), choice = DATA.choices.find((c) => c.id === state.chosen);
    const range = within("per_million_output_after", cost);
    const parts = [t("says", {name: choice ? `<b>${esc(choice.label)}</b>` : t("change"), cost: cost(f.per_million_output_after),
      costRange: range ? ` (${range})` : "", before: cost(f.per_million_output_before)})];
    const theory = f.saving_per_year_theoretical, real = f.saving_per_year_realisable;
    if (theory > 0) parts.push(t("saysSaves", {theory: money(theory), real: money(real), why: Math.abs(real - theory) > 1e-6 * theory ? t("saysWhy") : ""}));
    else parts.push(theory < 0 ? t("saysCosts", {theory: money(-theory)}) : t("saysSame"));
    if (theory > 0) {
      const paid = within("payback_months", (v) => figure(Math.round(v)));
      if (f.payback_months === 0) parts.push(t("saysFree"));
      else parts.push(Number.isNaN(f.payback_months) ? t("saysNever", {months: figure(x.horizon_months)})
        : t("saysPays", {month: figure(f.payback_months), range: paid ? ` (${paid})` : ""}));
    }
    if (bars.length && bars[0].atLow !== null && bars[0].atHigh !== null && state.output === "npv") {
      const first = bars[0].name;
      parts.push(t("saysDriver", {name: esc(byName[first] ? t("in." + first).toLowerCase() : first.replace(/^lever: /, ""))}));
    }
    app.querySelector(".says").innerHTML = parts.join(" ");
  }

  function cards(f, x, within, spread) {
    const made = [];
    const card = (value, name, small, tone) => made.push(`<div class="kpi"><div class="v ${tone || ""}">${value}</div><div class="n">${esc(name)}</div>`
      + small.filter(Boolean).map((s) => `<div class="s">${esc(s)}</div>`).join("") + "</div>");
    const sign = (v) => (v > 0 ? "good" : v < 0 ? "bad" : "");
    const or = (v, format) => (Number.isNaN(v) ? "–" : format(v));
    card(money(f.per_million_output_after), t("kpi.cost"), [t("kpi.before", {v: money(f.per_million_output_before)}), within("per_million_output_after", (v) => money(v))]);
    card(money(f.saving_per_year_realisable), t("kpi.saving"), [t("kpi.theory", {v: money(f.saving_per_year_theoretical)}), t("kpi.first", {v: money(f.saving_first_year)}), within("saving_per_year_realisable", money)], sign(f.saving_per_year_realisable));
    card(or(f.payback_months, (v) => t("kpi.month", {v: figure(v)})), t("kpi.payback"), [Number.isNaN(f.payback_months) ? t("none.payback") : "", within("payback_months", (v) => figure(Math.round(v))),
      spread.payback_months && spread.payback_months.undefined_share > 0 ? t("kpi.neverIn", {v: percent(spread.payback_months.undefined_share, 1)}) : ""]);
    card(or(f.roi, (v) => percent(v)), t("kpi.roi", {n: figure(x.horizon_months)}), [Number.isNaN(f.roi) ? t("none.roi") : t("kpi.gain", {gain: money(f.gain), cost: money(f.cost)}), within("roi", (v) => percent(v))], sign(f.roi));
    card(money(f.npv), t("kpi.npv"), [within("npv", money), spread.npv && spread.npv.low !== spread.npv.high ? t("kpi.chance", {v: percent(spread.npv.positive_share, 1)}) : ""], sign(f.npv));
    card(`${figure(f.paid_gpus_before)} → ${figure(f.paid_gpus_after)}`, t("kpi.gpus"), [t("kpi.exact", {a: figure(f.gpus_before), b: figure(f.gpus_after)})]);
    if (x.factor < 1) card(`${percent(x.factor - 1, 1)}`, t("kpi.bill"), [`${t("kpi.capacity")} +${percent(f.capacity_gain)} ${t("kpi.capacityHelp")}`]);
    card(or(f.break_even_requests_per_day, short), t("kpi.breakEven"), [Number.isNaN(f.api_per_month) ? t("none.api")
      : Number.isNaN(f.break_even_requests_per_day) ? t("none.breakEven") : t("kpi.always", {v: or(f.always_cheaper_requests_per_day, short)}),
      Number.isNaN(f.api_per_month) ? "" : t("kpi.api", {v: money(f.api_per_month)})]);
    card(or(f.kwh_per_million_output, (v) => `${figure(v)} kWh`), t("kpi.energy"), [Number.isNaN(f.kwh_per_million_output) ? t("none.energy")
      : Number.isNaN(f.carbon_g_per_million_output) ? "" : t("kpi.carbon", {v: `${figure(f.carbon_g_per_million_output)} g`})]);
    app.querySelector(".kpis").innerHTML = made.join("");
    app.querySelector(".handy").innerHTML = made.slice(0, 3).join("");
  }

  // --- actions ------------------------------------------------------------------------------------------------------
  function setInput(item, v, source) {
    if (!accepted(item, v)) {
      source.setAttribute("aria-invalid", "true"); source.title = bounds(item);
      return;
    }
    state.values[item.name] = v; state.touched[item.name] = true;
    source.title = "";
    source.closest(".field").classList.remove("assumed");
    sync(source);
    remember(); update();
  }
  app.addEventListener("input", (event) => {
    const el = event.target, item = byName[el.dataset.name];
    if (item) setInput(item, el.type === "range" ? travel(item).from(Number(el.value)) : parsed(item, el.value), el);
    if (el.dataset.lever !== undefined) { state.levers[Number(el.dataset.lever)].on = el.checked; remember(); update(); }
    if (el.name === "choice") { state.chosen = el.value; remember(); update(); }
    if (el.dataset.select) { state[el.dataset.select] = el.value; update(); }
  });
  app.addEventListener("change", (event) => { if (event.target.type === "text") sync(); });
  app.addEventListener("click", (event) => {
    const el = event.target;
    if (el.dataset.lang) { language = el.dataset.lang; build(); app.querySelector(`[data-lang="${language}"]`).focus(); }
    if (el.dataset.do === "reset") { state = fresh(); remember(); build(); }
    if (el.dataset.do === "link") { navigator.clipboard.writeText(location.href).then(() => { el.textContent = t("linked"); }, () => {}); }
    if (el.dataset.do === "save") {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([scenarioFile()], {type: "text/plain"}));
      link.download = "scenario.toml"; link.click();
      URL.revokeObjectURL(link.href);
    }
  });

  // What `inferoptim roi scenario.toml` reads back: only what was stated, at the start or here.
  function scenarioFile() {
    const current = modelState(), text = JSON.stringify;
    const show = (r, v) => (r ? `{ low = ${r.low}, mode = ${r.mode}, high = ${r.high}, shape = ${text(r.shape)} }` : String(v));
    let out = `title = ${text(DATA.title)}\ncurrency = ${text(DATA.currency)}\n\n[inputs]\n`;
    for (const item of DATA.inputs) {
      if (item.assumed && !(item.name in state.touched)) continue;
      if (item.name === "factor" && state.levers.length) continue;
      out += `${item.name} = ${show(current.ranges[item.name], current.values[item.name])}\n`;
    }
    for (const l of state.levers) {
      out += `\n[[lever]]\nname = ${text(l.label)}\nfactor = ${show(l.range, l.factor)}\nsource = ${text(l.source)}\non = ${l.on}\n`;
    }
    return out;
  }

  // The state in the address: a reload keeps it, a link carries it.
  function remember() {
    const parts = Object.keys(state.touched).map((n) => `${n}=${state.values[n]}`);
    state.levers.forEach((l, i) => { if (l.on !== DATA.levers[i].on) parts.push(`lever${i}=${l.on ? 1 : 0}`); });
    if (state.chosen !== DATA.chosen) parts.push(`choice=${encodeURIComponent(state.chosen)}`);
    try { history.replaceState(null, "", parts.length ? `#${parts.join("&")}` : location.pathname + location.search); } catch { /* a sandboxed frame has no history */ }
  }
  function recall() {
    for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
      const item = byName[name], lever = /^lever(\d+)$/.exec(name);
      if (item && accepted(item, Number(text))) { state.values[name] = Number(text); state.touched[name] = true; }
      if (lever && state.levers[lever[1]]) state.levers[lever[1]].on = text === "1";
      if (name === "choice" && DATA.choices.some((c) => c.id === text)) state.chosen = text;
    }
  }

  let width = window.innerWidth;
  window.addEventListener("resize", () => { if (width !== window.innerWidth) { width = window.innerWidth; update(); } });
  recall();
  build();
  window.simulator = {modelState, scenarioFile, outputs: DATA.outputs, model};
})();
