// Under the timeline: what is live at the chosen step, before and after, largest first.
function readout(root) {
  const sides = [["before", data.before, "Model as it is"], ["plan", data.after, "Plan"]];

  function side(which, series, title, i, peak) {
    const box = html("div", { class: `moment ${which}` });
    if (i < 0) {
      box.append(html("p", { class: "when" }, series.bytes.length ? `${title}: finished by now` : `${title}: no steps recorded`));
      return box;
    }
    const total = series.bytes[i];
    const rows = series.holds[i].map(([tensor, module, nbytes]) => [text(tensor), text(module), nbytes]);
    const rest = total - rows.reduce((sum, [, , nbytes]) => sum + nbytes, 0);
    const more = series.count[i] - rows.length;
    if (rest > 0) rows.push([more > 0 ? `${more} more, workspace` : "workspace", "", rest]);
    // Rows to spare keep the page still while the pointer moves.
    const list = rows.map(([tensor, module, nbytes]) =>
      html("li", { style: `--share: ${((nbytes / (total || 1)) * 100).toFixed(1)}%` },
        html("span", { class: "path", title: `${tensor} ${module}` }, html("b", {}, tensor), module),
        html("span", {}, bytesText(nbytes))));
    while (list.length < 5) list.push(html("li", { style: "--share: 0%" }));
    const module = text(series.module[i]);
    const region = text(series.region[i]);
    box.append(
      html("p", { class: "when" }, peak ? `${title}, at its peak` : `${title}${region ? `, in ${region}` : ""}`),
      html("div", { class: "top" },
        html("span", { class: "step" }, html("i", {}, text(series.step[i])), module ? `  ${module}` : ""),
        html("b", {}, bytesText(total))),
      html("ul", {}, ...list),
    );
    return box;
  }

  return (chosen, peak) => {
    const [before, plan] = sides.map(([which, series, title]) => side(which, series, title, chosen[which], peak));
    root.replaceChildren(before, plan);
  };
}
