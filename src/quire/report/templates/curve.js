// Predicted time against peak memory; the plan of this page is ringed.
function curve(root) {
  const chart = root.querySelector(".chart");
  const unit = data.baselineSeconds || 1;
  const own = data.tradeoff.findIndex(([peak, seconds]) => peak === data.peak && Math.abs(seconds - data.seconds) <= 1e-9 * seconds);

  function draw(width) {
    const height = Math.min(340, Math.max(240, width * 0.5));
    const [left, right, top, bottom] = [54, width - 16, 16, height - 42];
    const all = [...data.tradeoff, [data.peak, data.seconds], [data.baseline, data.baselineSeconds]];
    const sizes = all.map(([peak]) => Math.log2(Math.max(peak, 1)));
    const ratios = all.map(([, seconds]) => seconds / unit);
    const [low, high] = [Math.min(...sizes) - 0.25, Math.max(...sizes) + 0.25];
    const tallest = Math.max(...ratios) * 1.12;
    const x = (peak) => left + ((Math.log2(Math.max(peak, 1)) - low) / (high - low)) * (right - left);
    const y = (seconds) => bottom - (seconds / unit / tallest) * (bottom - top);
    const frame = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}` });

    for (const ratio of ticks(tallest, 5, 10))
      frame.append(
        svg("line", { class: ratio ? "grid" : "axis", x1: left, x2: right, y1: y(ratio * unit), y2: y(ratio * unit) }),
        svg("text", { x: left - 8, y: y(ratio * unit) + 4, "text-anchor": "end" }, ratio ? `${short(ratio)} ×` : "0"));
    const every = Math.max(1, Math.ceil((high - low) / ((right - left) / 74)));
    for (let power = Math.ceil(low / every) * every; power <= high; power += every)
      frame.append(svg("text", { x: x(2 ** power), y: bottom + 18, "text-anchor": "middle" }, bytesText(2 ** power)));
    frame.append(svg("text", { x: right, y: height - 4, "text-anchor": "end" }, "peak memory →"));

    if (data.budget !== null && x(data.budget) >= left && x(data.budget) <= right) {
      const at = x(data.budget);
      const late = at > (left + right) / 2;
      frame.append(svg("line", { class: "limit", x1: at, x2: at, y1: top, y2: bottom }),
        svg("text", { class: "limit-name halo", x: at + (late ? -6 : 6), y: bottom - 8, "text-anchor": late ? "end" : "start" }, `budget ${bytesText(data.budget)}`));
    }
    frame.append(svg("path", { class: "line", d: `M${data.tradeoff.map(([p, s]) => `${x(p).toFixed(1)} ${y(s).toFixed(1)}`).join("L")}` }));
    const itself = svg("circle", { class: "itself", cx: x(data.baseline), cy: y(data.baselineSeconds), r: 5 });
    frame.append(itself, svg("text", { class: "halo", x: x(data.baseline) - 10, y: y(data.baselineSeconds) + 4, "text-anchor": "end" }, "model as it is"));
    data.tradeoff.forEach(([peak, seconds]) => {
      const point = svg("circle", { class: "point", cx: x(peak), cy: y(seconds), r: 4 });
      const target = svg("circle", { cx: x(peak), cy: y(seconds), r: 13, fill: "transparent" });
      target.addEventListener("pointermove", (event) => showTip(event, `peak ${bytesText(peak)}`, `${short(seconds / unit)} × the model’s time, ${secondsText(seconds)}`));
      target.addEventListener("pointerleave", hideTip);
      frame.append(point, target);
    });
    const late = x(data.peak) > (left + right) / 2;
    frame.append(svg("circle", { class: "chosen", cx: x(data.peak), cy: y(data.seconds), r: 9 }),
      svg("text", { class: "strong halo", x: x(data.peak) + (late ? -14 : 14), y: y(data.seconds) - 12, "text-anchor": late ? "end" : "start" }, "this plan"));
    chart.replaceChildren(frame);
  }

  const rows = data.tradeoff.map(([peak, seconds], i) =>
    html("tr", { class: i === own ? "on" : "" },
      html("td", {}, bytesText(peak)),
      html("td", { class: "num" }, data.baseline ? `${short((peak / data.baseline) * 100)} %` : ""),
      html("td", { class: "num" }, `${short(seconds / unit)} ×`),
      html("td", { class: "num" }, secondsText(seconds))));
  const heads = [["Peak", ""], ["of the model’s", "num"], ["Time", "num"], ["", "num"]];
  root.querySelector(".points").append(
    html("thead", {}, html("tr", {}, ...heads.map(([head, kind]) => html("th", { class: kind }, head)))),
    html("tbody", {}, ...rows));
  onWidth(chart, draw);
}
