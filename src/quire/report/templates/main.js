const section = (id, draw) => {
  const root = document.getElementById(id);
  if (root) draw(root);
};
section("timeline", (root) => timeline(root, readout(root.querySelector(".readout"))));
section("graph", graph);
section("tradeoff", curve);
section("splits", (root) => {
  const [table, button] = [root.querySelector("#rows"), root.querySelector("#all")];
  const count = table.tBodies[0].rows.length;
  button?.addEventListener("click", () => {
    const all = table.classList.toggle("all");
    button.setAttribute("aria-pressed", String(all));
    button.textContent = all ? "show one of each kind" : `show all ${count} regions`;
  });
  const known = new Map(data.regions.map((region) => [region.name, region]));
  for (const row of table.tBodies[0].rows) {
    row.addEventListener("pointerenter", () => highlight(known.get(row.dataset.region)?.name ?? null));
    row.addEventListener("pointerleave", () => highlight(null));
  }
});
// For tests, and for whoever opens the console.
window.quire = { data, bytesText, secondsText };
