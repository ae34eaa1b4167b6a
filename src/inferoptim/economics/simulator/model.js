// The model of the simulator: what scenario.py, business.py and uncertainty.py compute, line for line.
// A test runs both over a grid of inputs in a real browser and compares them to 1e-9 relative. No page, no network here.
"use strict";
const model = (() => {
  const HOURS_PER_YEAR = 8760, HOURS_PER_MONTH = 730, CEIL_SLACK = 1e-9, Z95 = 1.9599639845400536;

  const ratio = (a, b) => (b !== 0 && Number.isFinite(a / b) ? a / b : NaN);

  function paidGpus(needed, perNode, committed) {
    return Math.max(perNode * Math.ceil(needed / perNode - CEIL_SLACK), committed);
  }

  function cashFlow(x, gpus, factor, keepMonths) {
    const bill = x.gpu_hour_price * HOURS_PER_MONTH;
    let cumulative = -x.migration_cost, npv = -x.migration_cost;
    let payback = cumulative >= 0 ? 0 : NaN, gain = 0, theoretical = 0, firstYear = 0;
    const before = [], after = [], line = [cumulative];
    for (let month = 1; month <= Math.trunc(x.horizon_months); month++) {
      const needed = gpus * Math.pow(1 + x.growth_per_year, (month - 1) / 12);
      const neededAfter = x.ramp_months >= month ? needed : needed * factor;
      const held = x.commitment_months >= month ? x.committed_gpus : 0;
      const paidBefore = paidGpus(needed, x.gpus_per_node, held) * bill;
      const paidAfter = paidGpus(neededAfter, x.gpus_per_node, held) * bill;
      const saved = paidBefore - paidAfter, net = saved - x.run_cost_per_month;
      theoretical += (needed - neededAfter) * bill;
      gain += saved;
      if (month <= 12) firstYear += saved;
      cumulative += net;
      npv += net / Math.pow(1 + x.discount_rate, month / 12);
      if (Number.isNaN(payback) && cumulative >= 0) payback = month;
      if (keepMonths) { before.push(paidBefore); after.push(paidAfter); line.push(cumulative); }
    }
    const cost = x.migration_cost + x.run_cost_per_month * Math.trunc(x.horizon_months);
    return {before, after, line, theoretical, gain, cost, roi: ratio(gain - cost, cost), npv, payback, firstYear};
  }

  function breakEven(nodeCost, nodeUnits, apiCost) {
    const margin = apiCost * nodeUnits - nodeCost;
    const first = margin >= -CEIL_SLACK * nodeCost ? ratio(nodeCost, apiCost) : NaN;
    const nodes = ratio(nodeCost, margin > CEIL_SLACK * nodeCost ? margin : 0);
    const known = !Number.isNaN(nodes);
    const steps = Math.max(Math.ceil((known ? nodes : 1) - CEIL_SLACK), 1);
    return {first, always: known ? steps * ratio(nodeCost, apiCost) : NaN};
  }

  function computeWithFlow(x, keepMonths = true) {
    const price = x.gpu_hour_price, util = x.utilisation, factor = x.factor;
    const prefill = x.input_tokens * (1 - x.cache_hit) * x.gpu_s_per_m_input / 1e6;
    const decode = x.output_tokens * x.gpu_s_per_m_output / 1e6;
    const request = prefill + decode;
    const gpus = x.requests_per_day * request / 86400 / util;
    const perRequest = request / util * price / 3600;
    const perMillion = perRequest / x.output_tokens * 1e6;
    const moneyPerGpuS = price / 3600 / util * factor;
    const paidBefore = paidGpus(gpus, x.gpus_per_node, 0), paidAfter = paidGpus(gpus * factor, x.gpus_per_node, 0);
    const month = price * HOURS_PER_MONTH;
    const flow = cashFlow(x, gpus, factor, keepMonths);
    const cached = x.input_tokens * x.cache_hit;
    const api = ((x.input_tokens - cached) * x.api_input_price + cached * x.api_cached_price
      + x.output_tokens * x.api_output_price) / 1e6;
    const nodeRequests = ratio(x.gpus_per_node * 86400 * util, request * factor);
    const meets = breakEven(x.gpus_per_node * price * 24, nodeRequests, api);
    const kwh = x.power_w > 0
      ? request * factor / util / 3600 * x.power_w / 1000 * x.pue / x.output_tokens * 1e6 : NaN;
    const cut = 1 - factor, apart = x.gpu_s_per_m_input > 0;
    const figures = {
      gpus_before: gpus,
      gpus_after: gpus * factor,
      paid_gpus_before: paidBefore,
      paid_gpus_after: paidAfter,
      per_million_output_before: perMillion,
      per_million_output_after: perMillion * factor,
      per_million_input_apart_after: apart ? (1 - x.cache_hit) * x.gpu_s_per_m_input * moneyPerGpuS : NaN,
      per_million_output_apart_after: apart ? x.gpu_s_per_m_output * moneyPerGpuS : NaN,
      cost_index: 100 * factor,
      bill_per_month_before: paidBefore * month,
      bill_per_month_after: paidAfter * month,
      saving_per_year_theoretical: gpus * (1 - factor) * price * HOURS_PER_YEAR,
      saving_per_year_realisable: (paidBefore - paidAfter) * price * HOURS_PER_YEAR,
      saving_first_year: flow.firstYear,
      capacity_gain: cut / (1 - cut),
      gain: flow.gain,
      cost: flow.cost,
      roi: flow.roi,
      npv: flow.npv,
      payback_months: flow.payback,
      api_per_month: api > 0 ? x.requests_per_day * api * 365 / 12 : NaN,
      break_even_requests_per_day: meets.first,
      always_cheaper_requests_per_day: meets.always,
      kwh_per_million_output: kwh,
      carbon_g_per_million_output: x.carbon_g_per_kwh > 0 ? kwh * x.carbon_g_per_kwh : NaN,
    };
    return {figures, flow, api, nodeRequests};
  }

  // --- ranges -------------------------------------------------------------------------------------------------

  function mix32(value) {
    value ^= value >>> 16; value = Math.imul(value, 0x21f0aaad);
    value ^= value >>> 15; value = Math.imul(value, 0x735a2d97);
    return value ^ (value >>> 15);
  }

  const unitDraw = (key, index) => ((mix32(mix32(index + 1) ^ key) >>> 0) + 0.5) / 4294967296;

  // Source: Wichura, Algorithm AS 241 (PPND16), Applied Statistics 37 (1988); coefficients from the highest power down.
  const AS241 = {
    a: [2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
      13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608],
    b: [5226.495278852854561, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
      5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1],
    c: [7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258,
      3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734],
    d: [1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459,
      0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1],
    e: [2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386, 0.026532189526576123093,
      0.29656057182850489123, 1.7848265399172913358, 5.4637849111641143699, 6.6579046435011037772],
    f: [2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5, 7.868691311456132591e-4,
      0.0148753612908506148525, 0.13692988092273580531, 0.59983220655588793769, 1],
  };
  const poly = (c, r) => c.reduce((sum, value) => sum * r + value, 0);

  function normalQuantile(p) {
    const q = p - 0.5;
    if (Math.abs(q) <= 0.425) {
      const r = 0.180625 - q * q;
      return poly(AS241.a, r) * q / poly(AS241.b, r);
    }
    let r = Math.sqrt(-Math.log(q <= 0 ? p : 1 - p));
    const near = r <= 5;
    r -= near ? 1.6 : 5;
    const z = near ? poly(AS241.c, r) / poly(AS241.d, r) : poly(AS241.e, r) / poly(AS241.f, r);
    return q < 0 ? -z : z;
  }

  function rangeQuantile(range, u) {
    const {low, mode, high} = range;
    if (range.shape === "uniform") return low + u * (high - low);
    if (range.shape === "triangular") {
      const width = high - low;
      if (width === 0) return mode;
      return u * width <= mode - low ? low + Math.sqrt(u * width * (mode - low))
        : high - Math.sqrt((1 - u) * width * (high - mode));
    }
    const z = normalQuantile(u);
    return mode + (z < 0 ? (mode - low) / Z95 : (high - mode) / Z95) * z;
  }

  function quantile(sorted, share) {
    const at = (sorted.length - 1) * share, below = Math.floor(at), rest = at - below;
    const a = sorted[below], b = sorted[Math.min(below + 1, sorted.length - 1)];
    return rest >= 0.5 ? b - (b - a) * (1 - rest) : a + (b - a) * rest;
  }

  function rint(value) {  // halves to even, as numpy does
    const rounded = Math.round(value);
    return Math.abs(value % 1) === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
  }

  // `state`: {values: {name: number}, ranges: {name: range with key and bounds}, levers: [{name, factor, on, range?}] | []}
  function assemble(state, moved) {
    const x = {...state.values};
    for (const name of Object.keys(moved)) if (name in x) x[name] = moved[name];
    for (const name of state.whole) x[name] = rint(x[name]);
    if (state.levers.length) {
      x.factor = 1;
      for (const lever of state.levers) if (lever.on) x.factor *= lever.name in moved ? moved[lever.name] : lever.factor;
    }
    return x;
  }

  // Ranges in play: those of the inputs, and those of the levers that are on.
  function rangesOf(state) {
    const found = {...state.ranges};
    for (const lever of state.levers) if (lever.on && lever.range) found[lever.name] = lever.range;
    if (state.levers.length) delete found.factor;
    return found;
  }

  function spreads(state, outputs, draws) {
    const ranges = rangesOf(state), names = Object.keys(ranges);
    if (!names.length) return {};
    const kept = Object.fromEntries(outputs.map((name) => [name, new Float64Array(draws)]));
    const defined = Object.fromEntries(outputs.map((name) => [name, 0])), positive = {...defined};
    for (let i = 0; i < draws; i++) {
      const moved = {};
      for (const name of names) {
        const r = ranges[name], value = rangeQuantile(r, unitDraw(r.key, i));
        moved[name] = Math.min(Math.max(value, r.bounds[0]), r.bounds[1]);
      }
      const {figures} = computeWithFlow(assemble(state, moved), false);
      for (const name of outputs) {
        if (Number.isNaN(figures[name])) continue;
        kept[name][defined[name]++] = figures[name];
        if (figures[name] > 0) positive[name]++;
      }
    }
    const result = {};
    for (const name of outputs) {
      const count = defined[name], sorted = kept[name].subarray(0, count).sort();
      result[name] = count
        ? {low: quantile(sorted, 0.025), median: quantile(sorted, 0.5), high: quantile(sorted, 0.975),
           positive_share: positive[name] / count, undefined_share: 1 - count / draws}
        : {low: null, median: null, high: null, positive_share: 0, undefined_share: 1};
    }
    return result;
  }

  // Each range moved alone to its ends; widest swing first.
  function tornado(state, output, ranges) {
    const bars = Object.keys(ranges).map((name) => {
      const ends = [ranges[name].low, ranges[name].high].map((end) => {
        const value = computeWithFlow(assemble(state, {[name]: end}), false).figures[output];
        return Number.isNaN(value) ? null : value;
      });
      return {name, inputLow: ranges[name].low, inputHigh: ranges[name].high, atLow: ends[0], atHigh: ends[1]};
    });
    const swing = (bar) => (bar.atLow === null || bar.atHigh === null ? 0 : Math.abs(bar.atHigh - bar.atLow));
    return bars.sort((a, b) => swing(b) - swing(a));
  }

  return {computeWithFlow, assemble, rangesOf, spreads, tornado, normalQuantile, rangeQuantile, unitDraw};
})();
