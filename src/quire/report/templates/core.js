// What all figures share: the data, text for numbers, elements, the tip.
const data = JSON.parse(document.getElementById("data").textContent);
const text = (i) => data.names[i];

const round = (value, digits) => Math.floor(value * 10 ** digits + 0.5) / 10 ** digits;

function short(value) {
  const digits = value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  const shown = round(value, digits).toFixed(digits);
  return digits ? shown.replace(/\.?0+$/, "") : shown;
}

// The same texts as quire.report.units; a test compares the two.
function bytesText(nbytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let [size, unit] = [Math.abs(nbytes), 0];
  while (unit + 1 < units.length && round(size, 0) >= 1000) [size, unit] = [size / 1024, unit + 1];
  return `${nbytes < 0 ? "-" : ""}${short(size)} ${units[unit]}`;
}

function secondsText(seconds) {
  for (const [unit, scale] of [["s", 1], ["ms", 1e3]])
    if (seconds === 0 || round(seconds * scale, 3) >= 1) return `${short(seconds * scale)} ${unit}`;
  return `${short(seconds * 1e6)} µs`;
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes))
    if (value !== undefined) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
const html = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const tip = document.getElementById("tip");

function showTip(event, title, ...lines) {
  tip.replaceChildren(html("b", {}, title), ...lines.map((line) => html("span", {}, line)));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const x = Math.max(12, Math.min(event.clientX + 14, innerWidth - width - 12));
  const below = event.clientY + 16;
  const y = below + height < innerHeight - 8 ? below : event.clientY - height - 12;
  tip.style.transform = `translate(${x}px, ${y}px)`;
}
const hideTip = () => { tip.hidden = true; };

// A region under the pointer stands out wherever it is drawn.
function highlight(region) {
  document.body.classList.toggle("dim", region !== null);
  for (const mark of document.querySelectorAll("svg [data-region]"))
    mark.classList.toggle("on", mark.dataset.region === region);
}

function describe(element, region) {
  element.addEventListener("pointermove", (event) => {
    highlight(region.name);
    const split = `${region.label || "axis"}: ${region.size.toLocaleString("en")} in ${region.parts} parts of ${region.part}`;
    showTip(event, region.name, split, `join: ${region.join}`, region.module || "(root)");
  });
  element.addEventListener("pointerleave", () => { highlight(null); hideTip(); });
  return element;
}

// Ticks at powers of two, or of ten, so that their texts are short.
function ticks(max, wanted, base) {
  if (!(max > 0)) return [0];
  let step = base ** Math.floor(Math.log(max / wanted) / Math.log(base));
  const factors = base === 2 ? [1, 2, 4] : [1, 2, 5, 10];
  step *= factors.find((f) => max / (step * f) <= wanted) ?? factors.at(-1);
  return Array.from({ length: Math.floor(max / step + 1e-9) + 1 }, (_, i) => i * step);
}

// Draw again when the width changes; never for height alone, which a phone changes on scroll.
function onWidth(element, draw) {
  let width = 0;
  new ResizeObserver(() => {
    const now = Math.floor(element.getBoundingClientRect().width);
    if (now > 0 && now !== width) draw((width = now));
  }).observe(element);
}
