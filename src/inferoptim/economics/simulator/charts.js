// Charts of the simulator: plain SVG and boxes, redrawn whole at each change. Colours come from the style sheet.
"use strict";
const charts = (() => {
  const esc = (text) => String(text).replace(/[&<>"]/g, (c) => ({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}[c]));

  // Round steps that cover [low, high]: 1, 2 or 5 times a power of ten.
  function ticks(low, high, count) {
    const span = high - low || 1, raw = span / count, power = Math.pow(10, Math.floor(Math.log10(raw)));
    const step = [1, 2, 5, 10].find((m) => m * power >= raw) * power;
    const found = [];
    for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) found.push(Math.abs(v) < step * 1e-9 ? 0 : v);
    return found;
  }

  // series: [{points: [[x, y]], cls, label}] ; options: {x, y: formatters, xName, marks: [{x, y, label}], height, area}
  function lines(host, series, options) {
    const width = Math.max(260, host.clientWidth), height = options.height || 220;
    const pad = {left: 62, right: 14, top: 12, bottom: 38};
    const all = series.flatMap((s) => s.points), xs = all.map((p) => p[0]), ys = all.map((p) => p[1]);
    const x0 = Math.min(...xs), x1 = Math.max(...xs), floor = Math.min(0, ...ys), top = Math.max(0, ...ys) || 1;
    const y0 = floor, y1 = top + (top - floor) * 0.06;
    const px = (x) => pad.left + (x - x0) / (x1 - x0 || 1) * (width - pad.left - pad.right);
    const py = (y) => height - pad.bottom - (y - y0) / (y1 - y0 || 1) * (height - pad.top - pad.bottom);
    const path = (points) => points.map((p, i) => `${i ? "L" : "M"}${px(p[0]).toFixed(1)} ${py(p[1]).toFixed(1)}`).join("");
    let out = `<svg width="${width}" height="${height}" role="img" aria-label="${esc(options.label)}">`;
    for (const y of ticks(y0, y1, 4)) {
      out += `<line class="${y === 0 ? "zero" : "grid"}" x1="${pad.left}" x2="${width - pad.right}" y1="${py(y)}" y2="${py(y)}"/>`
        + `<text class="tick" x="${pad.left - 7}" y="${py(y) + 4}" text-anchor="end">${esc(options.y(y))}</text>`;
    }
    for (const x of ticks(x0, x1, width < 420 ? 4 : 7)) {
      out += `<text class="tick" x="${px(x)}" y="${height - pad.bottom + 16}" text-anchor="middle">${esc(options.x(x))}</text>`;
    }
    out += `<text class="tick" x="${width - pad.right}" y="${height - 5}" text-anchor="end">${esc(options.xName)}</text>`;
    if (options.area) {
      const s = series[0];
      out += `<path class="area" d="${path(s.points)}L${px(x1)} ${py(0)}L${px(x0)} ${py(0)}Z"/>`;
    }
    for (const s of series) out += `<path class="line ${s.cls}" d="${path(s.points)}"/>`;
    for (const m of options.marks || []) {
      const anchor = px(m.x) > width * 0.7 ? "end" : "start", shift = anchor === "end" ? -9 : 9;
      out += `<circle class="mark" cx="${px(m.x)}" cy="${py(m.y)}" r="5"/>`
        + `<text class="marked" x="${px(m.x) + shift}" y="${Math.max(14, py(m.y) - 9)}" text-anchor="${anchor}">${esc(m.label)}</text>`;
    }
    host.innerHTML = out + `<line class="cursor" y1="${pad.top}" y2="${height - pad.bottom}" visibility="hidden"/></svg>`;
    const cursor = host.querySelector(".cursor"), note = host.parentElement.querySelector(".readout");
    host.onpointermove = (event) => {
      const at = x0 + (event.clientX - host.getBoundingClientRect().left - pad.left) / (width - pad.left - pad.right) * (x1 - x0);
      const nearest = (points) => points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
      const x = nearest(series[0].points)[0];
      cursor.setAttribute("x1", px(x)); cursor.setAttribute("x2", px(x)); cursor.setAttribute("visibility", "visible");
      note.textContent = `${options.xName} ${options.x(x)} : `
        + series.map((s) => `${s.label ? s.label + " " : ""}${options.y(nearest(s.points)[1])}`).join(" · ");
    };
    host.onpointerleave = () => { cursor.setAttribute("visibility", "hidden"); note.textContent = ""; };
  }

  function legend(series) {
    return series.map((s) => `<span><i class="key ${s.cls}"></i>${esc(s.label)}</span>`).join("");
  }

  // A month holds one bill: draw it as a step.
  const steps = (values) => values.flatMap((value, i) => [[i, value], [i + 1, value]]);

  // bars: [{label, low, high (texts of the input's ends), atLow, atHigh}], centre: the figure now.
  function tornado(host, bars, centre, format) {
    const values = bars.flatMap((b) => [b.atLow, b.atHigh]).filter((v) => v !== null).concat(centre);
    const low = Math.min(...values), high = Math.max(...values), span = high - low || 1;
    const at = (v) => (v - low) / span * 100;
    host.innerHTML = bars.map((b) => {
      const ends = [b.atLow, b.atHigh].map((v) => (v === null ? centre : v));
      const part = (end, cls) => {
        const a = Math.min(at(end), at(centre)), b2 = Math.max(at(end), at(centre));
        return `<i class="${cls}" style="left:${a.toFixed(2)}%;width:${(b2 - a).toFixed(2)}%"></i>`;
      };
      const said = [b.atLow, b.atHigh].map((v) => (v === null ? "–" : format(v)));
      return `<div class="bar"><div class="barName"><b>${esc(b.label)}</b> <span>${esc(b.low)} → ${esc(b.high)}</span></div>`
        + `<div class="track">${part(ends[0], "lowEnd")}${part(ends[1], "highEnd")}<u style="left:${at(centre).toFixed(2)}%"></u></div>`
        + `<div class="barEnds">${esc(said[0])} → ${esc(said[1])}</div></div>`;
    }).join("");
  }

  return {lines, legend, steps, tornado, esc};
})();
