// The program as sheets, one a block of the model; its regions are brackets on the left.
const FULL = { row: 15, rail: 9, font: 6.35 };
const WIDE = 262;
const MINI = { row: 5, rail: 6, width: 62 };

function graph(root) {
  const opened = new Set();
  const sheets = root.querySelector(".sheets");
  const links = new Map();
  for (const [from, to] of data.edges) {
    if (!links.has(from)) links.set(from, []);
    links.get(from).push(to);
  }
  const seen = (series) => new Map(series.step.map((step, i) => [step, series.bytes[i]]).reverse());
  const live = { before: seen(data.before), plan: seen(data.after) };

  let wide = WIDE;

  function draw() {
    const parts = [];
    let run = null;
    data.groups.forEach((group, i) => {
      if (group.like === i || opened.has(i)) {
        // A short sheet, such as the head, stands beside the small ones rather than alone.
        if (run && group.steps.length <= 6) return void run.append(full(group, -1));
        parts.push(full(group, opened.has(i) ? i : -1));
        run = null;
        return;
      }
      if (!run) parts.push((run = html("div", { class: "alike-sheets" })));
      run.append(mini(group, i));
      // Eighty layers beside one sheet would leave the page half empty.
      if (run.children.length === 24) run.classList.add("many");
    });
    sheets.replaceChildren(...parts);
  }

  // A region may run on into the next sheet: its bracket is then open at that end.
  function pieces(group) {
    const place = new Map(group.steps.map((step, row) => [step, row]));
    return data.regions.flatMap((region) => {
      const rows = region.steps.map((s) => place.get(s)).filter((row) => row !== undefined);
      if (!rows.length) return [];
      return [{
        region, from: Math.min(...rows), to: Math.max(...rows) + 1,
        begins: place.has(region.steps[0]), ends: place.has(region.steps.at(-1)),
      }];
    });
  }

  function full(group, index) {
    const inside = pieces(group);
    const depth = Math.max(0, ...inside.map((p) => p.region.depth + 1));
    const names = 10 + depth * FULL.rail + 6;
    const height = group.steps.length * FULL.row + 8;
    const arcs = edgesWithin(group);
    const edge = wide - (arcs.length ? 34 : 10);
    const frame = svg("svg", { width: wide, height, viewBox: `0 0 ${wide} ${height}` });
    // Only the outermost are tinted: one tint over another is a third colour.
    for (const { region, from, to } of inside.filter((piece) => !piece.region.depth))
      frame.append(svg("rect", {
        class: `tint c${region.shape % 6}`, "data-region": region.name, x: 10,
        y: from * FULL.row, width: edge - 6, height: (to - from) * FULL.row,
      }));
    group.steps.forEach((step, row) => {
      const y = row * FULL.row;
      const changed = row === 0 || group.within[row] !== group.within[row - 1];
      const sub = changed ? group.within[row] : "";
      if (changed && row) frame.append(svg("line", { class: "cut", x1: names, x2: edge, y1: y, y2: y }));
      const room = Math.floor((edge - names) / FULL.font) - (sub ? sub.length * 0.86 + 1 : 0);
      frame.append(svg("text", { x: names, y: y + 11 }, cut(text(step), Math.max(room, 8))));
      if (sub) frame.append(svg("text", { class: "sub", x: edge, y: y + 11 }, cut(sub, 18)));
    });
    frame.append(...arcs.map(({ from, to, a, b }) => {
      const bulge = Math.min(30, 6 + (to - from) * 1.5);
      const [y1, y2] = [(from + 0.5) * FULL.row, (to + 0.5) * FULL.row];
      return svg("path", { class: "edge", "data-a": a, "data-b": b,
        d: `M${edge + 3} ${y1}C${edge + 3 + bulge} ${y1} ${edge + 3 + bulge} ${y2} ${edge + 3} ${y2}` });
    }));
    group.steps.forEach((step, row) => frame.append(rowTarget(group, step, row, frame)));
    frame.append(...inside.map((piece) => bracket(piece, FULL)));
    const head = heading(group, `${group.steps.length} steps`);
    if (index >= 0) {
      const close = html("button", { class: "close", type: "button", "aria-label": `fold ${group.label}` }, "×");
      close.addEventListener("click", () => { opened.delete(index); draw(); });
      head.append(close);
    }
    return html("article", { class: "sheet" }, head, frame);
  }

  function mini(group, index) {
    const inside = pieces(group);
    const depth = Math.max(0, ...inside.map((p) => p.region.depth + 1));
    const height = group.steps.length * MINI.row + 8;
    const frame = svg("svg", { width: MINI.width, height, viewBox: `0 0 ${MINI.width} ${height}` });
    group.steps.forEach((step, row) => frame.append(svg("rect", {
      class: "stroke", x: 9 + depth * MINI.rail, y: row * MINI.row + 1.5, height: 2,
      width: Math.min(4 + text(step).length * 1.9, MINI.width - 17 - depth * MINI.rail),
    })));
    frame.append(...inside.map((piece) => bracket(piece, MINI)));
    const label = `${group.label}, like ${data.groups[group.like].label}; open`;
    const button = html("button", { class: "sheet", type: "button", "aria-label": label }, heading(group, ""), frame);
    button.addEventListener("click", () => { opened.add(index); hideTip(); highlight(null); draw(); });
    return button;
  }

  const heading = (group, note) =>
    html("header", {}, html("b", { title: group.label }, group.label), note ? html("span", {}, note) : null);
  const cut = (name, room) => (name.length > room ? `${name.slice(0, Math.floor(room) - 1)}…` : name);

  function bracket({ region, from, to, begins, ends }, size) {
    const x = (size === FULL ? 10 : 7) + region.depth * size.rail;
    const [y1, y2] = [from * size.row + 1.5, to * size.row - 1.5];
    const foot = size === FULL ? 5 : 3;
    const d = `${begins ? `M${x + foot} ${y1}H${x}` : `M${x} ${y1 - 1.5}`}V${ends ? `${y2}H${x + foot}` : y2 + 1.5}`;
    const line = svg("path", { class: `bracket c${region.shape % 6}`, "data-region": region.name, d });
    // A line is hard to point at; the rail it stands in is not.
    const rail = svg("rect", { x: x - 3, y: y1, width: size.rail, height: y2 - y1, fill: "transparent" });
    return describe(svg("g", {}, rail, line), region);
  }

  function edgesWithin(group) {
    const place = new Map(group.steps.map((step, row) => [step, row]));
    return group.steps.flatMap((a, from) => (links.get(a) ?? [])
      .filter((b) => place.get(b) > from + 1)
      .map((b) => ({ a, b, from, to: place.get(b) })));
  }

  function rowTarget(group, step, row, frame) {
    const target = svg("rect", { class: "row", x: 0, y: row * FULL.row, width: wide, height: FULL.row });
    const mark = (on) => {
      for (const path of frame.querySelectorAll(`[data-a="${step}"], [data-b="${step}"]`)) path.classList.toggle("on", on);
    };
    target.addEventListener("pointermove", (event) => {
      mark(true);
      const show = (which) => (live[which].has(step) ? bytesText(live[which].get(step)) : "–");
      showTip(event, text(step), text(group.modules[row]) || "(root)", `live bytes ${show("before")} → ${show("plan")}`);
    });
    target.addEventListener("pointerleave", () => { mark(false); hideTip(); });
    return target;
  }

  const shapes = new Map();
  for (const region of data.regions)
    shapes.set(region.shape, [...(shapes.get(region.shape) ?? []), region]);
  root.querySelector(".shapes").replaceChildren(...[...shapes.values()].map((alike) =>
    html("span", { class: "shape" }, html("i", { class: `chip c${alike[0].shape % 6}` }),
      html("span", {}, html("b", {}, alike[0].label || alike[0].name), ` in ${alike[0].parts} parts`,
        alike.length > 1 ? `, ${alike.length} regions` : "", alike[0].depth ? ", nested" : ""))));
  // A phone gives a sheet its whole width.
  onWidth(sheets, (width) => {
    wide = width < 600 ? width - 2 : WIDE;
    draw();
  });
}
