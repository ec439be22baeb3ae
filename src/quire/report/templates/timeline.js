// Memory over the run: both lines on one scale, the plan again magnified, its regions below.
function timeline(root, onSelect) {
  const chart = root.querySelector(".chart");
  const series = { before: data.before, plan: data.after };
  const state = { mode: "step", width: 0, marks: null };
  const peakOf = (s) => s.bytes.reduce((best, n, i) => (n > s.bytes[best] ? i : best), 0);
  const peaks = { before: peakOf(series.before), plan: peakOf(series.plan) };
  // A plan's bounds may lie above its moments, so the room is for both.
  const top = Math.max(data.peak, series.plan.bytes[peaks.plan] ?? 0);
  const highest = Math.max(data.baseline, series.before.bytes[peaks.before] ?? 0, top) || 1;
  const magnified = series.plan.bytes.length > 0 && highest / top > 2.2;

  const running = (seconds) => seconds.reduce((sums, s) => (sums.push(sums.at(-1) + s), sums), [0]);
  const times = { before: running(series.before.seconds), plan: running(series.plan.seconds) };
  const places = (which) => (state.mode === "time" ? times[which] : series[which].x);

  function draw(width) {
    state.width = width;
    const narrow = width < 600;
    const left = narrow ? 54 : 66;
    const right = width - 2;
    const end = Math.max(places("before").at(-1), places("plan").at(-1)) || 1;
    const x = (value) => left + (value / end) * (right - left);
    const limit = data.budget !== null && data.budget < highest * 1.6 ? data.budget : 0;
    const panels = [{ top: 20, height: narrow ? 190 : 250, max: Math.max(highest, limit) * 1.04, lines: ["before", "plan"] }];
    if (magnified) {
      const max = Math.max(top, data.budget !== null && data.budget < top * 2 ? data.budget : 0) * 1.12;
      panels.push({ top: panels[0].height + 66, height: narrow ? 120 : 150, max, lines: ["plan"] });
    }
    for (const panel of panels)
      panel.y = (nbytes) => panel.top + panel.height * (1 - nbytes / panel.max);
    const bottom = panels.at(-1).top + panels.at(-1).height;
    const depth = data.regions.length ? 1 + Math.max(...data.regions.map((r) => r.depth)) : 0;
    const height = bottom + 8 + depth * 9 + 22;

    const frame = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
    if (state.mode === "step") frame.append(...drawCuts(x, panels));
    panels.forEach((panel, i) => frame.append(...drawPanel(panel, { x, left, right, first: i === 0 })));
    if (magnified)
      frame.append(svg("text", { x: left, y: panels[1].top - 10, class: "strong" },
        `The plan alone, magnified ${short(round(magnification(...panels), 0))} ×`));
    frame.append(...drawBands(x, bottom + 8), ...drawBottom(x, { left, right, y: height - 5, end }));
    const named = root.querySelector(".key.budget");
    if (named && !panels.some((panel) => data.budget <= panel.max))
      named.textContent = `budget ${bytesText(data.budget)}, above this chart`;
    state.marks = { x, end, panels, cursor: svg("g", { class: "cursors" }), from: panels[0].top, to: bottom };
    frame.append(state.marks.cursor);
    chart.replaceChildren(frame);
    frame.addEventListener("pointermove", (event) => {
      const at = ((event.clientX - frame.getBoundingClientRect().left - left) / (right - left)) * end;
      if (at >= -end * 0.02 && at <= end * 1.02) select(Math.min(Math.max(at, 0), end * (1 - 1e-9)));
    });
    frame.addEventListener("pointerleave", reset);
  }

  // How much taller a byte stands in the lower panel.
  const magnification = (a, b) => (a.max / a.height) * (b.height / b.max);

  function drawPanel(panel, { x, left, right, first }) {
    const parts = [];
    for (const value of ticks(panel.max, 5, 2))
      parts.push(
        svg("line", { class: value ? "grid" : "axis", x1: left, x2: right, y1: panel.y(value), y2: panel.y(value) }),
        svg("text", { x: left - 8, y: panel.y(value) + 4, "text-anchor": "end" }, value ? bytesText(value) : "0"),
      );
    for (const which of panel.lines) {
      const { bytes } = series[which];
      if (!bytes.length) continue;
      const at = places(which);
      const path = bytes.map((n, i) => `V${panel.y(n).toFixed(1)}H${x(at[i + 1]).toFixed(1)}`).join("");
      const start = `M${x(at[0]).toFixed(1)} ${panel.y(0).toFixed(1)}`;
      parts.push(
        svg("path", { class: `area ${which}`, d: `${start}${path}V${panel.y(0)}Z` }),
        svg("path", { class: `line ${which}`, d: start + path, "data-points": bytes.length }),
      );
    }
    if (data.budget !== null && data.budget <= panel.max) {
      const y = panel.y(data.budget);
      parts.push(svg("line", { class: "limit", x1: left, x2: right, y1: y, y2: y }));
      if (!first || !magnified)
        parts.push(svg("text", { class: "limit-name halo", x: right, y: y - 5, "text-anchor": "end" }, `budget ${bytesText(data.budget)}`));
    }
    for (const which of panel.lines) {
      // Where the plan is magnified below, its label would only crowd the foot of this panel.
      if (!series[which].bytes.length || (which === "plan" && first && magnified)) continue;
      const i = peaks[which];
      const at = places(which);
      const cx = x((at[i] + at[i + 1]) / 2);
      const cy = panel.y(series[which].bytes[i]);
      const late = cx > (left + right) / 2;
      parts.push(svg("circle", { class: `dot ${which}`, cx, cy, r: 3.5 }),
        svg("text", { class: `peak halo ${which}`, x: cx + (late ? -8 : 8), y: cy - 6, "text-anchor": late ? "end" : "start" },
          `peak ${bytesText(series[which].bytes[i])}`));
    }
    return parts;
  }

  function drawBands(x, top) {
    const at = places("plan");
    const place = new Map(series.plan.step.map((step, i) => [step, i]).reverse());
    return data.regions.flatMap((region) => {
      const found = region.steps.map((s) => place.get(s)).filter((i) => i !== undefined);
      if (!found.length) return [];
      const [from, to] = [x(at[Math.min(...found)]), x(at[Math.max(...found) + 1])];
      return describe(svg("rect", {
        class: `band c${region.shape % 6}`, "data-region": region.name, rx: 1.5,
        x: from + 0.5, width: Math.max(to - from - 1, 1.5), y: top + region.depth * 9, height: 7,
      }), region);
    });
  }

  // Where each block of the model stands among the steps.
  function blocks() {
    const named = series.before.step.length ? "before" : "plan";
    const place = new Map(series[named].step.map((step, i) => [step, i]).reverse());
    return data.groups.flatMap((group) => {
      const [first, last] = [place.get(group.steps[0]), place.get(group.steps.at(-1))];
      if (first === undefined || last === undefined) return [];
      const at = places(named);
      const label = group.label.split(" · ").at(first * 2 > at.length ? -1 : 0);
      return [{ label, start: at[first], stop: at[last + 1] }];
    });
  }

  const drawCuts = (x, panels) => blocks().filter(({ start }) => start > 0).flatMap(({ start }) => panels.map(
    ({ top, height }) => svg("line", { class: "grid", x1: x(start), x2: x(start), y1: top, y2: top + height })));

  // By step: the blocks of the model. By time: seconds, since blocks stand at two places then.
  function drawBottom(x, { left, right, y, end }) {
    if (state.mode === "time")
      return ticks(end, state.width < 600 ? 4 : 9, 10).map((s) => {
        const last = x(s) > right - 20;
        return svg("text", { x: last ? right : x(s), y, "text-anchor": last ? "end" : s ? "middle" : "start" }, secondsText(s));
      });
    // The widest blocks are named first; a name that would touch another is left out.
    const taken = [];
    const wide = (label) => label.length * 6.2 + 8;
    return blocks().map(({ label, start, stop }) => {
      const half = wide(label) / 2;
      const middle = Math.min(Math.max((x(start) + x(stop)) / 2, left + half - 4), right - half + 4);
      return { label, span: stop - start, from: middle - half, to: middle + half };
    }).sort((a, b) => b.span - a.span || a.from - b.from).flatMap(({ label, from, to }) => {
      if (taken.some((other) => from < other.to && other.from < to)) return [];
      taken.push({ from, to });
      return svg("text", { x: (from + to) / 2, y, "text-anchor": "middle" }, label);
    });
  }

  const indexAt = (which, at) => {
    const edges = places(which);
    let [low, high] = [0, series[which].bytes.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (edges[middle] <= at) low = middle; else high = middle - 1;
    }
    return at < edges.at(-1) && high >= 0 ? low : -1;
  };

  function select(at) {
    const { x, panels, cursor, from, to } = state.marks;
    const chosen = { before: indexAt("before", at), plan: indexAt("plan", at) };
    state.at = at;
    const dots = panels.flatMap((panel) => panel.lines.filter((w) => chosen[w] >= 0).map((which) =>
      svg("circle", { class: `dot ${which}`, cx: x(at), cy: panel.y(series[which].bytes[chosen[which]]), r: 3.5 })));
    cursor.replaceChildren(svg("line", { class: "cursor", x1: x(at), x2: x(at), y1: from, y2: to }), ...dots);
    onSelect(chosen, false);
  }

  function reset() {
    state.at = undefined;
    state.marks?.cursor.replaceChildren();
    onSelect({ before: series.before.bytes.length ? peaks.before : -1, plan: series.plan.bytes.length ? peaks.plan : -1 }, true);
  }

  chart.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const which = series.before.bytes.length ? "before" : "plan";
    const now = state.at === undefined ? peaks[which] - by : indexAt(which, state.at);
    const next = Math.min(Math.max(now + by, 0), series[which].bytes.length - 1);
    select((places(which)[next] + places(which)[next + 1]) / 2);
  });
  chart.addEventListener("blur", reset);
  for (const button of root.querySelectorAll("[data-mode]"))
    button.addEventListener("click", () => {
      state.mode = button.dataset.mode;
      for (const other of root.querySelectorAll("[data-mode]"))
        other.setAttribute("aria-pressed", String(other === button));
      draw(state.width);
      reset();
    });
  onWidth(chart, draw);
  reset();
}
